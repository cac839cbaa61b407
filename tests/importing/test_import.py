"""Importing into PostgreSQL: the users, the change log, the report and the rejected rows."""

import csv
import gzip
import os
import random
from pathlib import Path

import pytest

from leaderboard.config import Settings
from leaderboard.database.importer import NamesTaken
from leaderboard.importing import ImportReport, OnConflict, Progress, UnusableFile
from tests.importing.boards import FAIL, SKIP, UPDATE, board, counts, create, many, rejected, run, write_csv
from tests.system import sql

pytestmark = pytest.mark.anyio

NPM = Path(os.environ.get("NPM_BOARD", "npm-downloads.csv.gz"))
"""A month's downloads of 226,974 npm packages. Two of them have more than an int32 can hold."""


async def test_good_rows_are_imported_and_bad_ones_are_reported(settings: Settings, tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "in.csv",
        [
            ("amy", 5, "https://example.com/a.png"),
            ("bob", 2**53, ""),
            ("multi\nline", 1, ""),
            ("eve", 1 - 2**53, ""),
            (" amy ", 6, ""),
            ("e\u0301ric", 2**53 - 1, ""),
            ("éric", 3, "https://example.com/e.png"),
            ("amy", 5, ""),
        ],
    )
    report = await run(settings, path)
    assert counts(report) == (8, 3, 0, 0, 5)
    assert board(settings) == {
        "amy": (5, "https://example.com/a.png"),
        "eve": (1 - 2**53, None),
        "éric": (2**53 - 1, None),
    }
    assert [(line, *cells) for line, _, *cells in rejected(report)] == [
        ("3", "bob", "9007199254740992", ""),
        ("4", "multi\nline", "1", ""),
        ("7", "amy", "6", ""),
        ("9", "éric", "3", "https://example.com/e.png"),
        ("10", "amy", "5", ""),
    ]
    assert [reason for _, reason, *_ in rejected(report)][2:] == [
        "username: duplicate of line 2",
        "username: duplicate of line 8",
        "username: duplicate of line 2",
    ]
    assert report.summary() == (
        f"8 read, 3 imported, 0 updated, 0 skipped, 5 rejected: see {tmp_path / 'in.csv.rejected.csv'}"
    )


async def test_a_clean_file_leaves_no_rejected_rows(settings: Settings, tmp_path: Path) -> None:
    report = await run(settings, write_csv(tmp_path / "in.csv", [("amy", 5, "")]))
    assert report == ImportReport(read=1, imported=1)
    assert os.listdir(tmp_path) == ["in.csv"]


@pytest.mark.parametrize("on_conflict", OnConflict)
async def test_an_empty_file_imports_nothing(settings: Settings, tmp_path: Path, on_conflict: OnConflict) -> None:
    assert await run(settings, write_csv(tmp_path / "in.csv", []), on_conflict) == ImportReport()
    only_bad = write_csv(tmp_path / "bad.csv", [("", 1, "")])
    assert counts(await run(settings, only_bad, on_conflict)) == (1, 0, 0, 0, 1)


async def test_skip_changes_no_users_and_uses_no_ids(settings: Settings, tmp_path: Path) -> None:
    await run(settings, write_csv(tmp_path / "a.csv", [("amy", 1, "https://a"), ("bob", 2, "")]))
    for _ in range(3):
        report = await run(
            settings, write_csv(tmp_path / "b.csv", [("bob", 9, ""), ("amy", 9, ""), ("cat", 3, "")])
        )
    assert counts(report) == (3, 0, 0, 3, 0)
    assert board(settings) == {"amy": (1, "https://a"), "bob": (2, None), "cat": (3, None)}
    assert sql(settings, "SELECT max(user_id) AS highest FROM users")[0]["highest"] == 3
    assert sql(settings, "SELECT nextval('users_user_id_seq') AS next")[0]["next"] == 4


async def test_update_sets_score_and_image_and_logs_only_changes(settings: Settings, tmp_path: Path) -> None:
    await run(
        settings, write_csv(tmp_path / "a.csv", [("amy", 1, "https://a"), ("bob", 2, "https://b"), ("cat", 3, "")])
    )
    sql(settings, "DELETE FROM changes")
    new = [("bob", 2, ""), ("amy", 9, "https://x"), ("cat", 3, ""), ("dan", 4, "")]
    report = await run(settings, write_csv(tmp_path / "b.csv", new), UPDATE)
    assert counts(report) == (4, 1, 3, 0, 0)
    assert board(settings) == {"amy": (9, "https://x"), "bob": (2, None), "cat": (3, None), "dan": (4, None)}
    log = sql(settings, "SELECT old_key, new_key FROM changes WHERE season_id = 1 ORDER BY new_key")
    assert [tuple(row) for row in log] == [(None, 4), (1, 9)]
    images = sql(settings, "SELECT user_id FROM changes WHERE season_id = 0 ORDER BY 1")
    assert [row["user_id"] for row in images] == [1, 2]
    assert sql(settings, "SELECT nextval('users_user_id_seq') AS next")[0]["next"] == 5


