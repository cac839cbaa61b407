"""Makes and closes single connections to a primary PostgreSQL server, or to a pooler in front of one.

A pooler that lends the server's connection for one transaction (PgBouncer in transaction mode) is recognised by
the process id of the server: it differs from the one that the client got when it connected. Behind such a pooler
no setting and no prepared statement stays on the connection.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import asyncpg
import structlog

from leaderboard.database.failures import LOST, while_connecting
from leaderboard.errors import DatabaseReadOnly

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "REPEATABLE READ, READ ONLY"]

APPLICATION_NAME = "leaderboard"
"""The name of the connections in `pg_stat_activity`."""
SESSION_SETTINGS = MappingProxyType({"jit": "off", "default_transaction_isolation": "'read committed'"})

_CACHED_STATEMENTS = 100
_CLOSING_S = 1.0
_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""Let the kernel end a connection whose peer is gone within 20 s, also where no deadline does."""

_ASK_WHAT_ANSWERS = (
    "SELECT FROM generate_series(1,"
    " CASE WHEN pg_is_in_recovery() THEN 0 WHEN pg_backend_pid() = {} THEN 1 ELSE 2 END)"
)
"""Asks what is at the other end, and answers by the number of rows.

It is sent as text, because a pooler may look for a prepared statement on another connection. The driver returns
nothing but the command tag of a statement that is sent as text.
"""
_STANDBY, _SERVER, _POOLER = "SELECT 0", "SELECT 1", "SELECT 2"

_log = structlog.get_logger(__name__)


class Closer:
    """Closes connections in the background, and waits for that in the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def close_soon(self, connection: Connection) -> None:
        """Close a connection without waiting for it."""
        self.run(_close(connection), "closing a connection to PostgreSQL")

    def run(self, closing: Coroutine[Any, Any, None], name: str) -> None:
        """Run `closing` as a task that `wait` waits for."""
        task = asyncio.create_task(closing, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Wait until every connection is closed."""
        await asyncio.gather(*self._tasks)


class Connector:
    """Connects to a primary, or to a pooler in front of one.

    `arguments` go to the driver. `timeout_s` limits connecting and the first statements. A plan of a prepared
    statement is used for `plan_lifetime_s` at most.
    """

    def __init__(self, arguments: Mapping[str, Any], timeout_s: float, plan_lifetime_s: float) -> None:
        self._arguments = dict(arguments)
        self._timeout_s = timeout_s
        # The driver takes a float; its stubs say int.
        self._plan_lifetime_s: Any = plan_lifetime_s
        self.behind_pooler = False
        """Whether the last connection led to a pooler."""
        self.closer = Closer()

    async def connect(self, settings: Mapping[str, str], **options: Any) -> Connection:
        """Return a new connection with these settings; behind a pooler without them.

        Raises DatabaseUnavailable, DatabaseReadOnly if the server is a standby, and the driver's LOST.
        """
        while True:
            behind_pooler = self.behind_pooler
            with while_connecting():
                connection = await self._uncancelled(
                    asyncpg.connect(
                        **self._arguments,
                        **options,
                        server_settings={"application_name": APPLICATION_NAME},
                        timeout=self._timeout_s,
                        statement_cache_size=0 if behind_pooler else _CACHED_STATEMENTS,
                        max_cached_statement_lifetime=self._plan_lifetime_s,
                    )
                )
                try:
                    question = _ASK_WHAT_ANSWERS.format(connection.get_server_pid())
                    answer = await connection.execute(question, timeout=self._timeout_s)
                    if answer == _STANDBY:
                        raise DatabaseReadOnly("this PostgreSQL server is a standby; a primary is needed")
                    self.behind_pooler = answer == _POOLER
                    if self.behind_pooler == behind_pooler:
                        if not behind_pooler:
                            await connection.execute(_set("SESSION", settings), timeout=self._timeout_s)
                        _keep_alive(connection)
                        return connection
                except BaseException:
                    connection.terminate()
                    raise
            # It has the options for a server and leads to a pooler, or the other way round.
            connection.terminate()
            if self.behind_pooler:
                _log.info("PostgreSQL is behind a pooler: every call is a transaction of several round trips")

    async def _uncancelled(self, connecting: Coroutine[Any, Any, Connection]) -> Connection:
        """Wait for a connection; if the caller is cancelled, finish in the background and close it.

        The driver, cancelled between TCP and the answer about TLS, leaves a future with an exception that nothing
        awaits. asyncio logs that as an error.
        """
        task = asyncio.create_task(connecting, name="connecting to PostgreSQL")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.closer.run(_close_when_made(task), "closing a connection that is not needed any more")
            raise


@asynccontextmanager
async def transaction(
    connection: Connection, isolation: Isolation, settings: Mapping[str, str]
) -> AsyncIterator[None]:
    """Run one transaction that begins with these settings."""
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


async def close(connection: Connection) -> None:
    """Close a connection; by force after a second."""
    await connection.close(timeout=_CLOSING_S)


async def _close(connection: Connection) -> None:
    with suppress(TimeoutError, asyncio.CancelledError, *LOST, asyncpg.PostgresError):
        await close(connection)
    connection.terminate()


async def _close_when_made(connecting: asyncio.Task[Connection]) -> None:
    with suppress(Exception, asyncio.CancelledError):
        async with asyncio.timeout(_CLOSING_S):
            connection = await connecting
        connection.terminate()


def _keep_alive(connection: Connection) -> None:
    # The driver has no option for it.
    sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):  # not on every system
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
