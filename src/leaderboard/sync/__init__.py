"""Keeps the cache equal to PostgreSQL, and says when a write is visible.

The cache shows the best users as of one PostgreSQL snapshot, which is stored beside them. There is one way to move
it: *catch up* (`catch_up.py`). A cache that cannot be caught up is *rebuilt*, and stays invalid until the next
catching up (`rebuild.py`). A writer is answered when its commit is visible (`visibility.py`). Every process does
all of this; a lease keeps several from doing the same work at once. docs/architecture.md explains why that is
enough.
"""

from dataclasses import dataclass

from leaderboard.cache.reader import CacheReader
from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.store import CacheStore
from leaderboard.database.database import Database
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.sync.audit import CacheAuditor
from leaderboard.sync.catch_up import CatchUp
from leaderboard.sync.invalidation import Invalidator
from leaderboard.sync.rebuild import Rebuilder
from leaderboard.sync.season_loader import SeasonLoader
from leaderboard.sync.synchronizer import Synchronizer
from leaderboard.sync.visibility import Visibility
from leaderboard.sync.waiters import Waiters
from leaderboard.tuning import Tuning


@dataclass(frozen=True, slots=True)
class CacheSync:
    """The parts that others use."""

    visibility: Visibility
    synchronizer: Synchronizer
    auditor: CacheAuditor
    season_loader: SeasonLoader

    @classmethod
    def build(
        cls,
        database: Database,
        cache: CacheStore,
        reader: CacheReader,
        health: Health,
        metrics: Metrics,
        seasons: SeasonStore,
        *,
        interval_s: float,
        tuning: Tuning,
    ) -> "CacheSync":
        """Wire the parts for one process."""
        season_loader = SeasonLoader(database.users, seasons, health, metrics, tuning.seasons)
        waiters = Waiters()
        invalidator = Invalidator(cache, waiters, health, metrics, tuning.sync.fresh_s)
        catch_up = CatchUp(database.change_log, cache, waiters, invalidator, health, metrics, tuning.sync)
        rebuilder = Rebuilder(database.users, cache, health, metrics, tuning.sync)
        synchronizer = Synchronizer(
            catch_up, rebuilder, invalidator, waiters, health, interval_s, tuning.sync.cut_off_pause_s
        )
        visibility = Visibility(catch_up, synchronizer, invalidator, waiters, metrics, tuning.sync)
        auditor = CacheAuditor(database.change_log, cache, seasons, reader, metrics)
        return cls(visibility, synchronizer, auditor, season_loader)
