"""Polls Sentinels for the primary."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from leaderboard.cache.command import send
from leaderboard.errors import CacheUnavailable, CacheUnsupported
from leaderboard.redis_url import Address, RedisUrl

_POLL_EVERY_S = 0.2
_TIMEOUT_S = 1.0
_VALID_S = 10.0
"""How long an answer counts after its Sentinel has stopped answering."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer of one Sentinel: the primary, and the configuration epoch since which it is the primary."""

    epoch: int
    primary: Address
    at: float


class Sentinels:
    """The Sentinels of one service, polled in the background from the first call on.

    They learn of a failover one after the other. Each failover has a higher epoch than the one before, so the
    answer with the highest epoch is the latest.
    """

    def __init__(self, url: RedisUrl, dial: Callable[[Address], Awaitable[AbstractConnection]]) -> None:
        self._url = url
        self._dial = dial
        self._answers: dict[Address, _Answer] = {}
        self._failed: dict[Address, Exception] = {}
        self._primary: Address | None = None
        self._changed = asyncio.Event()
        self._asking: list[asyncio.Task[None]] = []
        self.switches = 0
        """How many times the primary has changed."""

    async def primary(self) -> Address:
        """Return the primary by the latest answer. Raises CacheUnavailable and CacheUnsupported."""
        if not self._asking:
            self._asking = [
                asyncio.create_task(self._poll(address), name="asking a Sentinel")
                for address in self._url.addresses
            ]
        while self._primary is None:
            self._changed.clear()
            if len(self._failed) == len(self._url.addresses):
                raise self._no_answer()
            await self._changed.wait()
        return self._primary

    async def close(self) -> None:
        """Stop polling."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._asking = []

    def _no_answer(self) -> CacheUnavailable | CacheUnsupported:
        failures = list(self._failed.values())
        unsupported = [error for error in failures if isinstance(error, CacheUnsupported)]
        if len(unsupported) == len(failures):
            return unsupported[0]
        return CacheUnavailable(f"no Sentinel answers: {failures[0]}")

    async def _poll(self, address: Address) -> None:
        connection: AbstractConnection | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        if connection is None:
                            connection = await self._dial(address)
                        answer = await self._ask(connection)
                    self._failed.pop(address, None)
                    if answer is not None:
                        self._learn(address, answer)
                except (RedisError, OSError, TimeoutError, CacheUnsupported) as error:
                    if connection is not None:
                        await connection.disconnect(nowait=True)
                        connection = None
                    self._failed[address] = error
                    self._changed.set()
                await asyncio.sleep(_POLL_EVERY_S)
        finally:
            if connection is not None:
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)

    async def _ask(self, connection: AbstractConnection) -> _Answer | None:
        """Return its answer; None during a failover, when its epoch and its primary do not belong together."""
        service = self._url.service
        try:
            reply = await send(connection, "SENTINEL", "MASTER", service)
        except ResponseError as error:
            text = str(error).lower()
            if "no such master" in text:
                raise CacheUnsupported(f"Sentinel knows no service {service!r}") from error
            if "unknown command" in text:
                raise CacheUnsupported("redis+sentinel:// is for Sentinels, and this server is none") from error
            raise
        field = dict(zip(reply[::2], reply[1::2], strict=True))
        if b"failover_in_progress" in field[b"flags"]:
            return None
        primary = field[b"ip"].decode(), int(field[b"port"])
        return _Answer(int(field[b"config-epoch"]), primary, time.monotonic())

    def _learn(self, address: Address, answer: _Answer) -> None:
        self._answers[address] = answer
        valid = [one for one in self._answers.values() if answer.at - one.at < _VALID_S]
        primary = max(valid, key=lambda one: one.epoch).primary
        if primary != self._primary:
            self.switches += self._primary is not None
            self._primary = primary
        self._changed.set()
