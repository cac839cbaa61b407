"""The connections to PostgreSQL: kept for whoever is next, for no longer than they are good, and shared fairly."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from leaderboard.config import Settings
from leaderboard.errors import TruthUnavailable
from leaderboard.truth import connections as connections_module
from leaderboard.truth.connections import Connections
from tests.system import eventually, sql

pytestmark = pytest.mark.anyio

SIZE = 2
PID = "SELECT pg_backend_pid()"


@pytest.fixture
async def connections(settings: Settings) -> AsyncIterator[Connections]:
    connect = {
        "host": settings.db_host,
        "port": settings.db_port,
        "database": settings.db_name,
        "user": settings.db_user,
        "password": settings.db_password.get_secret_value(),
    }
    opened = Connections(connect, SIZE, 2)
    await opened.open()
    yield opened
    await opened.close()


async def backend(connections: Connections, statement: str = PID) -> int:
    async with connections.pooled() as connection:
        pid: int = await connection.fetchval(statement)
        return pid


async def test_the_next_statement_goes_by_the_same_connection(connections: Connections) -> None:
    assert len({await backend(connections) for _ in range(5)}) == 1


async def test_no_more_than_the_size_and_everybody_gets_one(connections: Connections) -> None:
    await backend(connections)  # so that one is kept
    slowly = "SELECT pg_backend_pid() FROM pg_sleep(0.01)"
    pids = await asyncio.wait_for(asyncio.gather(*(backend(connections, slowly) for _ in range(30))), 10)
    assert len(set(pids)) == SIZE


async def test_a_connection_that_has_failed_is_not_kept_in_the_midst_of_something(
    connections: Connections,
) -> None:
    with pytest.raises(TruthUnavailable):
        await backend(connections, "SELECT pg_backend_pid() FROM pg_sleep(30)")
    cancelled = asyncio.create_task(backend(connections, "SELECT pg_backend_pid() FROM pg_sleep(30)"))
    await asyncio.sleep(0.1)
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
    await asyncio.sleep(0.1)  # for the end of the connection to arrive, which the next statement is not to notice
    assert await backend(connections) != pid


async def test_a_connection_that_was_idle_for_long_is_not_used(
    connections: Connections, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await backend(connections)
    monkeypatch.setattr(connections_module, "_LONGEST_IDLE_S", 0)
    assert await backend(connections) != pid
    eventually(lambda: not sql(settings, "SELECT FROM pg_stat_activity WHERE pid = $1", pid), 5, "it is closed")
