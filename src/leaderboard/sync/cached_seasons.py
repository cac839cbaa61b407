"""The other seasons' part of a catching up: what to ask PostgreSQL, and what to do with the answer.

A season is cached, and moves with the cache from its snapshot S to the next one, S'. Or it was loaded beside the
cache from a snapshot L, and is *admitted*: it moves from L to S'. Neither S nor L has to be the newer one. What
matters:

  1. the load was pending when the token was read, before PostgreSQL was asked. So S' covers L;
  2. exactly the log rows count that L does not see. Users may be set twice, the total is a sum;
  3. the log still lists them all, as it must for S;
  4. a season that cannot be caught up is dropped by the apply that moves on to S'. Otherwise it could be read at a
     snapshot that it is not at.
"""

from collections.abc import Sequence

from leaderboard.cache.seasons import Action, CachedSeason, PendingLoad, SeasonMove
from leaderboard.cache.state import CacheState
from leaderboard.database.change_log import Changes, SeasonChanges, SeasonView
from leaderboard.snapshot import Snapshot

MAX_CHANGES = 2000
"""An apply makes so many changes to other seasons at most, which takes Redis some 10 ms.

It drops the seasons that have the most.
"""


class CachedSeasons:
    """The seasons of one state of the cache, and the loads that were pending then."""

    def __init__(self, state: CacheState, size: int) -> None:
        """`size`: a season with fewer users is dropped, unless it has all.

        An entry that another program has written is dropped. Raises TypeError for a state without its seasons.
        """
        if state.seasons is None:
            raise TypeError("a state that was polled without the lease does not say which seasons are cached")
        self._size = size
        self._cached: dict[str, CachedSeason] = {}
        self._pending: dict[str, tuple[bytes, PendingLoad]] = {}
        self._unreadable: list[SeasonMove] = []
        for name, stored in state.seasons.items():
            try:
                self._cached[name] = CachedSeason.parse(stored)
            except ValueError:
                self._unreadable.append(SeasonMove(name, Action.DROP, CachedSeason.unreadable(stored)))
        for name, stored in (state.pending or {}).items():
            try:
                self._pending[name] = stored, PendingLoad.parse(stored)
            except ValueError:
                season = CachedSeason.unreadable(stored)
                self._unreadable.append(SeasonMove(name, Action.REJECT, season, stored))

    def views(self) -> list[SeasonView]:
        """Return what to ask the change log about: the cached seasons, then the loads."""
        return [
            *[_view(season) for season in self._cached.values()],
            *[_view(load.season, load.position.snapshot) for _, load in self._pending.values()],
        ]

    def moves(self, changes: Changes) -> list[SeasonMove]:
        """Return what to do with the seasons that changed, and with all loads."""
        found = iter(changes.seasons)
        moves = [
            move
            for name, season in self._cached.items()
            if (move := self._move(name, season, next(found))) is not None
        ]
        moves += [
            self._admission(name, stored, load, changes, next(found))
            for name, (stored, load) in self._pending.items()
        ]
        return self._unreadable + _within(MAX_CHANGES, moves)

    def _move(self, name: str, season: CachedSeason, changes: SeasonChanges) -> SeasonMove | None:
        too_few = not season.complete and season.count < self._size
        if too_few or not changes.reaches:
            return SeasonMove(name, Action.DROP, season)
        if not (changes.changed or changes.deleted or changes.added):
            return None
        return SeasonMove(name, Action.SET, season, b"", changes.changed, changes.deleted, changes.added)

    def _admission(
        self, name: str, stored: bytes, load: PendingLoad, changes: Changes, found: SeasonChanges
    ) -> SeasonMove:
        if name in self._cached or not found.reaches or not changes.position.reflects(load.position):
            return SeasonMove(name, Action.REJECT, load.season, stored)
        return SeasonMove(name, Action.ADMIT, load.season, stored, found.changed, found.deleted, found.added)


def _view(season: CachedSeason, since: Snapshot | None = None) -> SeasonView:
    lowest = None if season.floor is None else season.floor.total_score
    return SeasonView(season.season_id, season.board_id, lowest, since)


def _within(most: int, moves: Sequence[SeasonMove]) -> list[SeasonMove]:
    """Drop the seasons with the most changes until there are at most so many."""
    within: list[SeasonMove] = []
    for move in sorted(moves, key=_change_count):
        most -= _change_count(move)
        if most >= 0 or not _change_count(move):
            within.append(move)
        else:
            action = Action.REJECT if move.action is Action.ADMIT else Action.DROP
            within.append(SeasonMove(move.name, action, move.season, move.pending))
    return within


def _change_count(move: SeasonMove) -> int:
    return len(move.changed) + len(move.deleted)