async def test_update_without_an_image_column_keeps_images(settings: Settings, tmp_path: Path) -> None:
    await run(settings, write_csv(tmp_path / "a.csv", [("amy", 1, "https://a")]))
    report = await run(settings, write_csv(tmp_path / "b.csv", [("amy", 2)], "username,score"), UPDATE)
    assert counts(report) == (1, 0, 1, 0, 0)
    assert board(settings) == {"amy": (2, "https://a")}


async def test_fail_writes_nothing_if_a_name_exists(settings: Settings, tmp_path: Path) -> None:
    create(settings, 24990, 25000)
    before = board(settings)
    path = write_csv(tmp_path / "in.csv", many(25_000))
    with pytest.raises(NamesTaken) as error:
        await run(settings, path, FAIL)
    assert error.value.in_all == 10
    assert next(iter(error.value.lines.items())) == (24_992, "user 024990")
    assert str(error.value) == (
        "nothing was imported, because these users exist: 'user 024990' (line 24992), 'user 024991' (line 24993), "
        "'user 024992' (line 24994), 'user 024993' (line 24995), 'user 024994' (line 24996) and 5 more"
    )
    assert board(settings) == before

    sql(settings, "DELETE FROM users")
    seen: list[Progress] = []
    assert counts(await run(settings, path, FAIL, seen.append)) == (25_000, 25_000, 0, 0, 0)
    assert [p.report.imported for p in seen if p.stage == "writing"] == [0, 0, 0, 25_000]


async def test_rows_are_written_in_the_order_of_the_file_and_logged_one_by_one(
    settings: Settings, tmp_path: Path
) -> None:
    users = many(25_000)
    random.Random(1).shuffle(users)
    seen: list[Progress] = []
    await run(settings, write_csv(tmp_path / "in.csv.gz", users), SKIP, seen.append)
    ids = {row["user_name"]: row["user_id"] for row in sql(settings, "SELECT user_id, user_name FROM users")}
    places = [ids[str(name)] for name, *_ in users]
    assert places == sorted(places)
    (log,) = sql(settings, "SELECT count(*), count(user_id) AS listed, count(DISTINCT xid) AS xids FROM changes")
    assert tuple(log) == (25_000, 25_000, 3)

    reading = [p for p in seen if p.stage == "reading"]
    assert [p.rows for p in reading] == [10_000, 20_000, 25_000]
    assert all(p.total == (tmp_path / "in.csv.gz").stat().st_size for p in reading)
    assert 0 < reading[0].done < reading[1].done <= reading[2].done == reading[2].total
    writing = [(p.rows, p.done, p.total, p.report.imported) for p in seen if p.stage == "writing"]
    assert writing == [(n, n, 25_000, n) for n in (10_000, 20_000, 25_000)]


@pytest.mark.parametrize("on_conflict", OnConflict)
async def test_new_users_with_one_score_are_in_the_order_of_the_file(
    settings: Settings, tmp_path: Path, on_conflict: OnConflict
) -> None:
    names = [f"user {n}" for n in range(1000)]
    random.Random(3).shuffle(names)
    await run(settings, write_csv(tmp_path / "in.csv", [(name, 7, "") for name in names]), on_conflict)
    order = sql(settings, "SELECT user_name FROM users ORDER BY total_score DESC, user_id ASC")
    assert [row["user_name"] for row in order] == names


async def test_a_broken_file_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv.gz", many(25_000))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnusableFile, match="cut short"):
        await run(settings, path)
    assert board(settings) == {}


async def test_commits_are_durable_whatever_the_database_sets(settings: Settings, tmp_path: Path) -> None:
    sql(settings, f"ALTER DATABASE {settings.db_name} SET synchronous_commit = off")
    sql(settings, "CREATE TABLE said (setting text)")
    sql(
        settings,
        "CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO said VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
    )
    sql(settings, "CREATE TRIGGER say AFTER INSERT OR UPDATE ON users EXECUTE FUNCTION say()")
    path = write_csv(tmp_path / "in.csv", many(15_000))
    await run(settings, path, SKIP)
    await run(settings, path, UPDATE)
    sql(settings, "DELETE FROM users")
    await run(settings, path, FAIL)
    assert {row["setting"] for row in sql(settings, "SELECT setting FROM said")} == {"on"}


@pytest.mark.skipif(not NPM.exists(), reason="NPM_BOARD does not name the file")
async def test_the_npm_board(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / NPM.name
    path.write_bytes(NPM.read_bytes())
    report = await run(settings, path)
    assert counts(report) == (226_974, 226_974, 0, 0, 0)
    best = [
        tuple(row)
        for row in sql(settings, "SELECT user_name, total_score FROM users ORDER BY total_score DESC, user_id ASC")
    ]
    with gzip.open(path, "rt", newline="") as file:
        rows = [(row["username"], int(row["score"])) for row in csv.DictReader(file)]
    assert best == sorted(rows, key=lambda row: -row[1])
    assert best[:3] == [
        ("semver", 2399072936), ("ansi-styles", 2165311120), ("debug", 2069940879)
    ]  # fmt: skip
    barriers = sql(settings, "SELECT count(*) AS n FROM changes WHERE user_id IS NULL")
    assert barriers[0]["n"] == 0
