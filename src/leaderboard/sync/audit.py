"""Audits the cache: compares it with PostgreSQL at one snapshot, user by user."""

from dataclasses import dataclass, field

import structlog

from leaderboard.cache.reader import CacheReader
from leaderboard.cache.state import Export, Floor
from leaderboard.cache.store import CacheStore
from leaderboard.database.change_log import ChangeLog, Changes
from leaderboard.errors import CacheDamaged
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


class CacheAuditor:
    """Audits the cache and this process's replica of it."""

    def __init__(self, change_log: ChangeLog, cache: CacheStore, reader: CacheReader, metrics: Metrics) -> None:
        self._change_log = change_log
        self._cache = cache
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
        cached, floor = _caught_up(export, changes, keep)
        stored = best.users[:keep] if floor is None else [user for user in best.users if floor.includes(user)]
        total = export.total + changes.added
        return Audit(
            len(cached),
            differences=_differences(cached, stored),
            totals=None if total == best.total else (total, best.total),
        )

    async def drop_unreadable(self) -> str | None:
        """Drop the cache if it cannot be read, and return why. Raises CacheError.

        Catching up reads only the state, and would not notice.
        """
        try:
            await self._cache.export()
        except CacheDamaged as error:
            return str(error)
        return None


def _caught_up(export: Export, changes: Changes, keep: int) -> tuple[list[User], Floor | None]:
    """Return the users that the cache would have after catching up, best first, and its floor."""
    floor = export.floor
    users = {user.user_id: user for user in export.users}
    for user_id in changes.deleted:
        users.pop(user_id, None)
    for user in changes.changed:
        users.pop(user.user_id, None)
        if floor is None or floor.includes(user):
            users[user.user_id] = user
    cached = sorted(users.values(), key=lambda user: place(user.total_score, user.user_id))
    if len(cached) > keep:
        cached = cached[:keep]
        floor = Floor(cached[-1].total_score, cached[-1].user_id)
    return cached, floor


def _differences(cached: list[User], stored: list[User]) -> list[Difference]:
    in_cache = {user.user_id: user for user in cached}
    in_postgres = {user.user_id: user for user in stored}
    return [
        Difference(user_id, in_cache.get(user_id), in_postgres.get(user_id))
        for user_id in sorted(in_cache.keys() | in_postgres.keys())
        if in_cache.get(user_id) != in_postgres.get(user_id)
    ]
