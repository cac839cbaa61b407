"""One connection to Redis that knows when it has become another one.

A server that was restarted, resumed from a dump or promoted may have forgotten what it had confirmed. Which server
answered is known only per connection, so this wraps single connections of the driver, not its pool: each has a
number that changes when it is made anew, and remembers the token found then, which is doubted until somebody has
caught up.

Every call has a deadline. Connecting takes longer than a call, so it goes on in the background when the call that
began it has ended. A server that hangs keeps one call waiting; later ones fail at once until it has answered.
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

from leaderboard.cache.command import call
from leaderboard.cache.script import Script
from leaderboard.cache.servers import Servers
from leaderboard.errors import CacheError, CacheHangs, CacheRefused, CacheUnavailable

_PAUSE_AFTER_FAILURE_S = 0.1

Evaluate = Callable[..., Awaitable[Any]]
"""Runs a script: takes it, the tuple of its keys, and its arguments."""


class Link:
    """A connection that is made when first needed; one call at a time."""

    def __init__(
        self,
        servers: Servers,
        timeout_s: float,
        *,
        greet: Callable[[Evaluate], Awaitable[None]] | None = None,
        patience_s: float = 0,
    ) -> None:
        """`greet` may run scripts whenever the connection has been made, before anything else.

        A server that has not answered for `patience_s` is left alone until it answers again.
        """
        self._servers = servers
        self._connection: AbstractConnection | None = None
        self._made_at_switch = 0
        self._timeout_s = timeout_s
        self._greet = greet
        self._lock = asyncio.Lock()
        self._patience_s = patience_s
        self._unanswered_since: float | None = None
        self._paused_until = 0.0
        self._connecting: asyncio.Task[Exception | None] | None = None
        self._begun_at_switch = 0
        self.incarnation = 0

    async def run(
        self,
        script: Script,
        keys: tuple[str, ...],
        *arguments: str | int | bytes,
        incarnation: int | None = None,
        longer: int = 1,
    ) -> Any:
        """Run a script and return its reply.

        With `incarnation`, only on the connection of that number. `longer` multiplies the deadline. Raises
        CacheHangs, until the patience is at its end, CacheUnavailable, CacheUnsupported and CacheRefused.
        """
        timeout_s = self._timeout_s * longer
        async with self._lock:
            sent = _now()
            try:
                async with asyncio.timeout(timeout_s):
                    connection = await self._connected(incarnation)
                    reply = await _evaluate(connection, script, keys, *arguments)
                    self._unanswered_since = None
                    return reply
            except TimeoutError as error:
                await self._drop()
                self._servers.doubt()
                # A deadline that comes far too late says that this process stood still, not Redis.
                stood_still = _now() - sent > 2 * timeout_s
                self._unanswered_since = _now() if stood_still else (self._unanswered_since or sent)
                raised = CacheUnavailable if self._given_up() else CacheHangs
                raise raised(f"Redis did not answer within {timeout_s * 1000:.0f} ms") from error
            except MovedError as error:
                await self._drop()
                self._servers.moved(error)
                raise CacheUnavailable(f"another node of the Redis Cluster has the keys now: {error}") from error
            except (AskError, TryAgainError) as error:
                # Followed, it would end in TRYAGAIN: scripts name keys that need not exist.
                await self._drop()
                raise CacheUnavailable(f"the Redis Cluster is moving the slot of the keys: {error}") from error
            except ClusterDownError as error:
                # By this node, which may be the only one that the others cannot reach.
                await self._drop()
                self._servers.doubt()
                raise CacheUnavailable(f"a node of the Redis Cluster takes it for down: {error}") from error
            except ResponseError as error:
                # A replica answers like this, and may be a primary when next asked.
                await self._drop()
                raise CacheRefused(f"Redis refused {script.name}: {error}") from error
            except (RedisError, OSError) as error:
                await self._drop()
                raise CacheUnavailable(f"Redis is unreachable: {error}") from error
            except asyncio.CancelledError:
                # The reply may still arrive, and would be taken for the next call's.
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
                raise CacheUnavailable("the connection was made anew in between")
            return self._connection
        if incarnation is not None:
            raise CacheUnavailable("the connection was lost in between")
        await self._drop()
        if _now() < self._paused_until:
            raise CacheUnavailable("Redis was unreachable a moment ago")
        connecting = self._begin_to_connect()
        if self._given_up():
            raise CacheUnavailable("Redis does not answer")
        failure = await asyncio.shield(connecting)
        if failure is not None:
            raise failure
        if self._connection is None:
            raise CacheUnavailable("the connection was lost at once")
        return self._connection

    def _given_up(self) -> bool:
        return self._unanswered_since is not None and _now() - self._unanswered_since >= self._patience_s

    def _begin_to_connect(self) -> asyncio.Task[Exception | None]:
        if self._connecting is not None and self._begun_at_switch != self._servers.switches:
            # It may be waiting for a server that another one has taken over from.
            self._connecting.cancel()
            self._connecting = None
        if self._connecting is None or self._connecting.done():
            self._begun_at_switch = self._servers.switches
            self._connecting = asyncio.create_task(self._connect(), name="connecting to Redis")
        return self._connecting

    async def _connect(self) -> Exception | None:
        """Connect and greet; returns why not, because the call that began it may have ended."""
        connection: AbstractConnection | None = None
        try:
            connection, at_switch = await self._servers.connect()
            made = connection
            if self._greet is not None:
                await self._greet(lambda *script: _evaluate(made, *script))
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


async def _evaluate(
    connection: AbstractConnection, script: Script, keys: tuple[str, ...], *arguments: str | int | bytes
) -> Any:
    try:
        return await call(connection, "EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await call(connection, "EVAL", script.source, len(keys), *keys, *arguments)
