"""Importing to boards other than `default`: rules, ties, entries that exist, and seasons that end meanwhile."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest

from leaderboard.board_rules import parse_rules
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.database.importer import CHUNK, BoardChanged, NamesTaken
from leaderboard.importing import ImportReport, OnConflict, Progress
from tests.boards.boards import make_board, started, waits_for_lock
from tests.importing.boards import FAIL, SKIP, UPDATE, counts, many, rejected, run, write_csv
from tests.importing.test_concurrent_imports import deadlocks
from tests.system import ApiProcess, connect, environment, eventually, sql, until

pytestmark = pytest.mark.anyio

Rows = list[tuple[object, ...]]


async def make(settings: Settings, name: str, **rules: object) -> Board:
    async with started(settings) as app:
        return await make_board(app, name, **rules)


def standings(settings: Settings, season_id: int) -> list[tuple[str, int]]:
    """Return the names and sort keys of a season, best first."""
    rows = sql(
        settings,
        "SELECT user_name, sort_key FROM scores JOIN users USING (user_id) WHERE season_id = $1"
        " ORDER BY sort_key DESC, user_id ASC",
        season_id,
    )
    return [(row["user_name"], row["sort_key"]) for row in rows]


def names(settings: Settings, season_id: int) -> list[str]:
    return [name for name, _ in standings(settings, season_id)]


def add_users(settings: Settings, *user_names: str) -> None:
    sql(settings, "INSERT INTO users (user_name) SELECT unnest($1::text[])", list(user_names))


def add_entries(settings: Settings, season_id: int, entries: dict[str, int]) -> None:
    """Add users with these sort keys."""
    add_users(settings, *entries)
    sql(
        settings,
        "INSERT INTO scores (season_id, user_id, sort_key) SELECT $1, user_id, e.sort_key"
        " FROM unnest($2::text[], $3::bigint[]) AS e (name, sort_key) JOIN users ON user_name = e.name",
        season_id,
        list(entries),
        list(entries.values()),
    )


async def test_users_are_created_in_the_order_of_the_file(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps")
    add_users(settings, "bob", "amy")
    rows: Rows = [
        ("zoe", 5, "https://z"),
        ("amy", 5, "https://a"),
        ("dan", 5, ""),
        ("bob", 5, ""),
        ("cat", -5, ""),
    ]
    report = await run(settings, write_csv(tmp_path / "in.csv", rows), SKIP, board=board)
    assert report == ImportReport(read=5, imported=5)
    users = sql(settings, "SELECT user_name, total_score, image_url FROM users ORDER BY user_id")
    # The score on `default` is that of a new user, and the image of a user who exists stays.
    assert [tuple(row) for row in users] == [
        ("bob", 0, None), ("amy", 0, None), ("zoe", 0, "https://z"), ("dan", 0, None), ("cat", 0, None)
    ]  # fmt: skip
    # On a board with ties by id, users who exist come first.
    assert standings(settings, board.season_id) == [("bob", 5), ("amy", 5), ("zoe", 5), ("dan", 5), ("cat", -5)]


@pytest.mark.parametrize("on_conflict", OnConflict)
@pytest.mark.parametrize("better", ["higher", "lower"])
async def test_rows_of_one_score_are_in_the_order_of_the_file_where_the_first_is_best(
    settings: Settings, tmp_path: Path, on_conflict: OnConflict, better: str
) -> None:
    board = await make(settings, "laps", ties="first", better=better, decimals=1)
    rows: Rows = [(name, f"{number % 4 - 2}.5", "") for number, (name, *_) in enumerate(many(2 * CHUNK + 5000))]
    random.Random(1).shuffle(rows)
    # Half of the users exist, in another order.
    existing = [str(name) for name, *_ in rows[::2]]
    random.Random(2).shuffle(existing)
    add_users(settings, *existing)
    report = await run(settings, write_csv(tmp_path / "in.csv", rows), on_conflict, board=board)
    assert counts(report) == (25_000, 25_000, 0, 0, 0)
    sign = 1 if better == "lower" else -1
    in_order = [name for name, *_ in sorted(rows, key=lambda row: sign * Decimal(str(row[1])))]
    assert names(settings, board.season_id) == in_order


async def test_rows_follow_the_entries_that_have_their_score(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps", ties="first")

    def key(score: int, tenths: int) -> int:
        return score << 31 | (2**31 - 1 - tenths)

    add_users(settings, "new")
    # As if reached later than now.
    add_entries(settings, board.season_id, {"late": key(5, 9000), "early": key(5, 0), "other": key(7, 3)})
    rows: Rows = [("other", 5, ""), ("new", 5, ""), ("late", 5, ""), ("newer", 5, ""), ("early", 5, "")]
    report = await run(settings, write_csv(tmp_path / "in.csv", rows), UPDATE, board=board)
    assert counts(report) == (5, 2, 3, 0, 0)
    # Those with the same score do not move.
    assert names(settings, board.season_id) == ["early", "late", "other", "new", "newer"]


async def test_rows_are_not_later_than_now(settings: Settings, tmp_path: Path) -> None:
    await make(settings, "laps", ties="first")
    sql(settings, "UPDATE seasons SET started_at = started_at - interval '1 hour' WHERE season_id > 1")
    add_users(settings, *(str(number) for number in range(100)))
    rows: Rows = [(str(number), 5, "") for number in reversed(range(100))]
    async with started(settings) as app:
        board = await app.service.boards.get("laps")

        async def import_rows(rows: Rows) -> tuple[list[str], list[int], float]:
            """Return the names, their tenths, and the tenths until now."""
            await run(settings, write_csv(tmp_path / "in.csv", rows), SKIP, board=board)
            now = (await app.service.boards.get("laps")).now
            found = standings(settings, board.season_id)
            tenths = [2**31 - 1 - (key & (2**31 - 1)) for _, key in found]
            return [name for name, _ in found], tenths, (now - board.season_started_at).total_seconds() * 10

        order, tenths, now = await import_rows(rows)
        assert order == [str(name) for name, *_ in rows]
        assert tenths == list(range(tenths[0], tenths[0] + 100))
        assert 36_000 <= tenths[-1] <= now + 1
        # Entries that stay take no time.
        order, tenths, now = await import_rows([*rows, ("new", 5, "")])
        assert order[-1] == "new"
        assert tenths[-1] <= now + 1


@pytest.mark.parametrize(
    ("keeps", "better", "on_conflict", "expected"),
    [
        ("last", "higher", SKIP, {"amy": 10, "bob": 10, "cat": 7}),
        ("last", "higher", UPDATE, {"amy": 5, "bob": 15, "cat": 7}),
        ("best", "higher", SKIP, {"amy": 10, "bob": 10, "cat": 7}),
        ("best", "higher", UPDATE, {"amy": 10, "bob": 15, "cat": 7}),
        ("best", "lower", UPDATE, {"amy": 5, "bob": 10, "cat": 7}),
        # Not added up: the same file again would add it again.
        ("sum", "higher", UPDATE, {"amy": 5, "bob": 15, "cat": 7}),
    ],
)
@pytest.mark.parametrize("ties", ["id", "first"])
async def test_an_entry_that_exists(
    settings: Settings,
    tmp_path: Path,
    keeps: str,
    better: str,
    on_conflict: OnConflict,
    expected: dict[str, int],
    ties: str,
) -> None:
    board = await make(settings, "laps", keeps=keeps, better=better, ties=ties)
    bits, sign = (31 if ties == "first" else 0), (1 if better == "higher" else -1)
    add_entries(settings, board.season_id, {"amy": sign * 10 << bits, "bob": sign * 10 << bits})
    path = write_csv(tmp_path / "in.csv", [("bob", 15, "https://b"), ("amy", 5, ""), ("cat", 7, "")])
    for added in (1, 0):
        found = counts(await run(settings, path, on_conflict, board=board))
        existing = 3 - added
        assert found == ((3, added, existing, 0, 0) if on_conflict is UPDATE else (3, added, 0, existing, 0))
        scores = {name: sign * (key >> bits) for name, key in standings(settings, board.season_id)}
        assert scores == expected
    (image,) = sql(settings, "SELECT image_url FROM users WHERE user_name = 'bob'")
    assert image["image_url"] == ("https://b" if on_conflict is UPDATE else None)


async def test_fail_writes_nothing_if_a_user_is_on_the_board(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps")
    other = await make(settings, "other")
    add_entries(settings, other.season_id, {"amy": 1})
    add_entries(settings, board.season_id, {"bob": 1})
    path = write_csv(tmp_path / "in.csv", [("amy", 5, ""), ("bob", 6, ""), ("cat", 7, "")])
    with pytest.raises(NamesTaken) as error:
        await run(settings, path, FAIL, board=board)
    assert error.value.lines == {3: "bob"}
    assert names(settings, board.season_id) == ["bob"]
    assert {row["user_name"] for row in sql(settings, "SELECT user_name FROM users")} == {"amy", "bob"}
    assert counts(await run(settings, path, FAIL, board=await make(settings, "empty"))) == (3, 3, 0, 0, 0)


async def test_scores_follow_the_rules_of_the_board(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps", better="lower", decimals=2, lowest=-1, highest=600)
    good = {"a": "-1", "b": "600.00", "c": " 93.4 ", "d": "007.250", "e": "-0.50", "f": "0", "g": "1e2"}
    numbers = "numbers with up to 2 decimals from -1.00 to 600.00 are allowed"
    bad = {
        "600.01": f"score: 600.01 is out of range; {numbers}",
        "-1.01": f"score: -1.01 is out of range; {numbers}",
        "1.005": f"score: has 3 decimals; {numbers}",
        "1.": f"score: is not a number such as 1234.5; {numbers}",
        ".5": f"score: is not a number such as 1234.5; {numbers}",
        "": f"score: is missing; {numbers}",
        "9" * 90: f"score: the number is out of range; {numbers}",
    }
    rows: Rows = [*good.items(), *((f"bad {number}", cell) for number, cell in enumerate(bad)), ("a", "5")]
    report = await run(settings, write_csv(tmp_path / "in.csv", rows, "username,score"), SKIP, board=board)
    assert counts(report) == (15, 7, 0, 0, 8)
    assert [row[:2] for row in rejected(report)] == [
        *([str(line), reason] for line, reason in enumerate(bad.values(), 9)),
        ["16", "username: duplicate of line 2"],
    ]
    # A rejected row can be imported after it was corrected, so its score is as it was.
    assert rejected(report)[-1][2:] == ["a", "5.00"]
    keys = {name: -int(Decimal(cell) * 100) for name, cell in good.items()}
    assert dict(standings(settings, board.season_id)) == keys


@pytest.mark.parametrize(
    ("rules", "cells"),
    [({"ties": "first"}, ("2147483647", "-2147483648")), ({}, ("9007199254740991", "-9007199254740991"))],
)
async def test_the_largest_scores(
    settings: Settings, tmp_path: Path, rules: dict[str, object], cells: tuple[str, ...]
) -> None:
    board = await make(settings, "laps", **rules)
    rows: Rows = [(cell, cell) for cell in cells]
    beyond: Rows = [(f"beyond {cell}", int(cell) + (1 if int(cell) > 0 else -1)) for cell in cells]
    report = await run(settings, write_csv(tmp_path / "in.csv", rows + beyond, "username,score"), board=board)
    assert counts(report) == (4, 2, 0, 0, 2)
    bits = 31 if rules else 0
    assert [(name, str(key >> bits)) for name, key in standings(settings, board.season_id)] == [
        (cell, cell) for cell in cells
    ]


# Beside other changes


def after_a_chunk(change: Callable[[], object]) -> Callable[[Progress], None]:
    def interfere(progress: Progress) -> None:
        if progress.stage == "writing" and progress.rows == CHUNK:
            change()

    return interfere


END = """
    SELECT e.number FROM set_config('lock_timeout', '100ms', true), boards AS b,
    LATERAL end_season(b.board_id, b.season_id, NULL) AS e WHERE b.name = 'laps'
