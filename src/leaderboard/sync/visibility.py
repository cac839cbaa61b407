"""Waits until a commit is visible: until every later read, on any process, shows it.

There is one exception: while this process cannot reach Redis, other processes may read an older state, for 0.8 s
at most. A caller may be answered as soon as one of these holds:

  1. the stored snapshot of the cache sees the commit: every read from now on shows it;
  2. there is no cache: a later one is caught up after this, and so shows it;
  3. this process has invalidated the cache: a catching up that was under way fails by the token, and a later one
     shows the commit.

Case 1 is the rule, within milliseconds. Case 3 is for when that takes longer than the patience. A caller that was
answered from PostgreSQL waits in the same way, so that no later read shows an older board. docs/architecture.md
has the proof, and what holds when Redis is unreachable or fails over.
"""

import asyncio
import time

import structlog

from leaderboard.metrics import Metrics
from leaderboard.snapshot import Position
from leaderboard.sync.catch_up import CatchUp
from leaderboard.sync.invalidation import Invalidator
from leaderboard.sync.synchronizer import Synchronizer
from leaderboard.sync.waiters import Waiters
from leaderboard.tuning import SyncTuning

_log = structlog.get_logger(__name__)


class Visibility:
    """Makes callers wait until their position is visible.

    After `SyncTuning.patience_s` it invalidates the cache rather than wait longer.
    """

    def __init__(
        self,
        catch_up: CatchUp,
        synchronizer: Synchronizer,
        invalidator: Invalidator,
        waiters: Waiters,
        metrics: Metrics,
        tuning: SyncTuning,
    ) -> None:
        self._catch_up = catch_up
        self._synchronizer = synchronizer
        self._invalidator = invalidator
        self._waiters = waiters
        self._metrics = metrics
        self._patience_s = tuning.patience_s
        self._fresh_s = tuning.fresh_s
        self._invalidating: asyncio.Task[None] | None = None

    @property
    def awaited(self) -> int:
        """How many positions callers wait for."""
        return len(self._waiters.positions())

    async def wait_until_visible(self, position: Position) -> None:
        """Return when no read can show a state from before `position` any more."""
        visible = self._catch_up.position
        if visible is not None and visible.reflects(position):
            return
        future = self._waiters.add(position)
        self._synchronizer.ensure_catching_up()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._patience_s):
                await asyncio.shield(future)
        except TimeoutError:
            if not future.done():
                self._waiters.note_overdue(position)
            # In a task, because this caller may be cancelled while others wait for the same position.
            if self._invalidating is None or self._invalidating.done():
                self._invalidating = asyncio.create_task(
                    self._invalidate_for_late_callers(), name="invalidating the cache"
                )
            await asyncio.shield(future)
        self._metrics.visible_seconds.observe(time.perf_counter() - started)

    async def _invalidate_for_late_callers(self) -> None:
        """Invalidate the cache while callers are overdue.

        A caller that comes while an invalidation is on its way needs another one: its commit may be later.
        """
        while self._waiters.take_overdue():
            waiting = self._waiters.positions()
            try:
                await self._invalidator.invalidate("catching up took too long")
            except Exception:
                _log.exception("invalidating the cache failed")
                # After that, no state from before their commits is read any more.
                await asyncio.sleep(self._fresh_s)
                self._waiters.release(waiting)

    async def close(self) -> None:
        """Cancel what is under way."""
        if self._invalidating is not None:
            self._invalidating.cancel()
            await asyncio.gather(self._invalidating, return_exceptions=True)
