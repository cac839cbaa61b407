"""The pool of connections to PostgreSQL, and what it means when one of them fails.

The driver's many ways to fail leave here as the few that matter: PostgreSQL cannot be asked, it takes no writes,
or it refused. What a caller can do something about passes as it is: a conflict with another transaction.

The pool is our own, because after a failover connections have to be told apart. Those made before it may lead to a
server that is a standby now, or nowhere, and would be tried one after the other, for a deadline each. So:

- a connection is only made to a primary;
- a server that says it is a standby, or read-only, costs that connection and every one made before;
- a connection that has been silent for a second is asked whether it is still there before it is used;
- one that does not answer in time is closed, with all idle ones that have not answered since it was asked.

Behind a pooler that lends a server's connection by the transaction (PgBouncer in transaction mode), nothing that
is set on a connection stays, and a prepared statement may be looked for on another one. So there every use is a
transaction that begins by setting what it needs, without prepared statements. A pooler shows by the process id of
the server, which differs from the one that was given when connecting.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import asyncpg
import structlog

from leaderboard.errors import DatabaseReadOnly, DatabaseRefused, DatabaseUnavailable

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

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
"""What it raises because of another transaction."""

_STATEMENTS = 100
_PLANNED_ANEW_S = 5
_LONGEST_IDLE_S = 300
_SILENT_S = 1.0
"""A connection that has not answered for so long is asked whether it is still there, and has as long to answer."""
_CLOSING_S = 1.0
_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""So that the kernel ends a connection whose peer is gone, also where no deadline does."""

_NOT_NOW = (
    asyncpg.InsufficientResourcesError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedTableError,
)
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "REPEATABLE READ, READ ONLY"]

_SESSION = MappingProxyType({"jit": "off", "default_transaction_isolation": "'read committed'"})
# What the pool is asked again and again has one plan for some seconds: to make one for the parameters of each
# call takes PostgreSQL longer than a small batch of scores. It must not be one that reads all of a table, which
# was small when it was made; nor be kept for long, because by an index that does not fit it reads as much.
_POOLED = MappingProxyType({**_SESSION, "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"})

_WHO = (
    "SELECT FROM generate_series(1,"
    " CASE WHEN pg_is_in_recovery() THEN 0 WHEN pg_backend_pid() = {} THEN 1 ELSE 2 END)"
)
"""Asks what is at the other end. It is sent as text, because a pooler may look for a prepared statement elsewhere;
the answer is the number of rows, because the driver returns no more of a statement that is sent as text."""
_STANDBY, _SERVER, _POOLER = "SELECT 0", "SELECT 1", "SELECT 2"

_TOO_MANY_S = 5.0
"""For how long the pool is smaller by one connection after the server has said that it has no more."""

_log = structlog.get_logger(__name__)


class _Pooled:
    """A connection of the pool: when connecting began, and when the server last answered on it.

    `shared`: it leads to a pooler, which lends the server's connection by the transaction.
    """

    __slots__ = ("answered", "connection", "made", "shared")

    def __init__(self, connection: Connection, made: float, *, shared: bool) -> None:
        self.connection = connection
        self.made = made
        self.shared = shared
        self.answered = time.monotonic()