"""


async def test_no_row_goes_to_the_season_after(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps")
    reported: list[int] = []
    end = after_a_chunk(lambda: sql(settings, END))

    def progress(progress: Progress) -> None:
        reported.append(progress.report.imported)
        end(progress)

    path = write_csv(tmp_path / "in.csv", many(CHUNK + 5000))
    with pytest.raises(BoardChanged, match="the season 1 of the board 'laps' has ended"):
        await run(settings, path, SKIP, progress, board)
    assert len(names(settings, board.season_id)) == reported[-1] == CHUNK
    assert sql(settings, "SELECT count(*) FROM scores")[0]["count"] == CHUNK


async def test_no_season_ends_while_rows_are_written(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps")

    def end() -> None:
        with pytest.raises(asyncpg.LockNotAvailableError):
            sql(settings, END)

    # All rows are one transaction.
    path = write_csv(tmp_path / "in.csv", many(CHUNK + 1))
    report = await run(settings, path, FAIL, after_a_chunk(end), board)
    assert report.imported == len(names(settings, board.season_id)) == CHUNK + 1


async def test_rules_that_change_stop_the_import(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps")
    change = "UPDATE boards SET version = version + 1 WHERE name = 'laps'"
    path = write_csv(tmp_path / "in.csv", many(CHUNK + 5000))
    with pytest.raises(BoardChanged, match="the rules of the board 'laps' have been changed"):
        await run(settings, path, UPDATE, after_a_chunk(lambda: sql(settings, change)), board)
    assert len(names(settings, board.season_id)) == CHUNK


@pytest.mark.parametrize("modes", [(SKIP, SKIP), (UPDATE, UPDATE), (SKIP, UPDATE, SKIP, UPDATE)])
async def test_concurrent_imports_to_one_board(
    settings: Settings, tmp_path: Path, modes: tuple[OnConflict, ...]
) -> None:
    board = await make(settings, "laps", keeps="best", ties="first")
    paths = []
    for number in range(len(modes)):
        rows = many(15_000, score=number + 1)
        random.Random(number).shuffle(rows)
        paths.append(write_csv(tmp_path / f"{number}.csv", rows))
    reports = await asyncio.gather(
        *(run(settings, path, mode, board=board) for path, mode in zip(paths, modes, strict=True))
    )
    assert sum(report.imported for report in reports) == 15_000
    scores = [key >> 31 for _, key in standings(settings, board.season_id)]
    assert len(scores) == 15_000
    if UPDATE in modes:
        # The last of those that update has the best score.
        assert min(scores) >= max(number for number, mode in enumerate(modes, 1) if mode is UPDATE)
    assert deadlocks(settings) == 0


async def test_a_better_score_that_is_written_meanwhile_stays(
    settings: Settings, tmp_path: Path, db: asyncpg.Connection
) -> None:
    board = await make(settings, "laps", keeps="best")
    add_entries(settings, board.season_id, {"amy": 1})
    other = await connect(settings)
    async with other.transaction():
        await other.execute("UPDATE scores SET sort_key = 9")
        path = write_csv(tmp_path / "in.csv", [("amy", 5, "")])
        task = asyncio.create_task(run(settings, path, UPDATE, board=board))
        await until(lambda: waits_for_lock(db), "the import waits")
    await other.close()
    assert counts(await task) == (1, 0, 1, 0, 0)
    assert standings(settings, board.season_id) == [("amy", 9)]


async def test_an_import_beside_live_writes(settings: Settings, tmp_path: Path) -> None:
    """No write is lost: each entry is the best of what was written and what the file has."""
    users = 2 * CHUNK
    async with started(settings) as app:
        board = await make_board(app, "laps", keeps="best", ties="first")
        # Users who exist in the opposite order of the file.
        add_users(settings, *(str(name) for name, *_ in reversed(many(users))))
        done = asyncio.Event()
        written: dict[int, int] = {}

        async def play(seed: int) -> None:
            chance = random.Random(seed)
            while not done.is_set():
                user_id, score = chance.randint(1, users), chance.randint(1, 10)
                await app.service.entries.set_score("laps", user_id, score)
                written[user_id] = max(score, written.get(user_id, 0))

        players = [asyncio.create_task(play(seed)) for seed in range(20)]
        try:
            path = write_csv(tmp_path / "in.csv", many(users, score=5))
            await run(settings, path, UPDATE, board=board)
            await run(settings, path, UPDATE, board=board)
        finally:
            done.set()
            await asyncio.gather(*players)
    rows = sql(
        settings, "SELECT user_id, sort_key >> 31 AS score FROM scores WHERE season_id = $1", board.season_id
    )
    assert written
    assert {row["user_id"]: row["score"] for row in rows} == {
        user_id: max(5, written.get(user_id, 0)) for user_id in range(1, users + 1)
    }
    assert deadlocks(settings) == 0


# The command


def import_to(settings: Settings, path: Path, *options: str) -> tuple[int, str]:
    """Return the exit status of the command and its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "import", str(path), *options],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout or done.stderr).splitlines()[-1]


