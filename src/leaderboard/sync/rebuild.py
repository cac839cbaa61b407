"""Rebuilds the cache: loads it beside the old one from one snapshot, and swaps it in.

The new cache is invalid until it has been caught up (`catch_up.py`). A write may have been acknowledged since the
snapshot, while there was no cache to wait for; the catching up brings it in.
"""

import asyncio
import secrets
import time

import structlog

from leaderboard.cache.state import trimmed
from leaderboard.cache.store import MAX_CLAIM_MS, CacheStore
from leaderboard.database.users import Users
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.tuning import SyncTuning

_log = structlog.get_logger(__name__)


class Rebuilder:
    """Rebuilds the cache, under a claim that one process at a time has."""

    def __init__(
        self, users: Users, cache: CacheStore, health: Health, metrics: Metrics, tuning: SyncTuning
    ) -> None:
        self._users = users
        self._cache = cache
        self._health = health
        self._metrics = metrics
        self._tuning = tuning
        self._claim_ms = tuning.claim_ms
        self._rebuilt_at = float("-inf")
        self._short_lives = 0

    def note_need(self, *, lost: bool) -> None:
        """Note why a rebuild is needed: many losses in a row make the pauses before a rebuild longer."""
        if not lost or time.monotonic() - self._rebuilt_at > self._tuning.short_life_s:
            self._short_lives = 0

    async def pause(self) -> None:
        """Wait before a rebuild, the longer the more caches did not live long."""
        if self._short_lives > 1:
            pause_s = 0.05 * 2 ** min(self._short_lives, 10)
            await asyncio.sleep(min(self._tuning.max_rebuild_pause_s, pause_s))

    async def install(self, reason: str) -> bool:
        """Load the best users and swap them in, invalid; returns False if another process rebuilds.

        Raises DatabaseUnavailable and CacheError.
        """
        started = time.perf_counter()
        nonce = secrets.token_hex(8)
        asof = await self._cache.claim(nonce, self._claim_ms)
        if asof is None:
            return False
        best = await self._users.top_and_total(self._cache.keep + 1)
        self._health.note_postgres(best.position)
        users, floor = trimmed(best.value.users, self._cache.keep)
        total = best.value.total
        if not await self._cache.install(nonce, self._claim_ms, asof, best.position, users, floor, total):
            self._claim_ms = min(2 * self._claim_ms, MAX_CLAIM_MS)
            _log.warning("a rebuild of the cache took longer than its claim", next_claim_ms=self._claim_ms)
            return False
        self._rebuilt_at = time.monotonic()
        self._short_lives += 1
        seconds = time.perf_counter() - started
        self._metrics.rebuilds.inc()
        self._metrics.rebuild_seconds.observe(seconds)
        _log.info("cache rebuilt", reason=reason, users=len(users), seconds=round(seconds, 3))
        return True
