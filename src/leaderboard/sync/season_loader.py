"""Loads seasons of boards other than `default` into the cache when they are read often enough.

A season is loaded beside the cache from one snapshot of PostgreSQL. The next catching up admits it
(`cached_seasons.py`). Which seasons are evicted for it is decided by how often each was read of late, in all
processes: each reports its reads every few seconds.
"""

import asyncio

import structlog

from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.seasons import CachedSeason, season_name
from leaderboard.cache.state import trimmed
from leaderboard.database.users import Users
from leaderboard.errors import BoardNotFound, CacheError, SeasonNotFound, Unavailable
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.periodic import every
from leaderboard.queries import SeasonRef
from leaderboard.tuning import SeasonTuning

_log = structlog.get_logger(__name__)


class SeasonLoader:
    """Counts the reads of one process, and loads what is read often."""

    def __init__(
        self, users: Users, store: SeasonStore, health: Health, metrics: Metrics, tuning: SeasonTuning
    ) -> None:
        self._users = users
        self._store = store
        self._health = health
        self._metrics = metrics
        self._tuning = tuning
        self._reads: dict[str, int] = {}
        self._misses: dict[str, int] = {}
        self._loading: asyncio.Task[None] | None = None
        self._wanted: dict[str, SeasonRef] = {}
        self._tries = 0

    def note_read(self, season: SeasonRef, *, cached: bool) -> None:
        """Note a read of a season, and whether it was answered from the cache."""
        name = season_name(season)
        self._reads[name] = self._reads.get(name, 0) + 1
        if cached:
            return
        misses = self._misses[name] = self._misses.get(name, 0) + 1
        # Another try comes after the next report at the earliest.
        if misses == self._tuning.load_after:
            self._wanted[name] = season
            if self._loading is None or self._loading.done():
                self._loading = asyncio.create_task(self._load_wanted(), name="loading seasons for the cache")

    async def run(self) -> None:
        """Report reads on a timer, until cancelled."""
        await every(self._tuning.report_s, "reporting reads of seasons", self.report)

    async def report(self) -> None:
        """Report how often seasons were read since the last report, also if none was. Raises CacheError."""
        reads, self._reads, self._misses, self._tries = self._reads, {}, {}, 0
        # What is still wanted will be wanted again.
        self._wanted.clear()
        most = sorted(reads, key=reads.__getitem__, reverse=True)[: self._tuning.max_reported]
        evicted = await self._store.note_reads({name: reads[name] for name in most})
        self._metrics.season_evictions.inc(len(evicted))

    async def close(self) -> None:
        """Cancel what is under way."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    async def _load_wanted(self) -> None:
        while self._wanted and self._tries < self._tuning.max_tries:
            self._tries += 1
            name = next(iter(self._wanted))
            season = self._wanted.pop(name)
            try:
                await self.load(season)
            except (BoardNotFound, SeasonNotFound):
                pass  # It has been deleted meanwhile.
            except (CacheError, Unavailable) as error:
                # Nothing is lost: PostgreSQL goes on answering for this season.
                _log.warning("a season was not loaded for the cache", season=name, reason=str(error))
            except Exception:
                _log.exception("loading a season failed", season=name)

    async def load(self, season: SeasonRef) -> bool:
        """Load a season beside the cache; returns False if another process does so, or there is no room.

        Raises CacheError, Unavailable, BoardNotFound and SeasonNotFound.
        """
        name = season_name(season)
        load = await self._store.claim(name, self._reads.get(name, 0))
        if load is None:
            return False
        keep = self._store.keep
        best = await self._users.best_of_season(keep + 1, season)
        self._health.note_postgres(best.position)
        found = best.value
        users, floor = trimmed(found.users, keep)
        cached = CachedSeason(
            load,
            load.encode(),
            len(users),
            found.total,
            floor,
            found.season_id,
            found.board_id,
            found.tie_bits,
            found.rules,
        )
        evicted = await self._store.offer(name, cached, users, best.position, self._reads.get(name, 0))
        if evicted is None:
            return False
        self._metrics.season_loads.inc()
        self._metrics.season_evictions.inc(len(evicted))
        _log.debug("season loaded for the cache", season=name, users=len(users), evicted=len(evicted))
        return True
