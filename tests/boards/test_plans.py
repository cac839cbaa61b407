"""The plans of the reads, of `default` and of other boards: by index, and no more rows than the result needs.

PostgreSQL's auto_explain reports the plan of every statement that a read runs, also within functions, with the
rows that it read. The statistics of the tables may be missing, or those of a time when the tables were small.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.boards import Boards
from leaderboard.database.rank_index import RankIndex
from leaderboard.database.users import Users
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, SeasonRef, StandingQuery
from leaderboard.tuning import RankIndexTuning, Tuning
from tests.boards.boards import add_users, fill, make_board, started
from tests.system import OneConnection

pytestmark = pytest.mark.anyio

SIZE = 3000
"""Entries of a season, and users."""
TUNING = Tuning(ranks=RankIndexTuning(width=50))
COUNTED = 100
"""A rank is counted from a checkpoint: half as many entries away on average, and twice as many at most."""
SEASONS = {
    "default": None,
    "spread": SeasonRef("spread"),
    "one score": SeasonRef("one"),
    "ended": SeasonRef("one", 1),
}
USER = SIZE // 2
KEY = {"default": -USER, "spread": USER, "one score": 7, "ended": 7}

Read = Callable[[Any, SeasonRef | None, int], Awaitable[object]]

READS: dict[str, tuple[int, Read]] = {
    "top": (
        10,
        lambda one, season, _: (
            Users(one, TUNING).top(10) if season is None else Users(one, TUNING).top_of_season(10, season)
        ),
    ),
    "standing": (1, lambda one, season, _: ranks(one).standings([StandingQuery(USER, season=season)], count=True)),
    "context": (11, lambda one, season, _: ranks(one).standings([ContextQuery(USER, season=season)], count=True)),
    "friends": (
        5,
        lambda one, season, _: ranks(one).standings(
            [StandingQuery(user_id, season=season) for user_id in range(100, 600, 100)], count=True
        ),
    ),
    "first page": (20, lambda one, season, _: ranks(one).page(PageQuery(20, season=season))),
    "page": (20, lambda one, season, key: ranks(one).page(PageQuery(20, (key, USER), season=season))),
    "page around": (20, lambda one, season, _: ranks(one).page(PageAroundQuery(20, USER, season=season))),
}
"""How many users each read shows, and what does it."""


def ranks(one: Any) -> RankIndex:
    return RankIndex(one, TUNING.ranks)


@asynccontextmanager
async def boards(settings: Settings, db: asyncpg.Connection, statistics: str) -> AsyncIterator[App]:
    """A large `default` and three large seasons with rank indexes, among many small ones."""
    for table in ("users", "scores"):
        await db.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    async with started(settings, TUNING) as app:
        await add_users(db, 10)
        small = await make_board(app, "small")
        await fill(db, small.season_id, 10)
        if statistics == "of small tables":
            await db.execute("ANALYZE users, scores")
        await db.execute(
            "INSERT INTO users (user_id, user_name, total_score)"
            " SELECT n, 'user ' || n, -n FROM generate_series(11, $1::int) AS n",
            SIZE,
        )
        await db.execute(
            "INSERT INTO scores (season_id, user_id, sort_key)"
            " SELECT 100 + n % 300, n, n FROM generate_series(1, $1::int) AS n",
            SIZE,
        )
        await fill(db, (await make_board(app, "spread")).season_id, SIZE)
        for number in (1, 2):
            season_id = (await make_board(app, "one")).season_id
            await fill(db, season_id, SIZE)
            await db.execute("UPDATE scores SET sort_key = 7 WHERE season_id = $1", season_id)
            if number == 1:
                await app.service.boards.end_season("one", 1)
        for row in await db.fetch("SELECT season_id FROM seasons WHERE season_id <> $1", small.season_id):
            assert await app.database.rank_index.build(row["season_id"])
        await db.execute("VACUUM (ANALYZE) users, scores" if statistics == "present" else "VACUUM users, scores")
        yield app


async def plans(app: App, read: Read, season: SeasonRef | None, key: int) -> list[dict[str, Any]]:
    """Runs a read on a connection of the service, and returns the plans of all its statements."""
    messages: list[str] = []
    async with app.database.connections.acquire() as connection:

        def note(_: object, message: Any) -> None:
            messages.append(message.message)

        connection.add_log_listener(note)
        await connection.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on;"
            " SET auto_explain.log_timing = off; SET auto_explain.log_format = json;"
            " SET auto_explain.log_level = notice; SET auto_explain.log_min_duration = 0"
        )
        try:
            await read(OneConnection(connection), season, key)
        finally:
            await connection.execute("SET auto_explain.log_min_duration = -1")
            connection.remove_log_listener(note)
    return [json.loads(text[text.index("{") :])["Plan"] for text in messages if text.startswith("duration:")]


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the nodes that were executed and read the tables of users or entries."""
    if plan["Actual Loops"] and plan.get("Relation Name") in {"users", "scores"}:
        yield plan
    for child in plan.get("Plans", ()):
        yield from scans(child)


def rows(scan: dict[str, Any]) -> int:
    return int((scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"])


ORDERED = ("idx_users_score_desc", "scores_order")
"""The indexes in the order of a board: of `default`, of the others."""


@pytest.mark.parametrize("statistics", ["none", "of small tables", "present"])
async def test_a_read_scans_indexes_and_reads_what_it_shows(
    settings: Settings, db: asyncpg.Connection, statistics: str
) -> None:
    async with boards(settings, db, statistics) as app:
        for name, season in SEASONS.items():
            for kind, (shown, read) in READS.items():
                executed = [scan for plan in await plans(app, read, season, KEY[name]) for scan in scans(plan)]
                what = f"{kind} of {name}"
                counted = sum(rows(scan) for scan in executed if scan.get("Index Name") in ORDERED)
                limit = shown if kind == "top" else 2 * shown + (1 + shown) * COUNTED
                assert 0 < counted <= limit < SIZE, (what, counted)
                for scan in executed:
                    check_scan(scan, season, kind, what)


def check_scan(scan: dict[str, Any], season: SeasonRef | None, kind: str, what: str) -> None:
    index, condition = scan.get("Index Name"), scan.get("Index Cond", "")
    if index in {"users_pkey", "scores_pkey"}:
        assert "user_id = " in condition, (what, scan)
        assert rows(scan) <= READS[kind][0], (what, scan)
        return
    assert index == ORDERED[season is not None], (what, scan)
    # The top of `default` takes the names from the table.
    names = kind == "top" and season is None
    assert scan["Node Type"] == ("Index Scan" if names else "Index Only Scan"), (what, scan)
    # Users are compared among those of one score only. Otherwise the whole index would be read.
    assert "user_id" not in condition or "_key = " in condition or "_score = " in condition, (what, scan)


@pytest.mark.parametrize("statistics", ["none", "of small tables", "present"])
async def test_the_boards_of_a_user_are_found_by_the_user(
    settings: Settings, db: asyncpg.Connection, statistics: str
) -> None:
    async with boards(settings, db, statistics) as app:

        def read(one: Any, _: SeasonRef | None, user_id: int) -> Awaitable[object]:
            return Boards(one, TUNING.writes).of_user(user_id, "", 10)

        executed = await plans(app, read, None, 7)
        for scan in (scan for plan in executed for scan in scans(plan)):
            condition = scan.get("Index Cond", scan.get("Recheck Cond", ""))
            assert "user_id = " in condition, scan
            assert scan.get("Index Name") not in ORDERED, scan
