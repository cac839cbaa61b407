"""Reads the rows of CSV bytes and of CSV files."""

import io
from pathlib import Path

from leaderboard.board_rules import BoardRules
from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Row
from leaderboard.importing import CsvUsers, Rejected, open_source

HEADER = b"username,score,imageUrl\n"
SCORES = CsvScores(BoardRules())
"""The scores of `default`."""


def read(data: bytes, scores: CsvScores = SCORES) -> list[Row | Rejected]:
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
    return list(CsvUsers(text, scores))


def rows_of(path: Path) -> list[Row | Rejected]:
    with open_source(str(path)) as source:
        return list(CsvUsers(source.text, SCORES))
