"""Writes the entries of a season as CSV, in the form that an import reads."""

import csv
from typing import Protocol

from leaderboard.csv_scores import CsvScores
from leaderboard.database.exporter import Exporter
from leaderboard.importing.columns import COLUMNS
from leaderboard.spreadsheet import neutral


class Text(Protocol):
    """Where text is written as it is, without other ends of lines."""

    def write(self, text: str, /) -> object: ...


async def export_csv(exporter: Exporter, file: Text) -> int:
    """Write the entries, best first; returns how many there are.

    Names that a spreadsheet would run as formulas are neutral.
    """
    scores = CsvScores(exporter.rules)
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    count = 0
    async for user_name, value, image_url in exporter.entries():
        rows.writerow((neutral(user_name), scores.format(value), image_url or ""))
        count += 1
    return count
