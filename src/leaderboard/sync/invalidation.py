"""Makes the cache invalid, so that callers need not wait until it is caught up."""

import time
from collections.abc import Sequence

import structlog

from leaderboard.cache.store import CacheStore
from leaderboard.errors import CacheError, CacheHangs
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.snapshot import CommitPosition, Position
from leaderboard.sync.waiters import Waiters

_log = structlog.get_logger(__name__)


class Invalidator:
    """Invalidates the cache, and releases the callers that waited when it began.

    `fresh_s`: after so long, a state of the cache is not read any more.
    """

    def __init__(
        self, cache: CacheStore, waiters: Waiters, health: Health, metrics: Metrics, fresh_s: float
    ) -> None:
        self._cache = cache
        self._waiters = waiters
        self._health = health
        self._metrics = metrics
        self._fresh_s = fresh_s

    async def invalidate(self, reason: str) -> None:
        """Make the cache invalid, and release the callers that wait now.

        While Redis hangs, tries again: Redis may go on at any moment with the state that it has. After `fresh_s`,
        no state from before the callers' commits is read any more. When Redis is unreachable, this process is cut
        off, and other processes read an old state for `fresh_s` at most.
        """
        waiting = self._waiters.positions()
        began = time.monotonic()
        while True:
            try:
                if not await self._cache.invalidate():
                    waiting = self.answerable_without_cache(waiting)
                self._metrics.invalidations.inc()
                _log.debug("cache invalidated", reason=reason)
                break
            except CacheHangs as error:
                if time.monotonic() - began > self._fresh_s:
                    self._health.note_redis_down(error)
                    break
            except CacheError as error:
                self._health.note_redis_down(error)
                waiting = self.answerable_without_cache(waiting)
                break
        self._waiters.release(waiting)

    def answerable_without_cache(self, positions: Sequence[Position]) -> list[Position]:
        """Return the positions whose callers need not wait when this process finds no cache.

        These are all of them, unless Redis may fail over: then other processes may have a cache, on a server that
        this process has not found yet. In that case a writer waits until `fresh_s` have passed, when no state from
        before its commit is read any more. A reader does not wait for that.
        """
        if not self._cache.may_switch:
            return list(positions)
        past = time.monotonic() - self._fresh_s
        return [
            position
            for position in positions
            if not isinstance(position, CommitPosition) or self._waiters.since(position) <= past
        ]
