"""Audits the cache and the rank index on a timer, and discards what is wrong."""

import structlog

from leaderboard.database.rank_index import RankIndex
from leaderboard.errors import CacheDamaged
from leaderboard.metrics import Metrics
from leaderboard.periodic import every
from leaderboard.sync import CacheSync
from leaderboard.sync.catch_up import RebuildNeeded

_SEASONS = 20
"""Seasons of other boards that one audit compares."""
_SHOWN = 5
"""Differences that a log line lists."""

_log = structlog.get_logger(__name__)


class CacheAudits:
    """Compares the cache with the users in PostgreSQL."""

    def __init__(self, sync: CacheSync, metrics: Metrics, interval_s: float) -> None:
        self._sync = sync
        self._metrics = metrics
        self._interval_s = interval_s

    async def run(self) -> None:
        """Audit on the timer, until cancelled."""
        await every(self._interval_s, "auditing the cache", self.audit)

    async def audit(self) -> None:
        """Audit the cache, and rebuild it after a difference. Raises DatabaseUnavailable and CacheError."""
        try:
            audit = await self._sync.auditor.audit()
        except CacheDamaged:
            self._metrics.audit_differences.inc()
            await self._sync.synchronizer.rebuild_soon(RebuildNeeded("it could not be read", invalidate=False))
            return
        if audit.differences or audit.totals:
            self._metrics.audit_differences.inc(len(audit.differences) + bool(audit.totals))
            _log.error(
                "the cache differed from PostgreSQL",
                users=len(audit.differences),
                first=[str(difference) for difference in audit.differences[:_SHOWN]],
                totals=audit.totals,
            )
            await self._sync.synchronizer.discard("an audit found differences")
        await self._audit_seasons()

    async def _audit_seasons(self) -> None:
        for name, audit in (await self._sync.auditor.audit_seasons(_SEASONS)).items():
            if audit.differences or audit.totals:
                self._metrics.audit_differences.inc(len(audit.differences) + bool(audit.totals))
                _log.error(
                    "a cached season differed from PostgreSQL",
                    season=name,
                    users=len(audit.differences),
                    first=[str(difference) for difference in audit.differences[:_SHOWN]],
                    totals=audit.totals,
                )
                await self._sync.auditor.evict(name)


class RankIndexAudits:
    """Counts parts of the rank index again."""

    def __init__(self, ranks: RankIndex, metrics: Metrics, interval_s: float) -> None:
        self._ranks = ranks
        self._metrics = metrics
        self._interval_s = interval_s

    async def run(self) -> None:
        """Recount on the timer, until cancelled."""
        await every(self._interval_s, "recounting a part of the rank index", self.recount)

    async def recount(self) -> None:
        """Count some buckets, and discard the index after a difference. Raises DatabaseUnavailable."""
        wrong = await self._ranks.recount()
        if wrong:
            self._metrics.rank_index_differences.inc(len(wrong))
            shown = [str(bucket) for bucket in wrong[:_SHOWN]]
            _log.error("the rank index differed from PostgreSQL", buckets=len(wrong), first=shown)
            await self._ranks.discard()
