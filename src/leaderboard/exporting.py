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

    Names that a spreadsheet would run as formulas are neutral. There is a column of external ids if any user has
    one.
    """
    scores = CsvScores(exporter.rules)
    rows = csv.writer(file, lineterminator="\n")
    *columns, _ = COLUMNS
    has_ids = await exporter.has_external_ids()
    rows.writerow((*columns, "external_id") if has_ids else columns)
    count = 0
    async for user_name, value, image_url, external_id in exporter.entries():
        cells = neutral(user_name), scores.format(value), image_url or ""
        rows.writerow((*cells, neutral(external_id or "")) if has_ids else cells)
        count += 1
    return count
