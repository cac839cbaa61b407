"""Imports beside other writers and other imports, and imports that are interrupted."""

import asyncio
import random
from pathlib import Path

import pytest

from leaderboard.config import Settings
from leaderboard.database.importer import CHUNK, NamesTaken
from leaderboard.errors import DatabaseUnavailable
from leaderboard.importing import OnConflict, Progress
from tests.importing.boards import FAIL, SKIP, UPDATE, board, counts, create, many, run, write_csv
from tests.system import sql

pytestmark = pytest.mark.anyio


async def test_fail_writes_nothing_if_a_name_is_taken_while_it_writes(settings: Settings, tmp_path: Path) -> None:
    def interfere(progress: Progress) -> None:
        if progress.stage == "writing" and progress.rows == CHUNK:
            sql(settings, "INSERT INTO users (user_name) VALUES ('user 024999')")

    with pytest.raises(NamesTaken) as error:
        await run(settings, write_csv(tmp_path / "in.csv", many(25_000)), FAIL, interfere)
    assert error.value.lines == {25_001: "user 024999"}
    assert board(settings) == {"user 024999": (0, None)}


async def test_a_name_taken_meanwhile_is_skipped_or_updated(settings: Settings, tmp_path: Path) -> None:
    def interfere(progress: Progress) -> None:
        if progress.stage == "writing":
            sql(settings, "INSERT INTO users (user_name) VALUES ('user 014999') ON CONFLICT DO NOTHING")

    path = write_csv(tmp_path / "in.csv", many(15_000))
    assert counts(await run(settings, path, SKIP, interfere)) == (15_000, 14_999, 0, 1, 0)
    assert board(settings)["user 014999"] == (0, None)
    sql(settings, "DELETE FROM users")
    assert counts(await run(settings, path, UPDATE, interfere)) == (15_000, 14_999, 1, 0, 0)
    assert board(settings)["user 014999"] == (7, None)


@pytest.mark.parametrize("how", ["cancelled", "connection lost"])
async def test_an_interrupted_import_keeps_what_it_reported_and_a_second_run_completes_it(
    settings: Settings, tmp_path: Path, how: str
) -> None:
    reported = 0

    def interrupt(progress: Progress) -> None:
        nonlocal reported
        reported = progress.report.imported
        if reported == 2 * CHUNK:
            if how == "cancelled":
                task.cancel()
            else:
                sql(
                    settings,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )

    path = write_csv(tmp_path / "in.csv", many(45_000))
    task = asyncio.create_task(run(settings, path, SKIP, interrupt))
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else DatabaseUnavailable):
        await task
    assert reported == 2 * CHUNK == len(board(settings))
    assert counts(await run(settings, path)) == (45_000, 25_000, 0, 20_000, 0)
    assert len(board(settings)) == 45_000


@pytest.mark.parametrize("existing", [10_000, 30_000])
@pytest.mark.parametrize(
    "modes", [(SKIP, SKIP), (UPDATE, UPDATE), (SKIP, UPDATE, SKIP, UPDATE)], ids=["skip", "update", "both"]
)
async def test_concurrent_imports_of_the_same_names(
    settings: Settings, tmp_path: Path, modes: tuple[OnConflict, ...], existing: int
) -> None:
    create(settings, 0, existing - 1)
    paths = []
    for i in range(len(modes)):
        users = many(30_000, score=i + 1)
        random.Random(i).shuffle(users)
        paths.append(write_csv(tmp_path / f"{i}.csv", users))
    reports = await asyncio.gather(*(run(settings, path, mode) for path, mode in zip(paths, modes, strict=True)))
    after = board(settings)
    assert len(after) == 30_000
    assert sum(report.imported for report in reports) == 30_000 - existing
    for mode, report in zip(modes, reports, strict=True):
        assert counts(report)[2 if mode is SKIP else 3] == 0
    if UPDATE in modes:
        last = {i + 1 for i, mode in enumerate(modes) if mode is UPDATE}
        assert {score for score, _ in after.values()} <= last
    assert deadlocks(settings) == 0


def deadlocks(settings: Settings) -> int:
    (row,) = sql(settings, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(row["deadlocks"])


async def test_of_two_imports_with_fail_one_is_done_and_one_writes_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    users = many(30_000)
    paths = [write_csv(tmp_path / "a.csv", users), write_csv(tmp_path / "b.csv", reversed(users))]
    outcomes = await asyncio.gather(*(run(settings, path, FAIL) for path in paths), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ImportReport", "NamesTaken"]
    assert len(board(settings)) == 30_000
    assert deadlocks(settings) == 0
