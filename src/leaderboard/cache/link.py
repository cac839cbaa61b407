"""One connection to Redis that knows when it has become another one.

A server that was restarted, resumed from a dump or promoted may have forgotten what it had confirmed. Which
server answered is known only per connection, so this wraps single connections of the driver, not its pool:
each has a number that changes when it is made anew, and remembers the token found then, which is doubted
until somebody has caught up. Every call has a deadline. A server that hangs is asked nothing more until it has
answered a call of the link's own: to find out whether it is back is nobody's request's business.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from leaderboard.cache.script import Script
from leaderboard.errors import CacheError, CacheHangs, CacheRefused, CacheUnavailable

_PAUSE_AFTER_REFUSAL_S = 0.1
_PROBE_S = 2.0
"""How long to wait for a hanging server on one connection; it answers when it goes on, if the way is whole."""


class Link:
    """A connection that is made when first needed; one call at a time."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        *,
        greet: Callable[["Link"], Awaitable[None]] | None = None,
        patience_s: float = 0,
    ) -> None:
        """`greet` is called with this link whenever the connection has been made, before anything else.

        A server that has not answered for `patience_s` is left alone until it answers again.
        """
        self._pool = ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=None, client_name="leaderboard"
        )
        self._connection: AbstractConnection | None = None
        self._timeout_s = timeout_s
        self._greet = greet
        self._lock = asyncio.Lock()
        self._patience_s = patience_s
        self._unanswered_since: float | None = None
        self._paused_until = 0.0
        self._probing: asyncio.Task[None] | None = None
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
        CacheHangs, until the patience is at its end, CacheUnavailable and CacheRefused.
        """
        timeout_s = self._timeout_s * longer
        async with self._lock:
            now = asyncio.get_running_loop().time
            if self._probing is not None:
                raise CacheUnavailable("Redis does not answer")
            if now() < self._paused_until:
                raise CacheUnavailable("Redis was unreachable a moment ago")
            sent = now()
            try:
                async with asyncio.timeout(timeout_s):
                    connection = await self._connected(incarnation)
                    reply = await _evaluate(connection, script, keys, arguments)
                    self._unanswered_since = None
                    return reply
            except TimeoutError as error:
                await self._drop()
                # A deadline that comes far too late says that this process stood still, not Redis.
                stood_still = now() - sent > 2 * timeout_s
                self._unanswered_since = now() if stood_still else (self._unanswered_since or sent)
                if now() - self._unanswered_since < self._patience_s:
                    raise CacheHangs(f"Redis did not answer within {timeout_s * 1000:.0f} ms") from error
                self._probing = asyncio.create_task(self._probe(), name="waiting for Redis to answer")
                raise CacheUnavailable(f"Redis did not answer within {timeout_s * 1000:.0f} ms") from error
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

    async def greet(self, script: Script, keys: tuple[str, ...], *arguments: str | int | bytes) -> Any:
        """Run a script while the connection is being made; for `greet` only."""
        if self._connection is None:
            raise CacheUnavailable("not connected")
        return await _evaluate(self._connection, script, keys, arguments)

    async def close(self) -> None:
        """Close the connection."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._drop()

    async def _probe(self) -> None:
        """Wait until the server answers."""
        while True:
            try:
                async with asyncio.timeout(_PROBE_S):
                    connection = await self._connected(None)
                    await connection.send_command("PING")
                    await connection.read_response()
                break
            except ResponseError:
                await self._drop()
                break
            except (RedisError, OSError, CacheError):
                await self._drop()
                await asyncio.sleep(_PAUSE_AFTER_REFUSAL_S)
        self._unanswered_since = None
        self._probing = None

    async def _connected(self, incarnation: int | None) -> AbstractConnection:
        if self._connection is None or not self._connection.is_connected:
            if incarnation is not None:
                raise CacheUnavailable("the connection was lost in between")
            await self._drop()
            self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await self._connection.connect()
            except (RedisError, OSError):
                self._paused_until = asyncio.get_running_loop().time() + _PAUSE_AFTER_REFUSAL_S
                raise
            self.incarnation += 1
            if self._greet is not None:
                await self._greet(self)
        elif incarnation is not None and incarnation != self.incarnation:
            raise CacheUnavailable("the connection was made anew in between")
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


async def _evaluate(
    connection: AbstractConnection, script: Script, keys: tuple[str, ...], arguments: tuple[str | int | bytes, ...]
) -> Any:
    try:
        return await _call(connection, "EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await _call(connection, "EVAL", script.source, len(keys), *keys, *arguments)


async def _call(connection: AbstractConnection, *command: str | int | bytes) -> Any:
    # Packed in C: the driver packs in Python, which takes longer than all else that it does for a call.
    packed = pack_command(command)  # type: ignore[arg-type]  # typed as if it took one word
    await connection.send_packed_command(packed, check_health=False)
    return await connection.read_response()
