"""Two processes of the service in one event loop, without their timers.

A test decides what happens when: it holds a process at a call to a store. Everything else is as in production, on
real servers.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.config import Settings
from leaderboard.model import User
from leaderboard.tuning import SyncTuning, Tuning
from tests.system import PATIENCE_S, redis, until

SIZE = 10
KEPT = 20
USERS = 40
"""User 1 is the best, with a score of 1000. The score of each next user is 10 lower."""

PATIENT = SyncTuning(fresh_s=PATIENCE_S, patience_s=PATIENCE_S)
"""No writer stops waiting for the cache."""
REUSING = SyncTuning(fresh_s=PATIENCE_S, reuse_own_state_s=PATIENCE_S)
"""A process does not poll while no other process changes the cache."""
POLLING = SyncTuning(fresh_s=PATIENCE_S, patience_s=PATIENCE_S, reuse_own_state_s=0)
"""No writer stops waiting for the cache, and each catch-up begins with a poll."""
use_tuning = partial(pytest.mark.parametrize, "tuning")


@asynccontextmanager
async def started(settings: Settings, tuning: SyncTuning) -> AsyncIterator[App]:
    app = App(settings.model_copy(update={"cache_size": SIZE}), Tuning(sync=tuning))
    await app.database.open()
    await app.reader.open()
    app.health.note_postgres(await app.database.now())
    try:
        yield app
    finally:
        await app.close()


class Held:
    """Replaces a public method by one that waits, before or after its work, until `release` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, before: bool = False) -> None:
        self._method = getattr(owner, name)
        self._before = before
        self._reached = asyncio.Event()
        self._go = asyncio.Event()
        monkeypatch.setattr(owner, name, self._held)

    async def _held(self, *arguments: Any, **options: Any) -> Any:
        if self._before:
            await self._wait()
            return await self._method(*arguments, **options)
        result = await self._method(*arguments, **options)
        await self._wait()
        return result

    async def _wait(self) -> None:
        self._reached.set()
        await self._go.wait()

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), PATIENCE_S)

    def release(self) -> None:
        self._go.set()


async def catch_up(app: App) -> None:
    """Catches the cache up, as the timer and the writers do."""
    await app.sync.synchronizer.catch_up()


async def cached(app: App) -> list[User] | None:
    """Returns all cached users, best first, or None if the cache is not valid."""
    export = await app.cache.export()
    return export.users if export is not None and export.valid else None


async def make_valid(app: App) -> None:
    """Catches the cache up until it is valid, so that reads use it."""
    await catch_up(app)

    async def is_read() -> bool:
        return await cached(app) is not None

    await until(is_read, "the cache is valid")
    await catch_up(app)


async def top(app: App, n: int) -> list[tuple[int, int]]:
    """Returns the id and the score of each of the best `n` users, as this process answers."""
    reply = await app.service.reads.top(n)
    return [(user.user_id, user.total_score) for user in reply.result.decode().users]


def metric(app: App, name: str, **labels: str) -> float:
    """Returns the value of a metric of this process, or 0."""
    return app.metrics.registry.get_sample_value(name, labels) or 0.0


def from_cache(app: App) -> float:
    """Returns how many queries of this process the cache has answered."""
    return metric(app, "leaderboard_answers_total", source="cache")


def waiting(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    async def enough_wait() -> bool:
        return app.sync.visibility.awaited == count

    return enough_wait


def change_epoch(app: App, epoch: str, snapshot: str = "9000000:9000000:") -> None:
    """Gives the cache another epoch and another score of user 7."""
    client = redis(app.settings)
    client.hset(keys.STATE, mapping={"token": "0123456789abcdef", "epoch": epoch, "snapshot": snapshot})
    client.zadd(keys.SCORES, {member(7): -5000})
    client.close()
