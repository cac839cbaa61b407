"""The connections to PostgreSQL, and what it means when one fails.

The driver's many ways to fail leave here as the few that matter: the truth cannot be asked, or it refused. What a
caller can do something about passes as it is: a conflict with somebody else's transaction.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any, TypeAlias

import asyncpg

from leaderboard.errors import TruthRefused, TruthUnavailable

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # The server has said goodbye on this connection, and its end has not arrived yet.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
)
"""What the driver raises when a connection is gone."""

CONFLICTS = (
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
)
"""What it raises because of somebody else's transaction."""

_PLANNED_ANEW_S = 5
_MOST_KEPT = 4
_LONGEST_IDLE_S = 300

_NOT_NOW = (
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedTableError,
)
_SESSION = MappingProxyType(
    {"application_name": "leaderboard", "jit": "off", "default_transaction_isolation": "read committed"}
)
# What the pool is asked again and again has one plan for some seconds: to make one for the parameters of each
# call takes PostgreSQL longer than a small batch of scores. It must not be one that reads all of a table, which
# was small when it was made; nor be kept for long, because by an index that does not fit it reads as much.
_POOLED = MappingProxyType({**_SESSION, "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"})


class Connections:
    """A pool of connections that is opened on first use and survives the server's absence."""

    def __init__(self, connect: Mapping[str, Any], pool_size: int, timeout_s: float) -> None:
        self._connect = dict(connect)
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._pool: asyncpg.Pool | None = None
        # To give a connection back to the driver's pool and to take it again is as much work as a statement: a few
        # that nobody waits for are kept here, each with the time it was last used.
        self._kept: list[tuple[Connection, float]] = []
        self._wanting = 0

    async def open(self) -> None:
        """Prepare the pool; connects only when first asked something."""
        self._pool = await asyncpg.create_pool(
            **self._connect,
            server_settings=dict(_POOLED),
            min_size=0,
            max_size=self._pool_size,
            timeout=self._timeout_s,
            command_timeout=self._timeout_s,
            max_inactive_connection_lifetime=_LONGEST_IDLE_S,
            max_cached_statement_lifetime=_PLANNED_ANEW_S,
            reset=_nothing_to_reset,
        )

    async def close(self) -> None:
        """Close the connections, forcibly after a second."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        while self._kept:
            await pool.release(self._kept.pop()[0])
        try:
            await asyncio.wait_for(pool.close(), 1)
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def pooled(self) -> AsyncIterator[Connection]:
        """A connection of the pool, to be used within the time that a call to PostgreSQL may take.

        Raises TruthUnavailable, TruthRefused, and any of CONFLICTS.
        """
        async with _translated(), asyncio.timeout(self._timeout_s):
            pool = self._pool
            if pool is None:
                raise TruthUnavailable("the pool is not open")
            connection = await self._take(pool)
            done = False
            try:
                yield connection
                done = True
            finally:
                if done and self._pool is pool and not self._wanting and len(self._kept) < _MOST_KEPT:
                    self._kept.append((connection, time.monotonic()))
                else:
                    await pool.release(connection)

    async def _take(self, pool: asyncpg.Pool) -> Connection:
        while self._kept:
            connection, used = self._kept.pop()
            try:
                if time.monotonic() - used > _LONGEST_IDLE_S:
                    connection.terminate()
                if not connection.is_closed():
                    return connection
            except asyncpg.InterfaceError:
                # It was closed, and with that has gone back to the pool.
                continue
            await pool.release(connection)
        self._wanting += 1
        try:
            with _connecting():
                return await pool.acquire()
        finally:
            self._wanting -= 1

    @asynccontextmanager
    async def alone(self, **settings: str) -> AsyncIterator[asyncpg.Connection]:
        """A connection of one's own with these settings, for what takes longer; raises as `pooled` does."""
        async with _translated():
            with _connecting():
                connection = await asyncpg.connect(
                    **self._connect, server_settings={**_SESSION, **settings}, timeout=self._timeout_s
                )
            try:
                yield connection
            finally:
                await connection.close(timeout=1)


@contextmanager
def _connecting() -> Iterator[None]:
    """Whatever PostgreSQL says while being connected to: it is not to be had now."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise TruthUnavailable(f"PostgreSQL cannot be connected to: {error}") from error


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise TruthUnavailable("PostgreSQL did not answer in time") from error
    except (*LOST, *_NOT_NOW) as error:
        raise TruthUnavailable(f"PostgreSQL cannot be used: {error}") from error
    except CONFLICTS:
        raise
    except asyncpg.PostgresError as error:
        raise TruthRefused(f"PostgreSQL refused: {error}") from error


async def _nothing_to_reset(_connection: asyncpg.Connection) -> None:
    """No statement here leaves session state, so the driver's clean-up would be a round trip for nothing."""
