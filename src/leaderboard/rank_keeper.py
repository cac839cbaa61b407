"""Maintains the rank index in the background, in every process: folds, builds, and recounts parts of it.

`database/rank_index.py` says what these do; this says when they run, and logs and counts them.
"""

import asyncio
import random
import time

import structlog

from leaderboard.database.rank_index import RankIndex
from leaderboard.errors import Unavailable
from leaderboard.observe import Metrics

_log = structlog.get_logger(__name__)


class RankIndexMaintainer:
    """Tends the rank index of one board, as one process among several."""

    def __init__(self, ranks: RankIndex, metrics: Metrics, interval_s: float) -> None:
        self._ranks = ranks
        self._metrics = metrics
        self._interval_s = interval_s
        self._failing = False

    async def run(self) -> None:
        """Tend it on a timer, until cancelled."""
        while True:
            started = time.monotonic()
            repairing = False
            try:
                repairing = await self._tend()
                if repairing:
                    await self._repair()
            except Unavailable as error:
                self._metrics.rank_index_up.set(False)
                if repairing and not self._failing:
                    self._failing = True
                    _log.warning("the rank index cannot be repaired, ranks are counted", error=str(error))
            except Exception:
                self._metrics.rank_index_up.set(False)
                _log.exception("keeping the rank index failed")
            # While something makes it useless again and again, repairing takes half of the time at most.
            pause_s = max(self._interval_s, time.monotonic() - started if repairing else 0)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def _tend(self) -> bool:
        """Whether it wants to be repaired."""
        started = time.perf_counter()
        tended = await self._ranks.tend()
        if tended is None:
            return False
        self._metrics.rank_index_up.set(tended.usable)
        self._metrics.rank_index_unfolded.set(tended.unfolded)
        if tended.folded:
            self._metrics.folds.inc()
            self._metrics.fold_seconds.observe(time.perf_counter() - started)
        if tended.usable and self._failing:
            self._failing = False
            _log.info("the rank index is in use again")
        return tended.wants_repair

    async def _repair(self) -> None:
        started = time.perf_counter()
        repair = await self._ranks.repair()
        seconds = round(time.perf_counter() - started, 3)
        if repair == "built":
            self._metrics.rank_index_builds.inc()
            _log.info("rank index built", seconds=seconds)
        elif repair == "folded":
            self._metrics.folds.inc()
            _log.info("rank index folded after a long time", seconds=seconds)

    async def recount_regularly(self, interval_s: float) -> None:
        """Recount a part of it on a timer, until cancelled; throw it away after a difference."""
        while True:
            await asyncio.sleep(interval_s * random.uniform(0.8, 1.2))
            try:
                await self.recount()
            except Unavailable:
                continue
            except Exception:
                _log.exception("recounting a part of the rank index failed")

    async def recount(self) -> None:
        """Recount a part of it, and throw it away after a difference. Raises DatabaseUnavailable."""
        wrong = await self._ranks.recount()
        if wrong:
            self._metrics.rank_index_differences.inc(len(wrong))
            shown = [str(bucket) for bucket in wrong[:5]]
            _log.error("the rank index was wrong", buckets=len(wrong), first=shown)
            await self._ranks.discard()