class Connections:
    """A pool of connections that is opened on first use and survives the server's absence.

    `connect` goes to the driver; `timeout_s` is for connecting, and for everything that is done with a connection
    from when it is asked for.
    """

    def __init__(self, connect: Mapping[str, Any], pool_size: int, timeout_s: float) -> None:
        self._connect_to = dict(connect)
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._open = False
        self._free = asyncio.Semaphore(0)
        # The last one used is the next: so the others become idle, and its caches are warm.
        self._idle: list[_Pooled] = []
        self._in_use: set[_Pooled] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._trusted_since = float("-inf")
        self.behind_pooler = False
        """Whether a pooler was met when last connecting."""

    async def open(self) -> None:
        """Prepare the pool; connects only when first asked something."""
        self._free = asyncio.Semaphore(self._pool_size)
        self._open = True

    async def close(self) -> None:
        """Close the connections; what is under way has a second to end."""
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
            self._close_soon(self._idle.pop().connection)
        await asyncio.gather(*self._closing)

    @asynccontextmanager
    async def pooled(
        self, isolation: Isolation | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[Connection]:
        """A connection of the pool, to be used within `timeout_s` or the time that a call to PostgreSQL may take.

        With `isolation` in one transaction, else each statement is one. Raises DatabaseUnavailable,
        DatabaseReadOnly, DatabaseRefused, and any of CONFLICTS. Answers are to be looked at while it is held: one
        that shows that the server is a standby is about the connection.
        """
        async with _translated(), asyncio.timeout(timeout_s or self._timeout_s) as deadline:
            pooled = await self._take()
            self._in_use.add(pooled)
            begun = time.monotonic()
            alive = True
            try:
                if isolation is None and not pooled.shared:
                    yield pooled.connection
                else:
                    settings = _POOLED if pooled.shared else {}
                    async with _transaction(pooled.connection, isolation or "READ COMMITTED", settings):
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
                    self._close_soon(pooled.connection)
                begun = time.monotonic()
                connection = await self._connect(_POOLED, command_timeout=self._timeout_s)
                return _Pooled(connection, begun, shared=self.behind_pooler)
            except DatabaseUnavailable as error:
                if not isinstance(error.__cause__, asyncpg.TooManyConnectionsError) or not self._in_use:
                    free.release()
                    raise
                # One of those in use will do: it is given back before the server has room for another one.
                asyncio.get_running_loop().call_later(_TOO_MANY_S, free.release)
            except BaseException:
                free.release()
                raise

    async def _is_good(self, pooled: _Pooled) -> bool:
        now = time.monotonic()
        silent_s = now - pooled.answered
        if pooled.connection.is_closed() or pooled.made < self._trusted_since or silent_s > _LONGEST_IDLE_S:
            return False
        if silent_s <= _SILENT_S:
            return True
        try:
            async with asyncio.timeout(_SILENT_S):
                await pooled.connection.execute("SELECT")
        except (*LOST, asyncpg.PostgresError):
            return False
        except TimeoutError:
            self._close_silent(now)
            return False
        except BaseException:
            self._close_soon(pooled.connection)
            raise
        return True

    def _give_back(self, pooled: _Pooled, *, alive: bool) -> None:
        trusted = pooled.made >= self._trusted_since
        if self._open and alive and trusted and not pooled.connection.is_closed():
            pooled.answered = time.monotonic()
            self._idle.append(pooled)
        else:
            self._close_soon(pooled.connection)
        self._free.release()

    def _distrust(self, pooled: _Pooled) -> None:
        """Use no connection any more that was made before now.

        But a server that is a primary and takes no writes all the same is not connected to again and again.
        """
        now = time.monotonic()
        if now - pooled.made > _SILENT_S:
            self._trusted_since = now

    def _close_silent(self, since: float) -> None:
        """Close the idle connections that have not answered since then."""
        silent = [pooled for pooled in self._idle if pooled.answered < since]
        self._idle = [pooled for pooled in self._idle if pooled.answered >= since]
        for pooled in silent:
            self._close_soon(pooled.connection)

    def _close_soon(self, connection: Connection) -> None:
        self._keep_until_done(_close(connection), "closing a connection to PostgreSQL")

    def _keep_until_done(self, closing: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(closing, name=name)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _uncancelled(self, connecting: Coroutine[Any, Any, Connection]) -> Connection:
        """Wait for a connection; a caller that is cancelled leaves it to be made and closed.

        The driver, cancelled at the wrong moment, leaves a future with an exception that nothing awaits, which
        asyncio logs as an error.
        """
        task = asyncio.create_task(connecting, name="connecting to PostgreSQL")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._keep_until_done(_close_when_made(task), "closing a connection that is not needed any more")
            raise

    @asynccontextmanager
    async def alone(
        self, settings: Mapping[str, str] = MappingProxyType({}), isolation: Isolation | None = None
    ) -> AsyncIterator[Connection]:
        """A connection of one's own with these settings, for what takes longer; raises as `pooled` does.

        Without `isolation` and behind a pooler, the settings are not made, and nothing that is done on it stays.
        """
        async with _translated():
            connection = await self._connect({**_SESSION, **settings})
            try:
                if isolation is None:
                    yield connection
                else:
                    again = {**_SESSION, **settings} if self.behind_pooler else {}
                    async with _transaction(connection, isolation, again):
                        yield connection
            finally:
                await connection.close(timeout=_CLOSING_S)

    async def _connect(self, settings: Mapping[str, str], **options: Any) -> Connection:
        """A new connection to a primary, with these settings, or to a pooler before one."""
        while True:
            behind_pooler = self.behind_pooler
            with _connecting():
                connection = await self._uncancelled(
                    asyncpg.connect(
                        **self._connect_to,
                        **options,
                        server_settings={"application_name": "leaderboard"},
                        timeout=self._timeout_s,
                        statement_cache_size=0 if behind_pooler else _STATEMENTS,
                        max_cached_statement_lifetime=_PLANNED_ANEW_S,
                    )
                )
                try:
                    ask = _WHO.format(connection.get_server_pid())
                    who = await connection.execute(ask, timeout=self._timeout_s)
                    if who == _STANDBY:
                        raise DatabaseReadOnly(
                            "this PostgreSQL server is a standby; only a primary can serve as truth"
                        )
                    self.behind_pooler = who == _POOLER
                    if self.behind_pooler == behind_pooler:
                        if not behind_pooler:
                            await connection.execute(_set("SESSION", settings), timeout=self._timeout_s)
                        _keep_alive(connection)
                        return connection
                except BaseException:
                    connection.terminate()
                    raise
            # It was made for something else than what is there.
            connection.terminate()
            if self.behind_pooler:
                _log.info("PostgreSQL is behind a pooler: every call is a transaction of several round trips")


@asynccontextmanager
async def _transaction(
    connection: Connection, isolation: Isolation, settings: Mapping[str, str]
) -> AsyncIterator[None]:
    """One transaction, which begins with these settings."""
    await connection.execute(f"BEGIN ISOLATION LEVEL {isolation}; {_set('LOCAL', settings)}")
    try:
        yield
    except Exception:
        # Not after a cancellation: then the connection is closed.
        if not connection.is_closed():
            with suppress(*LOST, asyncpg.PostgresError):
                await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


def _set(scope: Literal["SESSION", "LOCAL"], settings: Mapping[str, str]) -> str:
    return "; ".join(f"SET {scope} {name} = {value}" for name, value in settings.items())


async def _close(connection: Connection) -> None:
    """Close it, and what may still run on it; by force after a second."""
    with suppress(TimeoutError, asyncio.CancelledError, *LOST, asyncpg.PostgresError):
        await connection.close(timeout=_CLOSING_S)
    connection.terminate()


async def _close_when_made(connecting: asyncio.Task[Connection]) -> None:
    with suppress(Exception, asyncio.CancelledError):
        async with asyncio.timeout(_CLOSING_S):
            connection = await connecting
        connection.terminate()


def _keep_alive(connection: Connection) -> None:
    # The driver has no option for it.
    wire = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if wire is not None and wire.family != socket.AF_UNIX:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):  # not on every system
                wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextmanager
def _connecting() -> Iterator[None]:
    """What PostgreSQL says while it is connected to means that it cannot be asked now."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be connected to: {error}") from error


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DatabaseUnavailable("PostgreSQL did not answer in time") from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise DatabaseReadOnly(f"PostgreSQL takes no writes: {error}") from error
    except (*LOST, *_NOT_NOW) as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be used: {error}") from error
    except CONFLICTS:
        raise
    except asyncpg.PostgresError as error:
        raise DatabaseRefused(f"PostgreSQL refused: {error}") from error
