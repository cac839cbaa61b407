"""Writes CSV files, imports them, and returns what is on the board and in the report."""

import csv
import gzip
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from leaderboard import app
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.importing import ImportReport, Listener, OnConflict, Options, Progress, import_file
from tests.system import sql

SKIP, UPDATE, FAIL = OnConflict


def write_csv(path: Path, users: Iterable[tuple[object, ...]], header: str = "username,score,imageUrl") -> Path:
    text = io.StringIO(newline="")
    text.write(f"{header}\n")
    csv.writer(text).writerows(users)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def many(n: int, score: int = 7) -> list[tuple[object, ...]]:
    return [(f"user {i:06}", score, "") for i in range(n)]


def create(settings: Settings, first: int, last: int) -> None:
    """Create some of the users of `many`."""
    name = "'user ' || lpad(i::text, 6, '0')"
    sql(settings, f"INSERT INTO users (user_name) SELECT {name} FROM generate_series({first}, {last}) AS i")


async def run(
    settings: Settings,
    path: Path,
    on_conflict: OnConflict = SKIP,
    progress: Callable[[Progress], None] = lambda _: None,
    board: Board | None = None,
    options: Options | None = None,
) -> ImportReport:
    async with app.database_from(settings).importing(board) as importer:
        return await import_file(str(path), importer, on_conflict, Listener(progress=progress), options)


def board(settings: Settings) -> dict[str, tuple[int, str | None]]:
    rows = sql(settings, "SELECT user_name, total_score, image_url FROM users")
    return {row["user_name"]: (row["total_score"], row["image_url"]) for row in rows}


def counts(report: ImportReport) -> tuple[int, int, int, int, int]:
    assert report.read == report.imported + report.updated + report.skipped + report.rejected
    return report.read, report.imported, report.updated, report.skipped, report.rejected


def rejected(report: ImportReport, *columns: str) -> list[list[str]]:
    """The rows of the file of rejected rows; `columns` are those after the score."""
    assert report.rejected_path is not None
    with report.rejected_path.open(newline="") as file:
        header, *rows = csv.reader(file)
    expected = [columns] if columns else [(), ("imageUrl",)]
    assert header in [["line", "reason", "username", "score", *others] for others in expected]
    assert len(rows) == report.rejected
    return rows
