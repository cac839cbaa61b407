"""Databases, services and sessions for the tests of writes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from leaderboard.app import App, database_from
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.scores import NewScore
from leaderboard.database.users import NewUser
from leaderboard.tuning import Tuning, WriteTuning


@asynccontextmanager
async def opened(settings: Settings, tuning: WriteTuning | None = None) -> AsyncIterator[Database]:
    database = database_from(settings, Tuning(writes=tuning or WriteTuning()))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


PATIENT = WriteTuning(unique_wait_ms=60_000)
"""A batch waits for a name for a minute."""


@asynccontextmanager
async def running(settings: Settings, tuning: WriteTuning) -> AsyncIterator[App]:
    """The whole service, with other constants for writes."""
    app = App(settings, Tuning(writes=tuning))
    async with app.running():
        yield app


def batched(app: App, queue: str) -> float:
    """Returns how many items the batches of a queue have contained."""
    return app.metrics.registry.get_sample_value("leaderboard_batch_items_sum", {"queue": queue}) or 0.0


async def waiting_sessions(db: asyncpg.Connection) -> list[int]:
    """Returns the process ids of the service's sessions that wait for a lock."""
    rows = await db.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'leaderboard'"
    )
    return [row["pid"] for row in rows]


async def add_users(db: asyncpg.Connection, count: int) -> None:
    """Adds users 1 to `count`. The score of each is ten times its id."""
    await db.execute(
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'user ' || n, 10 * n FROM generate_series(1, $1::int) AS n",
        count,
    )


async def scores(db: asyncpg.Connection) -> dict[int, int]:
    return {row[0]: row[1] for row in await db.fetch("SELECT user_id, total_score FROM users")}


async def as_awaitable(value: object) -> object:
    return value


WRITES: dict[str, Callable[[Database], Awaitable[object]]] = {
    "set_scores": lambda database: database.scores.set([NewScore(1, 5)]),
    "create_users": lambda database: database.users.create([NewUser("a", None, 5)]),
}
