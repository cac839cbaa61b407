"""Answers batches of queries from the cache, where it may be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from leaderboard.batching import Batch
from leaderboard.cache.reader import CacheReader
from leaderboard.cache.season_reader import SeasonReader
from leaderboard.errors import CacheError, LeaderboardError
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import Result
from leaderboard.queries import RankingQuery, SeasonRef
from leaderboard.snapshot import same_database
from leaderboard.sync.season_loader import SeasonLoader

R = TypeVar("R", bound=Result)


@dataclass(slots=True)
class Reply(Generic[R]):
    """A result. The callers of equal queries in one batch of cache reads share it.

    `age_s` is set only while PostgreSQL is unreachable: the result may be as old as that. `response` is the
    encoded response, kept by the first request that sends it.
    """

    result: R
    age_s: float | None = None
    response: Any = None


class CacheReads:
    """The reads of the cache by one process: of the board `default`, and of seasons of other boards."""

    def __init__(
        self,
        default: CacheReader,
        seasons: SeasonReader,
        loader: SeasonLoader,
        health: Health,
        metrics: Metrics,
        fresh_s: float,
    ) -> None:
        self._default = default
        self._seasons = seasons
        self._loader = loader
        self._health = health
        self._metrics = metrics
        self._fresh_s = fresh_s

    def note_read(self, season: SeasonRef | None, *, cached: bool) -> None:
        """Note that a season was read, and whether it was cached: seasons are loaded by that."""
        if season is not None:
            self._loader.note_read(season, cached=cached)

    async def read(
        self, queue: str, batch: Batch[RankingQuery[Any]]
    ) -> list[Reply[Any] | LeaderboardError | None]:
        """Return a reply for each query, or its error; None where PostgreSQL has to be asked."""
        self._metrics.batch_items.labels(queue).observe(len(batch.items))
        replies: list[Reply[Any] | LeaderboardError | None] = [None] * len(batch.items)
        groups: dict[tuple[bool, bool], list[int]] = {}
        for at, query in enumerate(batch.items):
            groups.setdefault((query.season is None, query.stale), []).append(at)
        for (default, stale), asked in groups.items():
            cache = self._default if default else self._seasons
            found = await self._read(cache, [batch.items[at] for at in asked], stale=stale)
            for at, reply in zip(asked, found, strict=True):
                replies[at] = reply
        return replies

    async def _read(
        self, cache: CacheReader | SeasonReader, queries: Sequence[RankingQuery[Any]], *, stale: bool
    ) -> list[Reply[Any] | LeaderboardError | None]:
        nothing: list[Reply[Any] | LeaderboardError | None] = [None] * len(queries)
        try:
            reading = await cache.read(queries, None if stale else self._fresh_s)
        except CacheError:
            return nothing
        epoch = self._health.epoch
        if reading is None or epoch is None:
            return nothing
        if not (same_database(reading.epoch, epoch) if stale else reading.epoch == epoch):
            return nothing
        age_s = reading.age_s if stale else None
        return [
            result if result is None or isinstance(result, LeaderboardError) else Reply(result, age_s)
            for result in reading.results
        ]
