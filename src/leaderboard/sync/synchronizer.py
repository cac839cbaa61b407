"""Decides when to catch up and to rebuild: on a timer, and at once for callers that wait."""

import asyncio
import random
import time

import structlog

from leaderboard.cache.state import CacheState
from leaderboard.errors import CacheError, DatabaseUnavailable, Unavailable
from leaderboard.health import Health
from leaderboard.periodic import every
from leaderboard.sync.catch_up import CatchUp, RebuildNeeded
from leaderboard.sync.invalidation import Invalidator
from leaderboard.sync.rebuild import Rebuilder
from leaderboard.sync.waiters import Waiters

_PAUSE_S = (0.001, 0.003)
"""The pause between two tries while another process has the lease."""
_BY_HAND_S = 30
"""The longest that a command waits until the cache is caught up."""

_log = structlog.get_logger(__name__)


class Synchronizer:
    """Runs catching up and rebuilding, one at a time, for one process among several."""

    def __init__(
        self,
        catch_up: CatchUp,
        rebuilder: Rebuilder,
        invalidator: Invalidator,
        waiters: Waiters,
        health: Health,
        interval_s: float,
        cut_off_pause_s: float,
    ) -> None:
        self._catch_up = catch_up
        self._rebuilder = rebuilder
        self._invalidator = invalidator
        self._waiters = waiters
        self._health = health
        self._interval_s = interval_s
        self._cut_off_pause_s = cut_off_pause_s
        self._lock = asyncio.Lock()
        self._catching_up: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[None] | None = None

    # On a timer

    async def run(self) -> None:
        """Catch up on the timer, until cancelled."""
        await every(self._interval_s, "catching up", self._tick_and_note, at_once=True)

    async def tick(self) -> None:
        """Catch up unless another process has just done so. Raises DatabaseUnavailable and CacheError."""
        async with self._lock:
            if not await self._catch_up.is_recent(self._interval_s / 2):
                await self._catch_up_once()

    async def catch_up(self) -> None:
        """Catch up once, unless another process has the lease. Raises DatabaseUnavailable and CacheError."""
        async with self._lock:
            await self._catch_up_once()

    async def _tick_and_note(self) -> None:
        try:
            try:
                await self.tick()
            except CacheError as error:
                self._health.note_redis_down(error)
                await self._health.ask_postgres()
        except Unavailable as error:
            self._health.note_postgres_down(error)

    # For callers that wait

    def ensure_catching_up(self) -> None:
        """Start catching up unless it is under way; it ends when no caller waits."""
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(
                self._catch_up_while_needed(), name="catching up for callers that wait"
            )

    async def _catch_up_while_needed(self) -> None:
        while self._waiters:
            try:
                await self.catch_up()
            except CacheError as error:
                self._health.note_redis_down(error)
                await self._invalidator.invalidate("it could not be caught up")
                if self._waiters:
                    await asyncio.sleep(self._cut_off_pause_s)
            except DatabaseUnavailable as error:
                self._health.note_postgres_down(error)
                await self._invalidator.invalidate("PostgreSQL cannot be asked")
            except Exception:
                _log.exception("catching up failed")
                await self._invalidator.invalidate("catching up failed")
            if self._waiters:
                await asyncio.sleep(random.uniform(*_PAUSE_S))

    async def _catch_up_once(self) -> None:
        needed = await self._catch_up.run()
        if needed is not None:
            await self.rebuild_soon(needed)

    # By hand

    async def catch_up_now(self) -> CacheState:
        """Bring the cache to the present, rebuilding it if needed; returns its state.

        Raises CacheError after 30 s, and DatabaseUnavailable.
        """
        present = await self._health.ask_postgres()
        deadline = time.monotonic() + _BY_HAND_S
        while (state := self._catch_up.state) is None or not state.position.reflects(present):
            if time.monotonic() > deadline:
                raise CacheError(f"the cache could not be brought up to date within {_BY_HAND_S} s")
            await self.catch_up()
            if self._rebuilding is not None:
                await self._rebuilding
            await asyncio.sleep(random.uniform(*_PAUSE_S))
        return state

    async def discard(self, reason: str) -> None:
        """Make the cache invalid, and rebuild it in the background."""
        await self.rebuild_soon(RebuildNeeded(reason))

    # Rebuilding

    async def rebuild_soon(self, needed: RebuildNeeded) -> None:
        """Rebuild the cache in the background, unless that is under way."""
        if needed.invalidate:
            await self._invalidator.invalidate(needed.reason)
        if self._rebuilding is None or self._rebuilding.done():
            self._rebuilder.note_need(lost=needed.lost)
            self._rebuilding = asyncio.create_task(
                self._rebuild_in_background(needed.reason), name="rebuilding the cache"
            )

    async def rebuild(self, reason: str) -> bool:
        """Rebuild the cache now and catch it up; returns False if another process rebuilds.

        Raises DatabaseUnavailable and CacheError.
        """
        if not await self._rebuilder.install(reason):
            return False
        async with self._lock:
            self._catch_up.own_state.forget()
            await self._catch_up_once()
        return True

    async def _rebuild_in_background(self, reason: str) -> None:
        await self._rebuilder.pause()
        try:
            await self.rebuild(reason)
        except CacheError as error:
            self._health.note_redis_down(error)
        except DatabaseUnavailable as error:
            self._health.note_postgres_down(error)
        except Exception:
            _log.exception("rebuilding the cache failed")

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in (self._catching_up, self._rebuilding):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
