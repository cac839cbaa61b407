"""The pool of connections to PostgreSQL reuses connections that work, and closes all others."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import asyncpg
import pytest

from chaos.proxy import Loop, Proxy
from leaderboard.app import database_from
from leaderboard.config import Settings
from leaderboard.database.connections import Connections
from leaderboard.database.scores import NewScore
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.tuning import ConnectionTuning, Tuning
from tests.system import PATIENCE_S, eventually, sql

pytestmark = pytest.mark.anyio

SIZE = 2
CONNECTIONS = """SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'leaderboard'"""
PID = "SELECT pg_backend_pid()"
RUNNING = "SELECT FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"


@pytest.fixture
def tuning() -> ConnectionTuning:
    """The constants of the pool. A test sets others with `use_tuning`."""
    return ConnectionTuning()


use_tuning = partial(pytest.mark.parametrize, "tuning")


def pool(settings: Settings, tuning: ConnectionTuning, **overrides: object) -> Connections:
    """A pool of two connections."""
    settings = settings.model_copy(update={"db_pool_size": SIZE, **overrides})
    return database_from(settings, Tuning(connections=tuning)).connections


@pytest.fixture
async def connections(settings: Settings, tuning: ConnectionTuning) -> AsyncIterator[Connections]:
    opened = pool(settings, tuning, db_timeout_ms=2000)
    await opened.open()
    yield opened
    await opened.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def backend(connections: Connections, statement: str = PID) -> int:
    async with connections.acquire() as connection:
        pid: int = await connection.fetchval(statement)
        return pid


async def entries_read(connections: Connections) -> int:
    """Returns how many index entries and rows of `users` PostgreSQL has read."""
    for _ in range(2):
        await backend(connections, "SELECT 1 FROM pg_stat_force_next_flush()")
    return await backend(
        connections,
        "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'users')"
        " + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'users')",
    )


async def test_the_next_statement_uses_the_same_connection(connections: Connections) -> None:
    assert len({await backend(connections) for _ in range(5)}) == 1


async def test_the_pool_opens_no_more_connections_than_its_size(connections: Connections) -> None:
    await backend(connections)  # opens a connection, which is kept
    slowly = "SELECT pg_backend_pid() FROM pg_sleep(0.01)"
    pids = await asyncio.gather(*(backend(connections, slowly) for _ in range(30)))
    assert len(set(pids)) == SIZE


async def test_a_connection_with_a_running_statement_is_not_kept(
    connections: Connections, settings: Settings
) -> None:
    with pytest.raises(DatabaseUnavailable):
        await backend(connections, "SELECT pg_backend_pid() FROM pg_sleep(30)")
    cancelled = asyncio.create_task(backend(connections, "SELECT pg_backend_pid() FROM pg_sleep(29)"))
    await until(lambda: bool(sql(settings, f"{RUNNING} AND query LIKE '%pg_sleep(29)'")))
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    with pytest.raises(asyncpg.UniqueViolationError):
        await backend(connections, "INSERT INTO log_state DEFAULT VALUES RETURNING 1")
    assert await backend(connections, "SELECT 7") == 7


async def test_a_connection_that_the_server_has_closed_is_not_used(
    connections: Connections, settings: Settings
) -> None:
    pid = await backend(connections)
    sql(settings, "SELECT pg_terminate_backend($1)", pid)

    # Until the end of the connection has arrived, the next statement fails.
    async def another() -> bool:
        try:
            return await backend(connections) != pid
        except DatabaseUnavailable:
            return False

    deadline = time.monotonic() + 5
    while not await another():
        assert time.monotonic() < deadline


@use_tuning([ConnectionTuning(max_idle_s=0)])
async def test_a_connection_that_was_idle_for_long_is_not_used(
    connections: Connections, settings: Settings
) -> None:
    pid = await backend(connections)
    assert await backend(connections) != pid
    eventually(
        lambda: not sql(settings, "SELECT FROM pg_stat_activity WHERE pid = $1", pid),
        what="the old connection is closed",
    )


async def two_idle(connections: Connections) -> set[int]:
    """Opens two connections and returns their process ids. Both are idle."""
    slowly = "SELECT pg_backend_pid() FROM pg_sleep(0.05)"
    pids = set(await asyncio.gather(backend(connections, slowly), backend(connections, slowly)))
    assert len(pids) == SIZE
    return pids


@use_tuning([ConnectionTuning(silent_s=0.1)])
async def test_a_read_only_server_leads_to_new_connections(connections: Connections, settings: Settings) -> None:
    before = await two_idle(connections)
    await asyncio.sleep(0.11)  # older than connections that change nothing
    with pytest.raises(DatabaseReadOnly):
        async with connections.acquire():
            # As after a pooler has switched to a standby.
            raise DatabaseReadOnly("a standby")
    assert not before & await two_idle(connections)
    eventually(
        lambda: not sql(settings, "SELECT FROM pg_stat_activity WHERE pid = ANY ($1)", list(before)),
        5,
        "the old connections are closed",
    )


async def test_a_read_only_primary_does_not_lead_to_new_connections_each_time(
    connections: Connections, settings: Settings
) -> None:
    before = await two_idle(connections)
    for _ in range(3):
        with pytest.raises(DatabaseReadOnly):
            async with connections.acquire() as connection, connection.transaction(readonly=True):
                await connection.execute("DELETE FROM users")
    assert await two_idle(connections) == before


async def test_a_silent_connection_is_checked_before_use(settings: Settings) -> None:
    with Loop() as loop:
        proxy = Proxy(loop, settings.db_port)
        connections = pool(settings, ConnectionTuning(silent_s=0.1), db_port=proxy.port, db_timeout_ms=10_000)
        await connections.open()
        before = await two_idle(connections)
        proxy.freeze()
        await asyncio.sleep(0.11)  # longer than `silent_s`
        # The second connection is closed without a check, because the check of the first one failed.
        assert await backend(connections) not in before
        assert await backend(connections) not in before
        await connections.close()


async def test_a_silent_connection_that_answers_is_used(connections: Connections) -> None:
    pid = await backend(connections)
    await asyncio.sleep(1.1)  # longer than `silent_s`, so that the connection is checked
    assert await backend(connections) == pid


async def test_after_a_deadline_no_connection_is_used_that_was_silent_meanwhile(settings: Settings) -> None:
    with Loop() as loop:
        proxy = Proxy(loop, settings.db_port)
        connections = pool(settings, ConnectionTuning(silent_s=100), db_port=proxy.port, db_timeout_ms=1000)
        await connections.open()
        before = await two_idle(connections)
        proxy.freeze()
        with pytest.raises(DatabaseUnavailable):
            await backend(connections)
        assert await backend(connections) not in before
        await connections.close()


async def test_a_caller_cancelled_while_connecting_leaves_no_error(settings: Settings) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    for steps in range(40):  # how many steps of the event loop run before the cancellation
        connections = pool(settings, ConnectionTuning())
        await connections.open()
        try:
            query = asyncio.create_task(backend(connections))
            for _ in range(steps):
                await asyncio.sleep(0)
            query.cancel()
            await asyncio.gather(query, return_exceptions=True)
            assert await backend(connections)
        finally:
            await connections.close()
    gc.collect()
    await asyncio.sleep(0)
    assert not errors


async def test_a_connection_in_use_when_the_pool_closes_is_closed(
    connections: Connections, settings: Settings
) -> None:
    last = asyncio.create_task(backend(connections, "SELECT pg_backend_pid() FROM pg_sleep(0.4)"))
    await until(lambda: bool(sql(settings, f"{RUNNING} AND query LIKE '%pg_sleep(0.4)'")))
    await asyncio.gather(last, connections.close(), return_exceptions=True)
    eventually(lambda: not sql(settings, CONNECTIONS), what="no connection is left")
    with pytest.raises(DatabaseUnavailable):
        await backend(connections)


async def test_a_plan_made_for_a_small_board_is_replaced_after_the_board_has_grown(
    settings: Settings, db: asyncpg.Connection
) -> None:
    tuning = Tuning(connections=ConnectionTuning(plan_lifetime_s=0.2))
    database = database_from(settings.model_copy(update={"db_pool_size": SIZE}), tuning)
    await database.open()
    await db.execute("INSERT INTO users (user_name) VALUES ('the first')")
    await db.execute("ANALYZE users")
    await database.scores.set([NewScore(1, 5)])
    await database.change_log.changes_since((await database.now()).snapshot, None, 20_000)
    await db.execute("INSERT INTO users (user_name) SELECT g::text FROM generate_series(1, 30000) AS g")
    await asyncio.sleep(0.25)
    since = (await database.now()).snapshot
    scores = [NewScore(user_id, 7) for user_id in range(100, 20_000, 100)]
    before = await entries_read(database.connections)
    await database.scores.set(scores)
    await database.scores.set([NewScore(10**6, 7)])
    changes = await database.change_log.changes_since(since, None, 20_000)
    assert len(changes.changed) == len(scores)
    assert await entries_read(database.connections) - before < 10 * len(scores)
    await database.close()
