"""Writes that meet rows and names that other sessions have locked."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.scores import NewScore
from leaderboard.database.users import NewUser
from leaderboard.database.writing import NotWritten
from leaderboard.errors import (
    LeaderboardError,
    LockedOut,
    UserNotFound,
)
from leaderboard.model import ScoreSet, User
from leaderboard.tuning import WriteTuning
from tests.system import PATIENCE_S, connect, until
from tests.writes.writing import (
    PATIENT,
    add_users,
    as_awaitable,
    batched,
    opened,
    running,
    scores,
    waiting_sessions,
)

pytestmark = pytest.mark.anyio


async def test_a_locked_row_is_skipped_and_differs_from_an_unknown_user(
    database: Database, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 3)
    async with session.transaction():
        await session.execute("SELECT FROM users WHERE user_id = 2 FOR UPDATE")
        written = await database.scores.set([NewScore(n, -n) for n in (1, 2, 3, 4, 2)])
    kinds = [outcome if isinstance(outcome, NotWritten) else outcome.user_id for outcome in written.results]
    assert kinds == [1, NotWritten.LOCKED, 3, NotWritten.UNKNOWN_USER, NotWritten.LOCKED]
    assert await scores(db) == {1: -1, 2: 20, 3: -3}


async def test_a_foreign_key_to_a_user_delays_no_write(
    database: Database, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    await db.execute("CREATE TABLE badges (user_id int REFERENCES users)")
    async with session.transaction():
        await session.execute("INSERT INTO badges VALUES (1)")
        written = await database.scores.set([NewScore(1, 5)])
    assert written.results == [ScoreSet(1, "user 1", None, 5, 10)]


async def test_a_locked_row_delays_its_own_user_only(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 201)
    async with running(settings, WriteTuning(row_wait_s=PATIENCE_S)) as leaderboard, session.transaction():
        await leaderboard.service.writes.set_score(1, 1)
        await session.execute("SELECT FROM users WHERE user_id = 1 FOR UPDATE")
        held = asyncio.create_task(leaderboard.service.writes.set_score(1, 1000))
        others = [leaderboard.service.writes.set_score(user_id, -user_id) for user_id in range(2, 202)]
        results = await asyncio.wait_for(asyncio.gather(*others), PATIENCE_S)
        assert [result.previous_score for result in results] == [10 * user_id for user_id in range(2, 202)]
        assert not held.done()
        await session.execute("ROLLBACK; BEGIN")
        assert (await held).previous_score == 1


async def test_a_write_waits_for_a_locked_row_until_its_time_limit(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with running(settings, WriteTuning(row_wait_s=0.3)) as leaderboard:
        async with session.transaction():
            await session.execute("SELECT FROM users WHERE user_id = 1 FOR UPDATE")
            started = time.monotonic()
            with pytest.raises(LockedOut):
                await asyncio.wait_for(leaderboard.service.writes.set_score(1, 1000), PATIENCE_S)
            assert time.monotonic() - started > 0.3
        assert (await leaderboard.service.writes.set_score(1, 2)).previous_score == 10


async def test_a_locked_row_is_written_when_it_is_released(
    leaderboard: App, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 2)
    transaction = session.transaction()
    await transaction.start()
    await session.execute("UPDATE users SET total_score = 77 WHERE user_id = 1")
    await session.execute("DELETE FROM users WHERE user_id = 2")
    first = asyncio.create_task(leaderboard.service.writes.set_score(1, 1000))
    second = asyncio.create_task(leaderboard.service.writes.set_score(2, 1000))
    await until(lambda: as_awaitable(batched(leaderboard, "scores") > 4), "both were skipped and tried again")
    assert not first.done()
    assert not second.done()
    await transaction.commit()
    assert await first == ScoreSet(1, "user 1", None, 1000, 77)
    with pytest.raises(UserNotFound):
        await second
    assert await scores(db) == {1: 1000}


@asynccontextmanager
async def deadlocked_write(
    settings: Settings, database: Database, db: asyncpg.Connection
) -> AsyncIterator["asyncio.Task[Any]"]:
    """Yields a write of `a` and `b` that is in a deadlock with another session, and that PostgreSQL ends."""
    await db.execute(f"ALTER DATABASE {settings.db_name} SET deadlock_timeout = '1s'")
    session = await connect(settings)
    try:
        await session.execute("SET deadlock_timeout = '60s'")
        await session.execute("BEGIN; INSERT INTO users (user_name) VALUES ('b')")
        creating = asyncio.create_task(database.users.create([NewUser("b", None, 1), NewUser("a", None, 1)]))
        await until(lambda: waiting_sessions(db), "the write waits")
        await session.execute("INSERT INTO users (user_name) VALUES ('a')")
        await session.execute("ROLLBACK")
        yield creating
    finally:
        await session.close()


async def test_a_write_is_tried_again_after_a_deadlock(settings: Settings, db: asyncpg.Connection) -> None:
    # After a deadlock, the other session may come second again.
    often = replace(PATIENT, attempts=20)
    async with opened(settings, often) as database, deadlocked_write(settings, database, db) as creating:
        written = await creating
    assert [getattr(result, "user_name", None) for result in written.results] == ["b", "a"]
    assert await db.fetchval("SELECT count(*) FROM users") == 2
    await until(
        lambda: db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"),
        "PostgreSQL has counted the deadlock",
    )


async def test_a_deadlock_in_the_last_attempt_raises_an_error_of_the_service(
    settings: Settings, db: asyncpg.Connection
) -> None:
    async with (
        opened(settings, replace(PATIENT, attempts=1)) as database,
        deadlocked_write(settings, database, db) as creating,
    ):
        with pytest.raises(LeaderboardError):
            await creating


async def test_a_lock_timeout_of_the_database_raises_an_error_of_the_service(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await db.execute(f"ALTER DATABASE {settings.db_name} SET lock_timeout = '50ms'")
    async with opened(settings) as database, session.transaction():
        await session.execute("INSERT INTO users (user_name) VALUES ('a')")
        with pytest.raises(LeaderboardError):
            await database.users.create([NewUser("a", None, 1)])


async def test_overlapping_names_from_two_processes_do_not_deadlock(
    settings: Settings, db: asyncpg.Connection
) -> None:
    once = WriteTuning(attempts=1)
    await db.execute(f"ALTER DATABASE {settings.db_name} SET deadlock_timeout = '10ms'")
    chance = random.Random(7)
    created: list[str] = []
    async with opened(settings, once) as one, opened(settings, once) as two:
        for round_ in range(15):
            names = [f"{round_} {n}" for n in range(150)]
            batches = [[NewUser(name, None, 0) for name in chance.sample(names, 120)] for _ in range(6)]
            writing = [(one, two)[n % 2].users.create(batch) for n, batch in enumerate(batches)]
            for written in await asyncio.gather(*writing):
                created += [user.user_name for user in written.results if isinstance(user, User)]
    assert len(created) == len(set(created))
    assert sorted(created) == [
        row["user_name"] for row in await db.fetch("SELECT * FROM users ORDER BY user_name")
    ]


async def test_names_are_inserted_in_alphabetical_order(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    async with opened(settings, PATIENT) as database, session.transaction():
        await session.execute("INSERT INTO users (user_name) VALUES ('a')")
        creating = asyncio.create_task(database.users.create([NewUser("b", None, 1), NewUser("a", None, 1)]))
        await until(lambda: waiting_sessions(db), "the write waits for the first name")
        # While the write waits for `a`, it must not hold `b`: the session that holds `a` may insert `b`.
        await db.execute("SET lock_timeout = '500ms'")
        free = await db.fetchval(
            "INSERT INTO users (user_name) VALUES ('b') ON CONFLICT (user_name) DO NOTHING RETURNING true"
        )
        assert free
        await session.execute("COMMIT; BEGIN")
        assert (await creating).results == [NotWritten.NAME_TAKEN] * 2


async def test_existing_names_use_no_ids(database: Database, db: asyncpg.Connection) -> None:
    await add_users(db, 50)
    for _ in range(3):
        written = await database.users.create([NewUser(f"user {n}", None, 0) for n in range(1, 51)])
        assert written.results == [NotWritten.NAME_TAKEN] * 50
    written = await database.users.create([NewUser("user 51", None, 0), NewUser("user 50", None, 0)])
    assert isinstance(written.results[0], User)
    assert written.results[0].user_id == 51


async def test_writes_work_when_the_database_defaults_to_repeatable_read(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    await db.execute(f"ALTER DATABASE {settings.db_name} SET default_transaction_isolation = 'repeatable read'")
    async with opened(settings, PATIENT) as database:
        async with session.transaction():
            await session.execute("UPDATE users SET total_score = 4 WHERE user_id = 1")
            await session.execute("INSERT INTO users (user_name) VALUES ('a')")
            writing = asyncio.ensure_future(database.users.create([NewUser("a", None, 5)]))
            await until(lambda: waiting_sessions(db), "the write waits")
        assert (await writing).results == [NotWritten.NAME_TAKEN]


async def test_an_uncommitted_name_delays_no_other_user(
    leaderboard: App, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    async with session.transaction():
        await session.execute("INSERT INTO users (user_name) VALUES ('held')")
        names = [*(f"free {n}" for n in range(50)), "held"]
        async with asyncio.timeout(PATIENCE_S):
            creating = [leaderboard.service.writes.create_user(name, None, 0) for name in names]
            results = await asyncio.gather(*creating, return_exceptions=True)
    assert all(isinstance(result, User) for result in results[:-1])
    assert isinstance(results[-1], LockedOut)


async def test_all_writers_of_a_locked_row_get_an_error(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with running(settings, WriteTuning(row_wait_s=0.3)) as leaderboard, session.transaction():
        await session.execute("SELECT FROM users WHERE user_id = 1 FOR UPDATE")
        async with asyncio.timeout(PATIENCE_S):
            setting = [leaderboard.service.writes.set_score(1, n) for n in range(30)]
            results = await asyncio.gather(*setting, return_exceptions=True)
    assert {type(result) for result in results} == {LockedOut}
