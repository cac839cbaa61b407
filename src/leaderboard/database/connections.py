"""The pool of connections to PostgreSQL.

The pool is our own, because it has to distinguish connections after a failover. Connections from before it may
lead to a server that is a standby now, or to none, and each of them would cost a deadline. So:

- a connection is made to a primary only;
- a server that answers as a standby, or as read-only, costs that connection and every older one;
- a connection that has been silent for a second is checked with an empty statement before it is used;
- a connection that does not answer in time is closed, with all idle ones that have not answered since.

Behind a pooler every use is a transaction that begins by setting what it needs (`connector.py`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType

import asyncpg

from leaderboard.database.connector import SESSION_SETTINGS, Connection, Connector, Isolation, close, transaction
from leaderboard.database.failures import LOST, while_using
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.tuning import ConnectionTuning

# Frequent statements have one generic plan for some seconds: planning for the parameters of each call takes longer
# than a small batch of scores. The plan must not read a whole table because it was small when the plan was made.
_POOL_SETTINGS = MappingProxyType(
    {**SESSION_SETTINGS, "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
)

_CLOSING_S = 1.0
_TOO_MANY_S = 5.0
"""The pool is smaller by one connection for so long after the server has said that it has no more."""


class _Pooled:
    """A connection of the pool, with the times when connecting began and when the server last answered.

    `shared`: it leads to a pooler, which lends the server's connection for one transaction.
    """

    __slots__ = ("answered", "connection", "made", "shared")

    def __init__(self, connection: Connection, made: float, *, shared: bool) -> None:
        self.connection = connection
        self.made = made
        self.shared = shared
        self.answered = time.monotonic()


class Connections:
    """A pool of connections that connects on first use and survives the absence of the server.

    `timeout_s` limits everything that is done with a connection, from asking the pool for it to the last answer.
    """

    def __init__(
        self, connector: Connector, pool_size: int, timeout_s: float, tuning: ConnectionTuning | None = None
    ) -> None:
        self._connector = connector
        self._pool_size = pool_size
        self.timeout_s = timeout_s
        self._tuning = tuning or ConnectionTuning()
        self._open = False
        self._free = asyncio.Semaphore(0)
        # The last one used is used next, so that the others become idle and its caches are warm.
        self._idle: list[_Pooled] = []
        self._in_use: set[_Pooled] = set()
        self._trusted_since = float("-inf")

    @property
    def behind_pooler(self) -> bool:
        """Whether the last connection led to a pooler."""
        return self._connector.behind_pooler

    async def open(self) -> None:
        """Prepare the pool; connects only when first used."""
        self._free = asyncio.Semaphore(self._pool_size)
        self._open = True

    async def close(self) -> None:
        """Close the connections; statements under way have a second to end."""
        if not self._open:
            return
        self._open = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                for _ in range(self._pool_size):
                    await self._free.acquire()
        for pooled in self._in_use:
            pooled.connection.terminate()
        while self._idle:
            self._close_soon(self._idle.pop())
        await self._connector.closer.wait()

    @asynccontextmanager
    async def acquire(
        self, isolation: Isolation | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[Connection]:
        """Lend a connection of the pool for `timeout_s`, by default the pool's own.

        With `isolation` everything is one transaction, else each statement is one. Look at the answers while you
        hold the connection: one that shows a standby says something about the connection. Raises
        DatabaseUnavailable, DatabaseReadOnly, DatabaseRefused, and the driver's CONFLICTS.
        """
        async with while_using(), asyncio.timeout(timeout_s or self.timeout_s) as deadline:
            pooled = await self._take()
            self._in_use.add(pooled)
            begun = time.monotonic()
            alive = True
            try:
                if isolation is None and not pooled.shared:
                    yield pooled.connection
                else:
                    settings = _POOL_SETTINGS if pooled.shared else {}
                    async with transaction(pooled.connection, isolation or "READ COMMITTED", settings):
                        yield pooled.connection
            except (asyncpg.ReadOnlySQLTransactionError, DatabaseReadOnly):
                self._distrust(pooled)
                raise
            except (*LOST, TimeoutError, asyncio.CancelledError):
                alive = False
                raise
            finally:
                self._in_use.discard(pooled)
                if deadline.expired():
                    self._close_silent(begun)
                self._give_back(pooled, alive=alive)

    @asynccontextmanager
    async def dedicated(
        self, settings: Mapping[str, str] = MappingProxyType({}), isolation: Isolation | None = None
    ) -> AsyncIterator[Connection]:
        """Lend a new connection outside the pool, with these settings, for work that takes long.

        Raises as `acquire` does. Behind a pooler and without `isolation`, the settings are not made.
        """
        settings = {**SESSION_SETTINGS, **settings}
        async with while_using():
            connection = await self._connector.connect(settings)
            try:
                if isolation is None:
                    yield connection
                else:
                    async with transaction(connection, isolation, settings if self.behind_pooler else {}):
                        yield connection
            finally:
                await close(connection)

    async def _take(self) -> _Pooled:
        if not self._open:
            raise DatabaseUnavailable("the pool is not open")
        free = self._free
        while True:
            await free.acquire()
            try:
                while self._idle:
                    pooled = self._idle.pop()
                    if await self._is_good(pooled):
                        return pooled
                    self._close_soon(pooled)
                begun = time.monotonic()
                connection = await self._connector.connect(_POOL_SETTINGS, command_timeout=self.timeout_s)
                return _Pooled(connection, begun, shared=self.behind_pooler)
            except DatabaseUnavailable as error:
                if not isinstance(error.__cause__, asyncpg.TooManyConnectionsError) or not self._in_use:
                    free.release()
                    raise
                # One of those in use will be given back before the server has room for another one.
                asyncio.get_running_loop().call_later(_TOO_MANY_S, free.release)
            except BaseException:
                free.release()
                raise

    async def _is_good(self, pooled: _Pooled) -> bool:
        now = time.monotonic()
        silent_s = now - pooled.answered
        if (
            pooled.connection.is_closed()
            or pooled.made < self._trusted_since
            or silent_s > self._tuning.max_idle_s
        ):
            return False
        if silent_s <= self._tuning.silent_s:
            return True
        try:
            async with asyncio.timeout(self._tuning.silent_s):
                await pooled.connection.execute("SELECT")
        except (*LOST, asyncpg.PostgresError):
            return False
        except TimeoutError:
            self._close_silent(now)
            return False
        except BaseException:
            self._close_soon(pooled)
            raise
        return True

    def _give_back(self, pooled: _Pooled, *, alive: bool) -> None:
        trusted = pooled.made >= self._trusted_since
        if self._open and alive and trusted and not pooled.connection.is_closed():
            pooled.answered = time.monotonic()
            self._idle.append(pooled)
        else:
            self._close_soon(pooled)
        self._free.release()

    def _distrust(self, pooled: _Pooled) -> None:
        """Stop using every connection that was made before now.

        A connection younger than `silent_s` changes nothing: otherwise a primary that takes no writes would be
        connected to again and again.
        """
        now = time.monotonic()
        if now - pooled.made > self._tuning.silent_s:
            self._trusted_since = now

    def _close_silent(self, since: float) -> None:
        """Close the idle connections that have not answered since then."""
        silent = [pooled for pooled in self._idle if pooled.answered < since]
        self._idle = [pooled for pooled in self._idle if pooled.answered >= since]
        for pooled in silent:
            self._close_soon(pooled)

    def _close_soon(self, pooled: _Pooled) -> None:
        self._connector.closer.close_soon(pooled.connection)
