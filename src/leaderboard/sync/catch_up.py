"""Catches up: moves the cache from the snapshot it shows to a newer one.

Read the stored snapshot, ask PostgreSQL in one statement what changed since, and set the changed users to their
present state. One script does the last step, and first checks by the token that no other process has changed the
cache meanwhile. It moves the board `default` and all other cached seasons to the same snapshot. Applying is by
state, so it does not matter how often, in which order or by which process it is done.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.cache.seasons import SeasonMove
from leaderboard.cache.state import CacheState
from leaderboard.cache.store import CacheStore, NotApplied
from leaderboard.database.change_log import ChangeLog, Changes, SeasonView
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.snapshot import SnapshotPosition
from leaderboard.sync.cached_seasons import MAX_CHANGES, CachedSeasons
from leaderboard.sync.invalidation import Invalidator
from leaderboard.sync.waiters import Waiters
from leaderboard.tuning import SyncTuning


@dataclass(frozen=True, slots=True)
class RebuildNeeded:
    """Why the cache has to be rebuilt.

    `invalidate`: it must not be read until then. `lost`: Redis has lost or damaged it, which may happen again
    soon.
    """

    reason: str
    invalidate: bool = True
    lost: bool = True


class OwnState:
    """The state that this process's last `apply` made, so that the next catching up can skip the poll."""

    def __init__(self, max_age_s: float) -> None:
        self._max_age_s = max_age_s
        self._state: CacheState | None = None
        self._taken: CacheState | None = None
        self._made_at = float("-inf")
        self._sole_writer = False

    def keep(self, state: CacheState) -> None:
        """Keep the state that `apply` has just made."""
        self._state, self._made_at = state, time.monotonic()

    def forget(self) -> None:
        """Drop the state: the cache has been replaced."""
        self._state = None

    def take(self) -> CacheState | None:
        """Return the state once, if it is recent and no other process has changed the cache of late."""
        self._taken, self._state = self._state, None
        recent = time.monotonic() - self._made_at < self._max_age_s
        return self._taken if self._sole_writer and recent else None

    def compare(self, polled: CacheState | None) -> None:
        """Learn from a poll whether this process alone changes the cache.

        Then it costs less to lose the race now and then than to poll each time.
        """
        self._sole_writer = polled is not None and self._taken is not None and polled.token == self._taken.token


class CatchUp:
    """Catches the cache up, as one process among several."""

    def __init__(
        self,
        change_log: ChangeLog,
        cache: CacheStore,
        waiters: Waiters,
        invalidator: Invalidator,
        health: Health,
        metrics: Metrics,
        tuning: SyncTuning,
    ) -> None:
        self._change_log = change_log
        self._cache = cache
        self._waiters = waiters
        self._invalidator = invalidator
        self._health = health
        self._metrics = metrics
        self._lease_ms = tuning.lease_ms
        self._nonce = secrets.token_hex(8)
        self.own_state = OwnState(tuning.reuse_own_state_s)
        self.state: CacheState | None = None
        """The newest state of the cache that this process has seen or made."""

    @property
    def position(self) -> SnapshotPosition | None:
        """The position that the cache shows, as far as this process knows."""
        return None if self.state is None else self.state.position

    async def is_recent(self, max_age_s: float) -> bool:
        """Return whether the cache can be read and was caught up within `max_age_s`. Raises CacheError.

        Asks PostgreSQL for its position if the cache is of another epoch. Raises DatabaseUnavailable.
        """
        state = await self._cache.poll(self._nonce, lease_ms=0)
        health = self._health
        of_another_epoch = state is not None and state.position.epoch != health.epoch
        if health.epoch is None or not health.postgres_up or of_another_epoch:
            await health.ask_postgres()
        await health.ask_whether_writable()
        if state is not None and state.valid and state.consistent and 0 <= state.age_s < max_age_s:
            self._advance(state)
            return True
        return False

    async def run(self) -> RebuildNeeded | None:
        """Catch up once, unless another process has the lease or is faster.

        Returns why a rebuild is needed, otherwise None. Raises CacheError and DatabaseUnavailable.
        """
        # Callers that come while Redis is being asked may have committed after its answer.
        waiting = self._waiters.positions()
        state = self.own_state.take()
        if state is not None:
            return await self._catch_up(state)
        state = await self._cache.poll(self._nonce, self._lease_ms)
        self.own_state.compare(state)
        if state is None:
            self._waiters.release(self._invalidator.answerable_without_cache(waiting))
            return RebuildNeeded("there was none", invalidate=False)
        if not state.consistent:
            return RebuildNeeded("its keys disagreed")
        self._advance(state)
        return await self._catch_up(state) if state.leased else None

    async def _catch_up(self, state: CacheState) -> RebuildNeeded | None:
        seasons = CachedSeasons(state, self._cache.size)
        changes = await self._changes_since(state, seasons.views())
        self._health.note_postgres(changes.position)
        if changes.position.epoch != state.position.epoch:
            return RebuildNeeded("PostgreSQL has been restarted or replaced")
        if not changes.reaches:
            if not changes.log_valid:
                await self._change_log.reset()
            return RebuildNeeded("too much changed to catch up")
        return await self._apply(state, changes, seasons.moves(changes))

    async def _changes_since(self, state: CacheState, views: Sequence[SeasonView]) -> Changes:
        if not self._waiters and self._change_log.valid_in == state.position.epoch:
            # Mostly nothing has changed then, and this is cheaper to ask. Every change has a transaction id, and
            # the snapshot after it is another one.
            position = await self._health.ask_postgres()
            if position == state.position and all(view.since is None for view in views):
                return Changes.none(state.position, len(views))
        floor_score = None if state.floor is None else state.floor.total_score
        # Reading more changes than twice the cache's size takes longer than a rebuild.
        return await self._change_log.changes_since(
            state.position.snapshot, floor_score, 2 * self._cache.size, views, MAX_CHANGES + 1
        )

    async def _apply(
        self, state: CacheState, changes: Changes, moves: Sequence[SeasonMove]
    ) -> RebuildNeeded | None:
        applied = await self._cache.apply(
            self._nonce, state, changes.position, changes.changed, changes.deleted, changes.added, moves
        )
        if applied is NotApplied.INCONSISTENT:
            return RebuildNeeded("its keys disagreed")
        if applied is NotApplied.CONFLICT:
            return None
        if applied.pending is not None:
            self.own_state.keep(applied)
        self._metrics.cached_seasons.set(len(applied.seasons or ()))
        self._metrics.changes_applied.inc(len(changes.changed) + len(changes.deleted))
        self._advance(applied)
        if state.floor is not None and applied.count < self._cache.size:
            return RebuildNeeded("too few were left", invalidate=False, lost=False)
        return None

    def _advance(self, state: CacheState) -> None:
        """Remember the newest state, and let the callers go on whose position it shows."""
        self.state = state
        self._metrics.cached_users.set(state.count)
        if state.valid:
            self._health.note_redis()
        self._waiters.release_visible(state.position)
