"""Reads the rows of CSV bytes and of CSV files."""

import io
from pathlib import Path

from leaderboard.database.importer import Row
from leaderboard.importing import CsvUsers, Rejected, open_source

HEADER = b"username,score,imageUrl\n"


def read(data: bytes) -> list[Row | Rejected]:
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
    return list(CsvUsers(text))


def rows_of(path: Path) -> list[Row | Rejected]:
    with open_source(str(path)) as source:
        return list(CsvUsers(source.text))
