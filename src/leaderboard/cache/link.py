"""One connection to Redis, with a number that changes when the connection is made anew.

A server that was restarted, resumed from a dump or promoted may have lost what it had confirmed. Only a connection
shows which server answered. So this wraps single connections of the driver, not its pool.

Every call has a deadline. Connecting takes longer than a call, so it goes on in the background when the call that
began it has ended. When a server has not answered for some time, the circuit opens: calls fail at once until the
server answers again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from leaderboard.cache.command import send
from leaderboard.cache.scripts import Call
from leaderboard.cache.servers import Servers
from leaderboard.errors import CacheError, CacheHangs, CacheRefused, CacheUnavailable

_PAUSE_AFTER_FAILURE_S = 0.1

Evaluate = Callable[[Call], Awaitable[Any]]
"""Runs a script on a connection that has just been made."""


@dataclass(frozen=True, slots=True)
class _Connected:
    """A connection, and the number of switches of the server when it was made."""

    connection: AbstractConnection
    at_switch: int


class _Circuit:
    """Opens when the server has not answered for `patience_s`: then calls fail at once."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._unanswered_since: float | None = None

    @property
    def is_open(self) -> bool:
        return self._unanswered_since is not None and _now() - self._unanswered_since >= self._patience_s

    def note_answer(self) -> None:
        self._unanswered_since = None

    def note_timeout(self, sent: float, timeout_s: float) -> None:
        """Note a call that was sent at that time and not answered."""
        now = _now()
        # If the deadline itself came far too late, this process stood still, not Redis.
        stood_still = now - sent > 2 * timeout_s
        self._unanswered_since = now if stood_still else (self._unanswered_since or sent)