def test_a_running_service_shows_imported_entries(serve: Callable[..., ApiProcess], tmp_path: Path) -> None:
    api = serve()
    rules = {"ties": "first", "better": "lower", "decimals": 1}
    assert api.client.put("/boards/laps", json=rules).status_code == 201
    path = write_csv(
        tmp_path / "in.csv", [("zoe", "9.5", ""), ("amy", "9.5", ""), ("bob", "7", ""), ("", "1", "")]
    )
    status, line = import_to(api.settings, path, "--board", "laps")
    assert (status, line) == (1, f"4 read, 3 imported, 0 updated, 0 skipped, 1 rejected: see {path}.rejected.csv")

    def shown() -> list[tuple[int, str, float]]:
        users = api.client.get("/boards/laps/leaderboard/top/10").json()["users"]
        return [(user["rank"], user["username"], user["score"]) for user in users]

    eventually(lambda: shown() == [(1, "bob", 7.0), (2, "zoe", 9.5), (3, "amy", 9.5)])
    assert import_to(api.settings, path, "--board", "none") == (3, "leaderboard: no board has the name 'none'")


async def test_a_season_past_its_end_is_ended_first(settings: Settings, tmp_path: Path) -> None:
    board = await make(settings, "laps", season={"every": "hour"})
    sql(settings, "UPDATE boards SET season_ends_at = now() - interval '1 s' WHERE name = 'laps'")
    path = write_csv(tmp_path / "in.csv", [("amy", 5, "")])
    with pytest.raises(BoardChanged):
        await run(settings, path, SKIP, board=board)
    add_entries(settings, board.season_id, {"amy": 4})
    # A dry run does not end it, and knows that the next season has no entries.
    status, line = import_to(settings, path, "--board", "laps", "--dry-run")
    assert (status, line.partition(": ")[2]) == (0, "1 read, 1 imported, 0 updated, 0 skipped, 0 rejected")
    assert sql(settings, "SELECT FROM boards WHERE name = 'laps' AND season_ends_at < now()")
    assert import_to(settings, path, "--board", "laps")[0] == 0
    (season,) = sql(settings, "SELECT number FROM scores JOIN seasons USING (season_id) WHERE sort_key = 5")
    assert season["number"] == 2


def test_default_can_be_named(settings: Settings, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", [("amy", 5, "")])
    assert import_to(settings, path, "--board", "default")[0] == 0
    assert [tuple(row) for row in sql(settings, "SELECT user_name, total_score FROM users")] == [("amy", 5)]


def test_rules_are_those_of_the_board() -> None:
    """`parse_rules` has nothing that an import ignores: a new rule has to be thought of here."""
    assert set(parse_rules({}).__struct_fields__) == {
        *{"better", "decimals", "lowest", "highest", "keeps", "ties"},  # A row follows these.
        *{"ranks", "schedule", "keep_seasons", "title"},  # These are not about what is written.
    }
