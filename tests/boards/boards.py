"""Two processes of the service with boards, without their timers, and SQL that changes entries by hand."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg

from leaderboard.app import App
from leaderboard.board_rules import parse_rules
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.queries import PageQuery, SeasonRef
from leaderboard.tuning import SyncTuning, Tuning, WriteTuning
from tests.system import PATIENCE_S

PATIENT = Tuning(
    sync=SyncTuning(fresh_s=PATIENCE_S, patience_s=PATIENCE_S),
    writes=WriteTuning(row_wait_s=PATIENCE_S, unique_wait_ms=60_000),
)
"""No write stops waiting, for the cache or for a lock."""


@asynccontextmanager
async def started(settings: Settings, tuning: Tuning = PATIENT) -> AsyncIterator[App]:
    """Opens the parts of one process."""
    app = App(settings, tuning)
    await app.database.open()
    await app.reader.open()
    app.health.note_postgres(await app.database.now())
    try:
        yield app
    finally:
        await app.close()


@asynccontextmanager
async def two_started(settings: Settings, tuning: Tuning = PATIENT) -> AsyncIterator[tuple[App, App]]:
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(started(settings, tuning)),
            await stack.enter_async_context(started(settings, tuning)),
        )


async def make_board(app: App, name: str, **fields: object) -> Board:
    """Creates a board; `fields` are those of the JSON object that clients send."""
    return (await app.service.boards.configure(name, parse_rules(fields)))[0]


async def add_users(db: asyncpg.Connection, count: int) -> None:
    """Adds the users 1 to `count`."""
    await db.execute(
        "INSERT INTO users (user_id, user_name) SELECT n, 'user ' || n FROM generate_series(1, $1::int) AS n",
        count,
    )


async def fill(db: asyncpg.Connection, season_id: int, count: int) -> None:
    """Adds an entry of each of the users 1 to `count`, with its id as the sort key."""
    await db.execute(
        "INSERT INTO scores (season_id, user_id, sort_key) SELECT $1, n, n FROM generate_series(1, $2::int) AS n",
        season_id,
        count,
    )


async def shown(app: App, name: str, number: int | None = None) -> dict[int, int]:
    """Returns the scores by user that this process answers for a season, the current one by default."""
    reply = await app.service.reads.page(PageQuery(100, season=SeasonRef(name, number)))
    return {user.user_id: int(user.total_score) for user in reply.result.users}


async def stored(db: asyncpg.Connection, season_id: int) -> dict[int, int]:
    """Returns the sort keys by user of all entries of a season, hidden or not."""
    rows = await db.fetch("SELECT user_id, sort_key FROM scores WHERE season_id = $1", season_id)
    return {row["user_id"]: row["sort_key"] for row in rows}


async def season_ids(db: asyncpg.Connection, name: str) -> dict[int, int]:
    """Returns the ids of the registered seasons of a board by their numbers."""
    rows = await db.fetch(
        "SELECT s.number, s.season_id FROM seasons AS s JOIN boards AS b USING (board_id) WHERE b.name = $1", name
    )
    return {row["number"]: row["season_id"] for row in rows}


async def waits_for_lock(db: asyncpg.Connection) -> bool:
    """Returns whether a session of this database waits for a lock."""
    return bool(
        await db.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def deadlocks(db: asyncpg.Connection) -> int:
    """Returns how many deadlocks there were in this database."""
    await db.execute("SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
    return int(await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
