"""Importing into PostgreSQL: what ends up in `users`, the change log, the report and the rejected rows."""

import asyncio
import csv
import gzip
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from leaderboard import app
from leaderboard.config import Settings
from leaderboard.database.importer import CHUNK, NamesTaken
from leaderboard.errors import DatabaseUnavailable
from leaderboard.importing import ImportReport, OnConflict, Progress, UnusableFile, import_file
from tests.system import environment, sql

pytestmark = pytest.mark.anyio

SKIP, UPDATE, FAIL = OnConflict
NPM = Path(os.environ.get("NPM_BOARD", "npm-downloads.csv.gz"))
"""A month's downloads of 226,974 npm packages; two of them exceed int32."""


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
    """Some of the users of `many`."""
    name = "'user ' || lpad(i::text, 6, '0')"
    sql(settings, f"INSERT INTO users (user_name) SELECT {name} FROM generate_series({first}, {last}) AS i")


async def run(
    settings: Settings,
    path: Path,
    on_conflict: OnConflict = SKIP,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ImportReport:
    async with app.database_from(settings).importing() as importer:
        return await import_file(str(path), importer, on_conflict, progress)


def board(settings: Settings) -> dict[str, tuple[int, str | None]]:
    rows = sql(settings, "SELECT user_name, total_score, image_url FROM users")
    return {row["user_name"]: (row["total_score"], row["image_url"]) for row in rows}


def counts(report: ImportReport) -> tuple[int, int, int, int, int]:
    assert report.read == report.imported + report.updated + report.skipped + report.rejected
    return report.read, report.imported, report.updated, report.skipped, report.rejected


def rejected(report: ImportReport) -> list[list[str]]:
    assert report.rejected_path is not None
    with report.rejected_path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["line", "reason", "username", "score", "imageUrl"]
    assert len(rows) == report.rejected
    return rows


async def test_good_rows_go_in_and_bad_ones_are_reported(settings: Settings, tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "in.csv",
        [
            ("amy", 5, "https://example.com/a.png"),
            ("bob", 2**31, ""),
            ("multi\nline", 1, ""),
            ("eve", -(2**31), ""),
            (" amy ", 6, ""),
            ("e\u0301ric", 2**31 - 1, ""),
            ("éric", 3, "https://example.com/e.png"),
            ("amy", 5, ""),
        ],
    )
    report = await run(settings, path)
    assert counts(report) == (8, 3, 0, 0, 5)
    assert board(settings) == {
        "amy": (5, "https://example.com/a.png"),
        "eve": (-(2**31), None),
        "éric": (2**31 - 1, None),
    }
    assert [(line, *cells) for line, _, *cells in rejected(report)] == [
        ("3", "bob", "2147483648", ""),
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


def import_in(folder: Path, settings: Settings, file: str, stdin: Path, limit: int = 2**20) -> tuple[int, str]:
    """The status of `leaderboard import` and its last line; no file may become larger than `limit` bytes."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from leaderboard.cli import main
main()
"""
    with stdin.open("rb") as input_:
        done = subprocess.run(
            [sys.executable, "-c", program, "import", file],
            cwd=folder,
            env=environment(settings),
            stdin=input_,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


def test_the_file_being_imported_is_not_replaced_by_its_own_rejected_rows(
    settings: Settings, tmp_path: Path
) -> None:
    """Corrected rejected rows of standard input, put there again."""
    path = write_csv(tmp_path / "stdin.rejected.csv", [("amy", 5, ""), ("", 1, "")])
    before = path.read_bytes()
    assert import_in(tmp_path, settings, "-", path) == (
        3,
        "leaderboard: cannot write rejected rows to stdin.rejected.csv: it is the file being imported;"
        " nothing was imported",
    )
    assert path.read_bytes() == before
    assert board(settings) == {}
    path = path.rename(tmp_path / "corrected.csv")
    assert import_in(tmp_path, settings, "-", path)[0] == 1
    assert board(settings) == {"amy": (5, None)}


@pytest.mark.parametrize("rows", [30, 1000])
def test_nothing_is_imported_when_rejected_rows_cannot_be_kept(
    settings: Settings, tmp_path: Path, rows: int
) -> None:
    """As on a full disk: noticed while they are written, or when the file is closed."""
    path = write_csv(tmp_path / "in.csv", [("amy", 5, ""), *[("", 1, "")] * rows])
    assert import_in(tmp_path, settings, str(path), path, limit=1000) == (
        3,
        f"leaderboard: cannot write rejected rows to {path}.rejected.csv: File too large; nothing was imported",
    )
    assert board(settings) == {}


async def test_a_clean_file_leaves_no_rejected_rows(settings: Settings, tmp_path: Path) -> None:
    report = await run(settings, write_csv(tmp_path / "in.csv", [("amy", 5, "")]))
    assert report == ImportReport(read=1, imported=1)
    assert os.listdir(tmp_path) == ["in.csv"]


@pytest.mark.parametrize("on_conflict", OnConflict)
async def test_an_empty_file_imports_nothing(settings: Settings, tmp_path: Path, on_conflict: OnConflict) -> None:
    assert await run(settings, write_csv(tmp_path / "in.csv", []), on_conflict) == ImportReport()
    only_bad = write_csv(tmp_path / "bad.csv", [("", 1, "")])
    assert counts(await run(settings, only_bad, on_conflict)) == (1, 0, 0, 0, 1)


async def test_skip_leaves_users_alone_and_burns_no_ids(settings: Settings, tmp_path: Path) -> None:
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
    sql(settings, "DELETE FROM user_changes")
    new = [("bob", 2, ""), ("amy", 9, "https://x"), ("cat", 3, ""), ("dan", 4, "")]
    report = await run(settings, write_csv(tmp_path / "b.csv", new), UPDATE)
    assert counts(report) == (4, 1, 3, 0, 0)
    assert board(settings) == {"amy": (9, "https://x"), "bob": (2, None), "cat": (3, None), "dan": (4, None)}
    log = sql(settings, "SELECT old_score, new_score FROM user_changes ORDER BY new_score")
    assert [tuple(row) for row in log] == [(2, 2), (None, 4), (1, 9)]
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
    with pytest.raises(NamesTaken) as refusal:
        await run(settings, path, FAIL)
    assert refusal.value.in_all == 10
    assert next(iter(refusal.value.lines.items())) == (24_992, "user 024990")
    assert str(refusal.value) == (
        "nothing was imported, because these users exist: 'user 024990' (line 24992), 'user 024991' (line 24993), "
        "'user 024992' (line 24994), 'user 024993' (line 24995), 'user 024994' (line 24996) and 5 more"
    )
    assert board(settings) == before

    sql(settings, "DELETE FROM users")
    seen: list[Progress] = []
    assert counts(await run(settings, path, FAIL, seen.append)) == (25_000, 25_000, 0, 0, 0)
    assert [p.report.imported for p in seen if p.stage == "writing"] == [0, 0, 0, 25_000]


async def test_fail_writes_nothing_if_a_name_is_taken_while_it_writes(settings: Settings, tmp_path: Path) -> None:
    def meddle(progress: Progress) -> None:
        if progress.stage == "writing" and progress.rows == CHUNK:
            sql(settings, "INSERT INTO users (user_name) VALUES ('user 024999')")

    with pytest.raises(NamesTaken) as refusal:
        await run(settings, write_csv(tmp_path / "in.csv", many(25_000)), FAIL, meddle)
    assert refusal.value.lines == {25_001: "user 024999"}
    assert board(settings) == {"user 024999": (0, None)}


async def test_a_name_taken_meanwhile_is_skipped_or_updated(settings: Settings, tmp_path: Path) -> None:
    def meddle(progress: Progress) -> None:
        if progress.stage == "writing":
            sql(settings, "INSERT INTO users (user_name) VALUES ('user 014999') ON CONFLICT DO NOTHING")

    path = write_csv(tmp_path / "in.csv", many(15_000))
    assert counts(await run(settings, path, SKIP, meddle)) == (15_000, 14_999, 0, 1, 0)
    assert board(settings)["user 014999"] == (0, None)
    sql(settings, "DELETE FROM users")
    assert counts(await run(settings, path, UPDATE, meddle)) == (15_000, 14_999, 1, 0, 0)
    assert board(settings)["user 014999"] == (7, None)


async def test_rows_go_in_in_the_order_of_the_file_and_into_the_log_one_by_one(
    settings: Settings, tmp_path: Path
) -> None:
    users = many(25_000)
    random.Random(1).shuffle(users)
    seen: list[Progress] = []
    await run(settings, write_csv(tmp_path / "in.csv.gz", users), SKIP, seen.append)
    ids = {row["user_name"]: row["user_id"] for row in sql(settings, "SELECT user_id, user_name FROM users")}
    places = [ids[str(name)] for name, *_ in users]
    assert max(places[:CHUNK]) < min(places[CHUNK : 2 * CHUNK])
    assert max(places[CHUNK : 2 * CHUNK]) < min(places[2 * CHUNK :])
    (log,) = sql(
        settings, "SELECT count(*), count(user_id) AS listed, count(DISTINCT xid) AS xids FROM user_changes"
    )
    assert tuple(log) == (25_000, 25_000, 3)

    reading = [p for p in seen if p.stage == "reading"]
    assert [p.rows for p in reading] == [10_000, 20_000, 25_000]
    assert all(p.total == (tmp_path / "in.csv.gz").stat().st_size for p in reading)
    assert 0 < reading[0].done < reading[1].done <= reading[2].done == reading[2].total
    writing = [(p.rows, p.done, p.total, p.report.imported) for p in seen if p.stage == "writing"]
    assert writing == [(n, n, 25_000, n) for n in (10_000, 20_000, 25_000)]


async def test_a_broken_file_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv.gz", many(25_000))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnusableFile, match="cut short"):
        await run(settings, path)
    assert board(settings) == {}


@pytest.mark.parametrize("how", ["cancelled", "connection lost"])
async def test_what_an_interrupted_import_reported_stays_and_a_second_run_completes_it(
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
async def test_imports_of_the_same_names_at_once(
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
    deadlocks = sql(settings, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks[0]["deadlocks"] == 0


async def test_of_two_imports_that_must_not_meet_one_is_done_and_one_not_at_all(
    settings: Settings, tmp_path: Path
) -> None:
    users = many(30_000)
    paths = [write_csv(tmp_path / "a.csv", users), write_csv(tmp_path / "b.csv", reversed(users))]
    outcomes = await asyncio.gather(*(run(settings, path, FAIL) for path in paths), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ImportReport", "NamesTaken"]
    assert len(board(settings)) == 30_000


async def test_commits_are_durable_where_the_database_says_otherwise(settings: Settings, tmp_path: Path) -> None:
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
    assert counts(report) == (226_974, 226_972, 0, 0, 2)
    assert [(line, name) for line, _, name, *_ in rejected(report)] == [
        ("115448", "ansi-styles"),
        ("201726", "semver"),
    ]
    best = sql(settings, "SELECT user_name, total_score FROM users ORDER BY total_score DESC, user_id LIMIT 3")
    assert [tuple(row) for row in best] == [
        ("debug", 2069940879), ("minimatch", 1907502667), ("strip-ansi", 1744523146)
    ]  # fmt: skip
    barriers = sql(settings, "SELECT count(*) AS n FROM user_changes WHERE user_id IS NULL")
    assert barriers[0]["n"] == 0
