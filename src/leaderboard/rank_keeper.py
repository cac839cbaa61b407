"""Keeps the rank index good in the background, in every process: folds, builds, and recounts some of it.

What any of this means is said in `truth/rank_index.py`; here is only when it is done and what is told of it.
"""

import asyncio
import random
import time

import structlog

from leaderboard.errors import Unavailable
from leaderboard.observe import Metrics
from leaderboard.truth.rank_index import RankIndex

_log = structlog.get_logger(__name__)


class RankKeeper:
    """Tends the rank index of one board, as one process among several."""

    def __init__(self, ranks: RankIndex, metrics: Metrics, interval_s: float) -> None:
        self._ranks = ranks
        self._metrics = metrics
        self._interval_s = interval_s

    async def run(self) -> None:
        """Tend it on a timer, until cancelled."""
        while True:
            started = time.monotonic()
            built = False
            try:
                built = await self._tend()
            except Unavailable:
                pass
            except Exception:
                _log.exception("keeping the rank index failed")
            # While something makes it useless again and again, building it takes half of the time at most.
            pause_s = max(self._interval_s, time.monotonic() - started if built else 0)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def _tend(self) -> bool:
        started = time.perf_counter()
        tended = await self._ranks.tend()
        self._metrics.rank_index_up.set(tended.unfolded is not None or tended.built)
        self._metrics.rank_index_unfolded.set(tended.unfolded or 0)
        seconds = time.perf_counter() - started
        if tended.folded:
            self._metrics.folds.inc()
            self._metrics.fold_seconds.observe(seconds)
        if tended.built:
            self._metrics.rank_index_builds.inc()
            _log.info("rank index built", seconds=round(seconds, 3))
        return tended.built

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
        """Recount a part of it, and throw it away after a difference. Raises TruthUnavailable."""
        wrong = await self._ranks.recount()
        if wrong:
            self._metrics.rank_index_differences.inc(len(wrong))
            shown = [str(bucket) for bucket in wrong[:5]]
            _log.error("the rank index was wrong", buckets=len(wrong), first=shown)
            await self._ranks.discard()
