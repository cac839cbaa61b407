"""Keeps the rank index up to date, and repairs it (`database/rank_index.py` says how)."""

import asyncio
import time
from collections.abc import Sequence

import structlog

from leaderboard.database.rank_index import RankIndex
from leaderboard.errors import Unavailable
from leaderboard.metrics import Metrics
from leaderboard.periodic import every

_LOOK_FOR_LARGE_S = 5.0
"""How often to look for seasons that need an index. Each with few entries costs half a millisecond."""

_log = structlog.get_logger(__name__)


class RankIndexMaintainer:
    """Maintains the rank index, as one process among several."""

    def __init__(self, ranks: RankIndex, metrics: Metrics, interval_s: float) -> None:
        self._ranks = ranks
        self._metrics = metrics
        self._interval_s = interval_s
        self._failing = False

    async def run(self) -> None:
        """Maintain the indexes on a timer, until cancelled."""
        await asyncio.gather(
            every(self._interval_s, "maintaining the rank index", self.maintain, at_once=True),
            every(self._interval_s, "maintaining the rank indexes of seasons", self.maintain_seasons),
            every(_LOOK_FOR_LARGE_S, "building the rank indexes of seasons", self.build_missing),
        )

    async def maintain_seasons(self) -> None:
        """Apply the log to the indexes of all boards but `default`. Raises DatabaseUnavailable."""
        await self._maintain(await self._ranks.changed_seasons())

    async def build_missing(self) -> None:
        """Build the indexes of seasons that have become large. Raises DatabaseUnavailable."""
        await self._maintain(await self._ranks.unindexed_seasons())

    async def _maintain(self, seasons: Sequence[int]) -> None:
        for season_id in seasons:
            state = await self._ranks.maintain(season_id)
            if state is not None and state.needs_repair:
                await self._ranks.repair(season_id)

    async def maintain(self) -> float | None:
        """Apply the log to the index, or repair it; returns how many seconds a repair took.

        Repairing takes half of the time at most, whatever makes the index invalid again and again. Raises
        DatabaseUnavailable.
        """
        started = time.monotonic()
        repairing = False
        try:
            repairing = await self._apply_log()
            if repairing:
                await self._repair()
        except Unavailable as error:
            self._metrics.rank_index_up.set(False)
            if repairing and not self._failing:
                self._failing = True
                _log.warning("the rank index cannot be repaired, ranks are counted", error=str(error))
        except Exception:
            # Not raised, because a repair that failed is not tried again at once either.
            self._metrics.rank_index_up.set(False)
            _log.exception("maintaining the rank index failed")
        return time.monotonic() - started if repairing else None

    async def _apply_log(self) -> bool:
        """Apply the log if enough is pending; returns whether the index needs repair."""
        started = time.perf_counter()
        state = await self._ranks.maintain()
        if state is None:
            return False
        self._metrics.rank_index_up.set(state.valid)
        self._metrics.rank_index_pending.set(state.pending)
        if state.applied:
            self._metrics.rank_index_updates.inc()
            self._metrics.rank_index_update_seconds.observe(time.perf_counter() - started)
        if state.valid and self._failing:
            self._failing = False
            _log.info("the rank index is valid again")
        return state.needs_repair

    async def _repair(self) -> None:
        started = time.perf_counter()
        repair = await self._ranks.repair()
        seconds = round(time.perf_counter() - started, 3)
        if repair == "built":
            self._metrics.rank_index_builds.inc()
            _log.info("rank index built", seconds=seconds)
        elif repair == "log applied":
            self._metrics.rank_index_updates.inc()
            _log.info("a long log was applied to the rank index", seconds=seconds)
