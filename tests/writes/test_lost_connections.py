"""Writes whose connection is lost, or whose caller is cancelled, at different moments."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from leaderboard.app import App, database_from
from leaderboard.batching import CancelledBeforeStart
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
)
from leaderboard.tuning import WriteTuning
from tests.system import PATIENCE_S, free_port, sql, until
from tests.writes.writing import (
    WRITES,
    add_users,
    as_awaitable,
    batched,
    opened,
    running,
    scores,
    waiting_sessions,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_connection_lost_during_a_write_leaves_its_outcome_unknown(
    database: Database,
    db: asyncpg.Connection,
    session: asyncpg.Connection,
    write: Callable[[Database], Awaitable[object]],
) -> None:
    await add_users(db, 1)
    async with session.transaction():
        await session.execute("LOCK TABLE users IN SHARE MODE")
        writing = asyncio.ensure_future(write(database))
        await until(lambda: waiting_sessions(db), "the write waits")
        await db.execute("SELECT pg_terminate_backend($1)", (await waiting_sessions(db))[0])
        with pytest.raises(OutcomeUnknown):
            await writing
    await write(database)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_write_that_is_not_confirmed_in_time_leaves_its_outcome_unknown(
    settings: Settings,
    db: asyncpg.Connection,
    session: asyncpg.Connection,
    write: Callable[[Database], Awaitable[object]],
) -> None:
    await add_users(db, 1)
    async with opened(settings) as database:
        await database.now()  # opens a connection, so that only the write can time out
        async with session.transaction():
            await session.execute("LOCK TABLE users IN SHARE MODE")
            database.connections.timeout_s = 0.5
            with pytest.raises(OutcomeUnknown):
                await write(database)
            database.connections.timeout_s = PATIENCE_S
        await write(database)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_write_that_was_not_sent_raises_that_the_database_is_unavailable(
    settings: Settings,
    db: asyncpg.Connection,
    session: asyncpg.Connection,
    write: Callable[[Database], Awaitable[object]],
) -> None:
    await add_users(db, 1)
    never_opened = database_from(settings)
    with pytest.raises(DatabaseUnavailable):
        await write(never_opened)
    async with opened(settings.model_copy(update={"db_port": free_port()})) as unreachable:
        with pytest.raises(DatabaseUnavailable):
            await write(unreachable)
    one_connection = database_from(settings.model_copy(update={"db_pool_size": 1}))
    await one_connection.open()
    try:
        async with session.transaction():
            await session.execute("LOCK TABLE users IN SHARE MODE")
            first = asyncio.ensure_future(write(one_connection))
            await until(lambda: waiting_sessions(db), "the only connection waits")
            one_connection.connections.timeout_s = 0.1
            with pytest.raises(DatabaseUnavailable):
                await write(one_connection)
            await db.execute("SELECT pg_terminate_backend($1)", (await waiting_sessions(db))[0])
            with pytest.raises(OutcomeUnknown):
                await first
    finally:
        await one_connection.close()
    assert await scores(db) == {1: 10}


async def test_every_caller_of_a_lost_batch_learns_that_the_outcome_is_unknown(
    leaderboard: App, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 20)
    async with session.transaction():
        await session.execute("LOCK TABLE users IN SHARE MODE")
        setting = asyncio.gather(
            *(leaderboard.service.writes.set_score(user_id, 1) for user_id in range(1, 21)), return_exceptions=True
        )
        await until(lambda: waiting_sessions(db), "the batch waits")
        await db.execute("SELECT pg_terminate_backend($1)", (await waiting_sessions(db))[0])
        assert {type(result) for result in await setting} == {OutcomeUnknown}
    assert await scores(db) == {n: 10 * n for n in range(1, 21)}
    results = await asyncio.gather(*(leaderboard.service.writes.set_score(user_id, 1) for user_id in range(1, 21)))
    assert [result.previous_score for result in results] == [10 * n for n in range(1, 21)]


def test_a_cancelled_request_does_not_cancel_its_batch(settings: Settings) -> None:
    sql(settings, "INSERT INTO users (user_name) VALUES ('a'), ('b')")

    async def cancel_one() -> None:
        app = App(settings)
        async with app.running():
            tasks = [asyncio.create_task(app.service.writes.set_score(user_id, 5)) for user_id in (1, 2)]
            await asyncio.sleep(0)  # both have been submitted
            while any(queue.depth for queue in app.service.writes.queues()):
                await asyncio.sleep(0)  # until their batch starts
            tasks[0].cancel()
            async with asyncio.timeout(PATIENCE_S):
                assert (await tasks[1]).previous_score == 0

    asyncio.run(cancel_one())
    assert [row[0] for row in sql(settings, "SELECT total_score FROM users")] == [5, 5]


async def test_a_caller_cancelled_while_the_row_is_locked_learns_that_the_write_did_not_start(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 1)

    async def request() -> type[BaseException] | None:
        # As in a request. The result of the task is the same for both kinds of cancellation.
        try:
            await leaderboard.service.writes.set_score(1, 77)
        except asyncio.CancelledError as error:
            return type(error)
        return None

    tuning = WriteTuning(row_retry_s=(5.0, 5.0))
    async with running(settings, tuning) as leaderboard, session.transaction():
        await session.execute("SELECT FROM users FOR UPDATE")
        task = asyncio.create_task(request())

        def waits() -> bool:
            return bool(batched(leaderboard, "scores")) and not any(
                q.running for q in leaderboard.service.writes.queues()
            )

        await until(lambda: as_awaitable(waits()), "the write waits for its next try")
        task.cancel()
        assert await task is CancelledBeforeStart
    assert await db.fetchval("SELECT total_score FROM users") == 10