class _Connecting:
    """Connects in the background, one try at a time."""

    def __init__(self, servers: Servers, on_connect: Callable[[Evaluate], Awaitable[None]] | None) -> None:
        self._servers = servers
        self._on_connect = on_connect
        self._task: asyncio.Task[_Connected | Exception] | None = None
        self._at_switch = 0
        self._paused_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether the last try failed a moment ago."""
        return _now() < self._paused_until

    def start(self) -> "asyncio.Task[_Connected | Exception]":
        """Return the try that is under way, or begin one. Its result is an error if it failed."""
        if self._task is not None and self._at_switch != self._servers.switches:
            # It may wait for a server that has been replaced by another one.
            self._task.cancel()
            self._task = None
        if self._task is None or self._task.done():
            self._at_switch = self._servers.switches
            self._task = asyncio.create_task(self._connect(), name="connecting to Redis")
        return self._task

    def take(self) -> "_Connected | None":
        """Return the connection if the last try has made one, once."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        made = self._task.result()
        self._task = None
        return made if isinstance(made, _Connected) else None

    async def _connect(self) -> "_Connected | Exception":
        connection: AbstractConnection | None = None
        try:
            connection, at_switch = await self._servers.connect()
            made = connection
            if self._on_connect is not None:
                await self._on_connect(lambda call: _evaluate(made, call))
        except BaseException as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, ResponseError):
                self._paused_until = _now() + _PAUSE_AFTER_FAILURE_S
            # Returned, not raised: the call that began the try may have ended.
            return error
        return _Connected(connection, at_switch)

    async def close(self) -> None:
        """Cancel what is under way, and close a connection that was made meanwhile."""
        if self._task is not None:
            self._task.cancel()
            (made,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(made, _Connected):
                await made.connection.disconnect(nowait=True)


class Link:
    """A connection that is made when first used. It makes one call at a time."""

    def __init__(
        self,
        servers: Servers,
        timeout_s: float,
        *,
        on_connect: Callable[[Evaluate], Awaitable[None]] | None = None,
        patience_s: float = 0,
    ) -> None:
        """`on_connect` may run scripts on a new connection before anything else.

        When the server has not answered for `patience_s`, calls fail at once until it answers again.
        """
        self._servers = servers
        self._timeout_s = timeout_s
        self._circuit = _Circuit(patience_s)
        self._connecting = _Connecting(servers, on_connect)
        self._connected: _Connected | None = None
        self._lock = asyncio.Lock()
        self.connection_number = 0
        """The number of the present connection."""

    async def run(self, call: Call, *, connection_number: int | None = None, timeout_factor: int = 1) -> Any:
        """Run a script and return its reply.

        With `connection_number`, only on the connection of that number. `timeout_factor` multiplies the deadline.
        Raises CacheHangs while the patience lasts, CacheUnavailable, CacheUnsupported and CacheRefused.
        """
        timeout_s = self._timeout_s * timeout_factor
        async with self._lock:
            sent = _now()
            try:
                async with asyncio.timeout(timeout_s):
                    connection = await self._connection(connection_number)
                    reply = await _evaluate(connection, call)
                    self._circuit.note_answer()
                    return reply
            except TimeoutError as error:
                await self._drop()
                self._servers.note_silent()
                self._circuit.note_timeout(sent, timeout_s)
                raised = CacheUnavailable if self._circuit.is_open else CacheHangs
                raise raised(f"Redis did not answer within {timeout_s * 1000:.0f} ms") from error
            except (RedisError, OSError, RuntimeError) as error:
                # uvloop raises RuntimeError for a connection that the server has reset.
                await self._drop()
                raise self._translated(error, call) from error
            except BaseException:
                # The reply may still arrive. The next call must not take it for its own.
                await self._drop()
                raise

    def _translated(self, error: Exception, call: Call) -> CacheError:
        match error:
            case MovedError():
                self._servers.moved(error)
                return CacheUnavailable(f"another node of the Redis Cluster has the keys now: {error}")
            case AskError() | TryAgainError():
                # Following it would end in TRYAGAIN: scripts name keys that need not exist.
                return CacheUnavailable(f"the Redis Cluster is moving the slot of the keys: {error}")
            case ClusterDownError():
                # This node may be the only one that is cut off from the others.
                self._servers.note_silent()
                return CacheUnavailable(f"a node says that the Redis Cluster is down: {error}")
            case ResponseError():
                # A replica answers like this. It may be a primary the next time.
                return CacheRefused(f"Redis refused {call.script.name}: {error}")
        return CacheUnavailable(f"Redis is unreachable: {error}")

    async def close(self) -> None:
        """Close the connection."""
        await self._connecting.close()
        await self._drop()

    async def _connection(self, connection_number: int | None) -> AbstractConnection:
        # A try may have succeeded after the call that began it had ended.
        self._take_over()
        if self._connected is not None and self._connected.at_switch != self._servers.switches:
            await self._drop()
        if self._connected is not None and self._connected.connection.is_connected:
            if connection_number not in (None, self.connection_number):
                raise CacheUnavailable("the connection was replaced meanwhile")
            return self._connected.connection
        if connection_number is not None:
            raise CacheUnavailable("the connection was lost meanwhile")
        await self._drop()
        if self._connecting.paused:
            raise CacheUnavailable("Redis was unreachable less than 0.1 s ago")
        connecting = self._connecting.start()
        if self._circuit.is_open:
            raise CacheUnavailable("Redis does not answer")
        made = await asyncio.shield(connecting)
        if isinstance(made, Exception):
            raise made
        self._take_over()
        return made.connection

    def _take_over(self) -> None:
        made = self._connecting.take()
        if made is not None:
            self._connected = made
            self._circuit.note_answer()
            self.connection_number += 1

    async def _drop(self) -> None:
        connected, self._connected = self._connected, None
        if connected is not None:
            await connected.connection.disconnect(nowait=True)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _evaluate(connection: AbstractConnection, call: Call) -> Any:
    keys = call.keys
    try:
        return await send(connection, "EVALSHA", call.script.sha, len(keys), *keys, *call.arguments)
    except NoScriptError:
        return await send(connection, "EVAL", call.script.source, len(keys), *keys, *call.arguments)
