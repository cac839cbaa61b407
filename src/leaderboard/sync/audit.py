"""Audits the cache: compares it with PostgreSQL at one snapshot, user by user."""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from leaderboard.cache.reader import CacheReader
from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.seasons import season_of
from leaderboard.cache.state import Floor, trimmed
from leaderboard.cache.store import CacheStore
from leaderboard.database.change_log import ChangeLog, Changes, SeasonChanges, SeasonView
from leaderboard.database.users import BestOfSeason, BestUsers
from leaderboard.errors import BoardNotFound, CacheDamaged, SeasonNotFound
from leaderboard.metrics import Metrics
from leaderboard.model import User
from leaderboard.ordering import place

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """A user that differs; None where the cache or PostgreSQL has no such user."""

    user_id: int
    cached: User | None
    stored: User | None


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit.

    `compared`: how many users were compared; None if nothing could be, and then `note` says why. `totals`: the
    number of users by the cache and by PostgreSQL, if they differ.
    """

    compared: int | None
    note: str = ""
    differences: list[Difference] = field(default_factory=list)
    totals: tuple[int, int] | None = None


class _Cached(NamedTuple):
    """What is cached of a season: its best users, its floor, and how many entries it has in all."""

    users: list[User]
    floor: Floor | None
    total: int


class CacheAuditor:
    """Audits the cache and this process's replica of it."""

    def __init__(
        self,
        change_log: ChangeLog,
        cache: CacheStore,
        seasons: SeasonStore,
        reader: CacheReader,
        metrics: Metrics,
    ) -> None:
        self._change_log = change_log
        self._cache = cache
        self._seasons = seasons
        self._reader = reader
        self._metrics = metrics

    async def audit(self) -> Audit:
        """Compare every cached user with PostgreSQL. Raises DatabaseUnavailable and CacheError.

        The cached users are first brought to the snapshot of the comparison, in memory. Raises CacheDamaged for a
        cache that cannot be read, after dropping it.
        """
        export = await self._cache.export()
        if export is None:
            return Audit(None, "there is no cache; all reads go to PostgreSQL")
        if not self._reader.check_replica(export):
            self._metrics.audit_differences.inc()
            _log.error("the replica differed from the cache")
        keep = self._cache.keep
        floor_score = None if export.floor is None else export.floor.total_score
        changes, best = await self._change_log.audit(
            export.position.snapshot, floor_score, 2 * self._cache.size, keep + 1
        )
        if changes.position.epoch != export.position.epoch:
            return Audit(None, "the cache is of another epoch of the database and about to be rebuilt")
        if not changes.reaches:
            return Audit(
                None, "too much changed since the cache was brought up to date; it is about to be rebuilt"
            )
        return _compare(_Cached(export.users, export.floor, export.total), changes, best, keep)

    async def audit_seasons(self, most: int) -> dict[str, Audit]:
        """Compare the users of some other cached seasons with PostgreSQL, `most` at most, chosen at random.

        Returns the results by the name of the season. Raises as `audit`.
        """
        names = await self._seasons.names()
        return {name: await self._audit_season(name) for name in random.sample(names, min(most, len(names)))}

    async def evict(self, name: str) -> None:
        """Remove a season from the cache that differs. Raises CacheError."""
        await self._seasons.evict(name)

    async def _audit_season(self, name: str) -> Audit:
        export = await self._seasons.export(name)
        if export is None:
            return Audit(None, "it is not cached any more")
        season, keep = export.season, self._cache.keep
        view = SeasonView(season.season_id, season.board_id, None)
        try:
            changes, best = await self._change_log.audit_season(
                export.position.snapshot, view, 2 * self._cache.size, season_of(name), keep + 1
            )
        except (BoardNotFound, SeasonNotFound):
            return Audit(None, "it has been deleted")
        (found,) = changes.seasons
        if changes.position.epoch != export.position.epoch or not changes.reaches or not found.reaches:
            return Audit(None, "it is about to be loaded again")
        if (season.season_id, season.tie_bits) != (best.season_id, best.tie_bits):
            # The log says that nothing has changed, so this must not be.
            return Audit(len(export.users), totals=(season.season_id, best.season_id))
        return _compare(_Cached(export.users, season.floor, season.total), found, best, keep)

    async def drop_unreadable(self) -> str | None:
        """Drop the cache if it cannot be read, and return why. Raises CacheError.

        Catching up reads only the state, and would not notice.
        """
        try:
            await self._cache.export()
        except CacheDamaged as error:
            return str(error)
        return None


def _compare(
    cached: _Cached, changes: Changes | SeasonChanges, best: BestUsers | BestOfSeason, keep: int
) -> Audit:
    """Bring what is cached to the snapshot of the comparison, and compare it."""
    floor = cached.floor
    users = {user.user_id: user for user in cached.users}
    for user_id in changes.deleted:
        users.pop(user_id, None)
    for user in changes.changed:
        users.pop(user.user_id, None)
        if floor is None or floor.includes(user):
            users[user.user_id] = user
    present = sorted(users.values(), key=lambda user: place(user.total_score, user.user_id))
    present, raised = trimmed(present, keep)
    floor = raised or floor
    stored = best.users[:keep] if floor is None else [user for user in best.users if floor.includes(user)]
    total = cached.total + changes.added
    return Audit(
        len(present),
        differences=_differences(present, stored),
        totals=None if total == best.total else (total, best.total),
    )


def _differences(cached: list[User], stored: list[User]) -> list[Difference]:
    in_cache = {user.user_id: user for user in cached}
    in_postgres = {user.user_id: user for user in stored}
    return [
        Difference(user_id, in_cache.get(user_id), in_postgres.get(user_id))
        for user_id in sorted(in_cache.keys() | in_postgres.keys())
        if in_cache.get(user_id) != in_postgres.get(user_id)
    ]
