"""One connection to Redis, with a number that changes when the connection is made anew.

A server that was restarted, resumed from a dump or promoted may have lost what it had confirmed. Only a connection
shows which server answered. So this wraps single connections of the driver, not its pool.

Every call has a deadline. Connecting takes longer than a call, so it goes on in the background when the call that
began it has ended. After a timeout the circuit opens: later calls fail at once until the server has answered
again.
"""

import asyncio
from collections.abc import Awaitable, Callable
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
        self._connection: AbstractConnection | None = None
        self._made_at_switch = 0
        self._timeout_s = timeout_s
        self._on_connect = on_connect
        self._lock = asyncio.Lock()
        self._patience_s = patience_s
        self._unanswered_since: float | None = None
        self._paused_until = 0.0
        self._connecting: asyncio.Task[Exception | None] | None = None
        self._begun_at_switch = 0
        self.incarnation = 0

    async def run(
        self,
        call: Call,
        *,
        incarnation: int | None = None,
        timeout_factor: int = 1,
    ) -> Any:
        """Run a script and return its reply.

        With `incarnation`, only on the connection of that number. `timeout_factor` multiplies the deadline. Raises
        CacheHangs while the patience lasts, CacheUnavailable, CacheUnsupported and CacheRefused.
        """
        timeout_s = self._timeout_s * timeout_factor
        async with self._lock:
            sent = _now()
            try:
                async with asyncio.timeout(timeout_s):
                    connection = await self._connected(incarnation)
                    reply = await _evaluate(connection, call)
                    self._unanswered_since = None
                    return reply
            except TimeoutError as error:
                await self._drop()
                self._servers.doubt()
                # If the deadline itself came far too late, this process stood still, not Redis.
                stood_still = _now() - sent > 2 * timeout_s
                self._unanswered_since = _now() if stood_still else (self._unanswered_since or sent)
                raised = CacheUnavailable if self._circuit_is_open() else CacheHangs
                raise raised(f"Redis did not answer within {timeout_s * 1000:.0f} ms") from error
            except MovedError as error:
                await self._drop()
                self._servers.moved(error)
                raise CacheUnavailable(f"another node of the Redis Cluster has the keys now: {error}") from error
            except (AskError, TryAgainError) as error:
                # Following it would end in TRYAGAIN: scripts name keys that need not exist.
                await self._drop()
                raise CacheUnavailable(f"the Redis Cluster is moving the slot of the keys: {error}") from error
            except ClusterDownError as error:
                # This node may be the only one that is cut off from the others.
                await self._drop()
                self._servers.doubt()
                raise CacheUnavailable(f"a node says that the Redis Cluster is down: {error}") from error
            except ResponseError as error:
                # A replica answers like this. It may be a primary the next time.
                await self._drop()
                raise CacheRefused(f"Redis refused {call.script.name}: {error}") from error
            except (RedisError, OSError) as error:
                await self._drop()
                raise CacheUnavailable(f"Redis is unreachable: {error}") from error
            except asyncio.CancelledError:
                # The reply may still arrive. The next call must not take it for its own.
                await self._drop()
                raise

    async def close(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._drop()

    async def _connected(self, incarnation: int | None) -> AbstractConnection:
        if self._made_at_switch != self._servers.switches:
            await self._drop()
        if self._connection is not None and self._connection.is_connected:
            if incarnation not in (None, self.incarnation):
                raise CacheUnavailable("the connection was replaced meanwhile")
            return self._connection
        if incarnation is not None:
            raise CacheUnavailable("the connection was lost meanwhile")
        await self._drop()
        if _now() < self._paused_until:
            raise CacheUnavailable("Redis was unreachable less than 0.1 s ago")
        connecting = self._begin_to_connect()
        if self._circuit_is_open():
            raise CacheUnavailable("Redis does not answer")
        failure = await asyncio.shield(connecting)
        if failure is not None:
            raise failure
        if self._connection is None:
            raise CacheUnavailable("the connection was lost at once")
        return self._connection

    def _circuit_is_open(self) -> bool:
        return self._unanswered_since is not None and _now() - self._unanswered_since >= self._patience_s

    def _begin_to_connect(self) -> asyncio.Task[Exception | None]:
        if self._connecting is not None and self._begun_at_switch != self._servers.switches:
            # It may wait for a server that has been replaced by another one.
            self._connecting.cancel()
            self._connecting = None
        if self._connecting is None or self._connecting.done():
            self._begun_at_switch = self._servers.switches
            self._connecting = asyncio.create_task(self._connect(), name="connecting to Redis")
        return self._connecting

    async def _connect(self) -> Exception | None:
        """Connect, and return the error if that fails: the call that began it may have ended."""
        connection: AbstractConnection | None = None
        try:
            connection, at_switch = await self._servers.connect()
            made = connection
            if self._on_connect is not None:
                await self._on_connect(lambda call: _evaluate(made, call))
        except BaseException as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
            if not isinstance(error, (RedisError, OSError, CacheError)):
                raise
            if not isinstance(error, ResponseError):
                self._paused_until = _now() + _PAUSE_AFTER_FAILURE_S
            return error
        self._connection, self._made_at_switch = connection, at_switch
        self._unanswered_since = None
        self.incarnation += 1
        return None

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _evaluate(connection: AbstractConnection, call: Call) -> Any:
    keys = call.keys
    try:
        return await send(connection, "EVALSHA", call.script.sha, len(keys), *keys, *call.arguments)
    except NoScriptError:
        return await send(connection, "EVAL", call.script.source, len(keys), *keys, *call.arguments)
