"""Keeps the cache equal to the truth, and tells writers when it shows what they wrote.

The cache is a copy of the best users as of one PostgreSQL snapshot, which it stores beside them. There is one
way to move it: *catch up*. Read the stored snapshot; ask PostgreSQL in one statement for the users that changed
since and for its present snapshot; set those users to their present state, in one script that first checks
that nobody else has moved the cache meanwhile (the token). Applying is by state, so it does not matter how
often, in which order or by whom it is done, and there is no second way in to race with. Whoever has just made
a state itself need not read it: if somebody else has moved the cache in between, the token shows it.

When that is not possible, because the keys are gone or damaged, the log no longer reaches back, or the database
is in another life (epoch), the cache is *rebuilt*: loaded beside the old one from one snapshot and swapped in.
A rebuild is installed *out of use*. Only the next catching up, whose snapshot is taken after the swap, puts it
in use. From that follows what makes acknowledging simple: a state that can be read was caught up by someone who
looked at the cache beforehand. So a writer that has committed may answer as soon as one of these holds:

  1. the stored snapshot sees the commit: whatever is read from now on shows it;
  2. there is no cache: whatever will be there was caught up after this, and so shows it;
  3. the writer has put the cache out of use itself, with a new token: a catching up that was under way fails,
     and every later one shows it.

The same holds for anybody who was answered from PostgreSQL and must not see an older board afterwards. Case 1 is
the rule, within milliseconds; case 3 is for when that takes longer than `PATIENCE_S`. If Redis cannot be reached
even for that, this process is cut off, and what others read from Redis goes out of date within `FRESH_S` of the
last catching up. Where Redis fails over, others may read from its new primary before this process has found it.
With Sentinel, a process that finds it removes the cache from the primary before (in a Cluster, that one stops by
itself): so rules 1 and 3 hold there, but not rule 2. When this process is cut off or finds no cache, a writer is
answered by rule 1, or when `FRESH_S` have passed: every state that can still be read was then caught up later
than its commit.

Every process catches up, after its own writes and on a timer. A short lease keeps several from doing so at
once, and whoever has moved the cache alone does without; both are for speed only, and any of them may die at
any point.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from leaderboard.cache.store import FRESH_S, LONGEST_CLAIM_MS, Applied, CacheState, CacheStore, Floor
from leaderboard.database.store import Changes, Database
from leaderboard.errors import (
    CacheDamaged,
    CacheError,
    CacheHangs,
    DatabaseReadOnly,
    DatabaseUnavailable,
    Unavailable,
)
from leaderboard.model import User
from leaderboard.observe import Metrics
from leaderboard.snapshot import CommitPosition, SnapshotPosition

PATIENCE_S = 0.25
"""How long a writer waits for the cache before it puts the cache out of use."""

LEASE_MS = 50
CUT_OFF_PAUSE_S = 0.02
"""Between two tries to catch up while Redis cannot be reached and writers wait."""

OWN_S = 0.02
"""The poll is skipped if our own last apply is younger. A stale guess is harmless: `apply` compares the token."""

CLAIM_MS = 1500
LOG_KEPT_S = 10
PRUNE_EVERY_S = 5
PRUNE_BATCH = 10_000
SHORT_LIFE_S = 1.0
LONGEST_PAUSE_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """One user whom the cache and the truth show differently; None where one of them has no such user."""

    user_id: int
    cached: User | None
    true: User | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What comparing the cache with the truth at one snapshot found.

    `compared` is how many users that was; None when there was nothing that could be compared, and `note` why.
    `totals` is how many users there are by the cache and by the truth, when they differ.
    """

    compared: int | None
    note: str = ""
    differences: list[Difference] = field(default_factory=list)
    totals: tuple[int, int] | None = None


@dataclass(slots=True)
class _Waiting:
    """The callers that wait until one point is visible, and since when the first of them does."""

    futures: list[asyncio.Future[None]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class CacheSync:
    """Catches up, rebuilds and audits the cache of one board, for one process among several."""

    def __init__(self, truth: Database, cache: CacheStore, metrics: Metrics, interval_s: float) -> None:
        self._truth = truth
        self._cache = cache
        self._metrics = metrics
        self._interval_s = interval_s
        self._nonce = secrets.token_hex(8)
        self._limit = 2 * cache.size
        self._seen: SnapshotPosition | None = None
        self._made: CacheState | None = None
        self._made_at = float("-inf")
        self._alone = False
        self._waiting: dict[SnapshotPosition | CommitPosition, _Waiting] = {}
        self._overdue: set[SnapshotPosition | CommitPosition] = set()
        self._turn = asyncio.Lock()
        self._giving_up: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[bool] | None = None
        self._claim_ms = CLAIM_MS
        self._rebuilt_at = float("-inf")
        self._short_lives = 0
        self.cached_users = 0
        self.epoch: str | None = None
        self.postgres_up: bool | None = None
        self.redis_up: bool | None = None
        self._read_only = False
        self._unwritable_since: float | None = None

    # For those who answer

    async def cover(self, point: SnapshotPosition | CommitPosition) -> None:
        """Return when nobody can read from the cache any more what was before `point`."""
        if self._seen is not None and self._seen.reflects(point):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(point, _Waiting()).futures.append(future)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._work_off(), name="catching up for writers")
        started = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(future)
        except TimeoutError:
            if not future.done():
                self._overdue.add(point)
            # A task of its own, because this caller may be cancelled while others wait for the same point.
            if self._giving_up is None or self._giving_up.done():
                self._giving_up = asyncio.create_task(self._give_up(), name="giving up waiting for the cache")
            await asyncio.shield(future)
        self._metrics.cover_seconds.observe(time.perf_counter() - started)

    def note_truth(self, moment: SnapshotPosition | CommitPosition) -> None:
        """Learn from an answer of PostgreSQL which life of the database this is, and that it is there."""
        self.epoch = moment.epoch
        self._truth_is(up=True)

    def note_read_only(self, error: DatabaseReadOnly) -> None:
        """Learn that PostgreSQL has refused a write because it takes none."""
        if not self._read_only:
            _log.error("PostgreSQL takes no writes", error=str(error))
        self._read_only = True
        self._note_writable()

    @property
    def writable(self) -> bool:
        """Whether PostgreSQL, as far as is known, takes writes."""
        return self.postgres_up is not False and not self._read_only

    @property
    def unwritable_s(self) -> float:
        """For how many seconds PostgreSQL has taken no writes; 0 while it does."""
        return 0.0 if self._unwritable_since is None else time.monotonic() - self._unwritable_since

    # For the process

    async def run(self) -> None:
        """Catch up on a timer, until cancelled."""
        while True:
            try:
                try:
                    await self.tick()
                except CacheError as error:
                    self._cache_is(up=False, error=error)
                    self.note_truth(await self._truth.now())
            except Unavailable as error:
                self._truth_is(up=False, error=error)
            except Exception:
                _log.exception("catching up failed")
            await asyncio.sleep(self._interval_s * random.uniform(0.8, 1.2))

    async def prune(self) -> None:
        """Keep the change log short, until cancelled."""
        while True:
            await asyncio.sleep(PRUNE_EVERY_S * random.uniform(0.8, 1.2))
            try:
                await self._empty_foreign_log()
                while await self._truth.prune_log(LOG_KEPT_S, PRUNE_BATCH) == PRUNE_BATCH:
                    pass
            except Unavailable:
                continue
            except Exception:
                _log.exception("pruning the change log failed")

    async def _empty_foreign_log(self) -> None:
        if await self._truth.reset_log():
            _log.warning("emptied a change log that came with a dump from another server")

    async def audit_regularly(self, interval_s: float) -> None:
        """Compare the cache with the truth on a timer, until cancelled; rebuild after a difference."""
        while True:
            await asyncio.sleep(interval_s * random.uniform(0.8, 1.2))
            try:
                found = await self.audit()
            except CacheDamaged:
                self._metrics.audit_differences.inc()
                self._rebuild_soon("it could not be read")
                continue
            except (CacheError, Unavailable):
                continue
            except Exception:
                _log.exception("the audit failed")
                continue
            if found.differences or found.totals:
                self._metrics.audit_differences.inc(len(found.differences) + bool(found.totals))
                shown = [str(difference) for difference in found.differences[:5]]
                users = len(found.differences)
                _log.error("the cache differed from PostgreSQL", users=users, first=shown, totals=found.totals)
                await self.discard("an audit found differences")

    async def close(self) -> None:
        """End what is under way."""
        for task in (self._pump, self._giving_up, self._rebuilding):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # Catching up

    async def tick(self) -> None:
        """One turn of the timer: catch up unless somebody just did. Raises DatabaseUnavailable, CacheError."""
        async with self._turn:
            state = await self._cache.poll(self._nonce, lease_ms=0)
            if (
                self.epoch is None
                or not self.postgres_up
                or (state is not None and state.position.epoch != self.epoch)
            ):
                self.note_truth(await self._truth.now())
            if self._read_only:
                await self._check_writable()
            if state is not None and state.usable and state.whole and 0 <= state.age_s < self._interval_s / 2:
                self._settle(state)
                return
            await self._look()

    async def _check_writable(self) -> None:
        try:
            await self._truth.check_writable()
        except DatabaseReadOnly:
            return
        _log.info("PostgreSQL takes writes again")
        self._read_only = False
        self._note_writable()

    async def catch_up_now(self) -> SnapshotPosition:
        """Make the cache show the present, rebuilding it if need be, and return the moment it is at.

        For a person at a command line: raises CacheError or DatabaseUnavailable rather than going on without.
        """
        present = await self._truth.now()
        self.note_truth(present)
        deadline = time.monotonic() + 30
        while self._seen is None or not self._seen.reflects(present):
            if time.monotonic() > deadline:
                raise CacheError("the cache could not be brought up to date within 30 s")
            async with self._turn:
                await self._look()
            if self._rebuilding is not None:
                await self._rebuilding
            await asyncio.sleep(random.uniform(0.001, 0.003))
        return self._seen

    async def drop_unreadable(self) -> str | None:
        """Drop the cache if it cannot be read, and return what was wrong with it. Raises CacheError.

        Catching up reads its state only, and would not notice.
        """
        try:
            await self._cache.export()
        except CacheDamaged as error:
            return str(error)
        return None

    async def discard(self, reason: str) -> None:
        """Put the cache out of use and rebuild it."""
        await self._put_out_of_use(reason)
        self._rebuild_soon(reason)

    async def _work_off(self) -> None:
        while self._waiting:
            async with self._turn:
                try:
                    await self._look()
                except CacheError as error:
                    self._cache_is(up=False, error=error)
                    await self._put_out_of_use("it could not be caught up")
                    if self._waiting:
                        await asyncio.sleep(CUT_OFF_PAUSE_S)
                except DatabaseUnavailable as error:
                    self._truth_is(up=False, error=error)
                    await self._put_out_of_use("PostgreSQL cannot be asked")
                except Exception:
                    _log.exception("catching up failed")
                    await self._put_out_of_use("catching up failed")
            if self._waiting:
                await asyncio.sleep(random.uniform(0.001, 0.003))

    async def _give_up(self) -> None:
        """Invalidate the cache for the callers whose patience has ended, at least once.

        A caller that joins while an invalidation is on its way needs another one: its commit may be later.
        """
        try:
            while self._overdue:
                self._overdue.clear()
                await self._put_out_of_use("catching up took too long")
        except Exception:
            _log.exception("giving up failed")
            self._release(list(self._waiting))

    async def _look(self) -> None:
        """Look at the cache and do what it calls for."""
        # Those who come while Redis is being asked may have committed after it looked.
        waiting = list(self._waiting)
        made, self._made = self._made, None
        if made is not None and self._alone and time.monotonic() - self._made_at < OWN_S:
            await self._catch_up(made)
            return
        state = await self._cache.poll(self._nonce, LEASE_MS)
        # Nobody else has moved the cache: then it is the less work to be overtaken once than to ask each time.
        self._alone = state is not None and made is not None and state.token == made.token
        if state is None:
            self._release(self._answerable_without_cache(waiting))
            self._rebuild_soon("there was none")
        elif not state.whole:
            await self.discard("its keys disagreed")
        else:
            self._settle(state)
            if state.leased:
                await self._catch_up(state)

    async def _catch_up(self, state: CacheState) -> None:
        floor_score = None if state.floor is None else state.floor.total_score
        changes = await self._truth.catch_up(state.position.snapshot, floor_score, self._limit)
        self.note_truth(changes.position)
        if changes.position.epoch != state.position.epoch:
            await self.discard("PostgreSQL has been restarted or replaced")
        elif not changes.usable:
            if not changes.log_valid:
                await self._empty_foreign_log()
            await self.discard("too much changed to catch up")
        else:
            await self._move(state, changes)

    async def _move(self, state: CacheState, changes: Changes) -> None:
        applied, made = await self._cache.apply(
            self._nonce, state, changes.position, changes.changed, changes.gone, changes.more
        )
        if applied is Applied.TORN:
            await self.discard("its keys disagreed")
        elif applied is Applied.DONE:
            self._made, self._made_at = made, time.monotonic()
            self._seen = changes.position
            self._cache_is(up=True)
            self._metrics.changes_applied.inc(len(changes.changed) + len(changes.gone))
            self.cached_users = made.count
            self._metrics.cached_users.set(made.count)
            self._release_covered()
            if state.floor is not None and made.count < self._cache.size:
                # Scores have fallen; it is not that Redis loses what it is given.
                self._short_lives = 0
                self._rebuild_soon("too few were left")

    # Those who wait

    def _settle(self, state: CacheState) -> None:
        self._seen = state.position
        self.cached_users = state.count
        if state.usable:
            self._cache_is(up=True)
        self._release_covered()

    def _release_covered(self) -> None:
        self._release([point for point in self._waiting if self._seen is not None and self._seen.reflects(point)])

    def _release(self, points: Iterable[SnapshotPosition | CommitPosition]) -> None:
        for point in points:
            self._overdue.discard(point)
            if point in self._waiting:
                for future in self._waiting.pop(point).futures:
                    if not future.done():
                        future.set_result(None)

    async def _put_out_of_use(self, reason: str) -> None:
        """Release those who wait now, the cache being out of use; or cut off, which is bounded by FRESH_S."""
        waiting = list(self._waiting)
        while True:
            try:
                if not await self._cache.invalidate():
                    waiting = self._answerable_without_cache(waiting)
                self._metrics.invalidations.inc()
                _log.debug("cache put out of use", reason=reason)
                break
            except CacheHangs:
                # It may go on at any moment, with what it has.
                continue
            except CacheError as error:
                self._cache_is(up=False, error=error)
                waiting = self._answerable_without_cache(waiting)
                break
        self._release(waiting)

    def _answerable_without_cache(
        self, waiting: list[SnapshotPosition | CommitPosition]
    ) -> list[SnapshotPosition | CommitPosition]:
        """Those of them that need not wait, when this process has no cache before it.

        Where Redis may fail over, others may have one: on a server that this process has not found yet. No state
        from before a commit is read any more when FRESH_S have passed. A reader does not wait for that.
        """
        if not self._cache.may_switch:
            return waiting
        past = time.monotonic() - FRESH_S
        return [
            point
            for point in waiting
            if not isinstance(point, CommitPosition)
            or point not in self._waiting
            or self._waiting[point].since <= past
        ]

    # Rebuilding

    def _rebuild_soon(self, reason: str) -> None:
        if self._rebuilding is None or self._rebuilding.done():
            if time.monotonic() - self._rebuilt_at > SHORT_LIFE_S:
                self._short_lives = 0
            self._rebuilding = asyncio.create_task(self._rebuild(reason), name="rebuilding the cache")

    async def _rebuild(self, reason: str) -> bool:
        """Rebuild, after a pause that grows with each cache that did not live long; whether it was done."""
        if self._short_lives > 1:
            await asyncio.sleep(min(LONGEST_PAUSE_S, 0.05 * 2 ** min(self._short_lives, 10)))
        try:
            return await self.rebuild(reason)
        except CacheError as error:
            self._cache_is(up=False, error=error)
        except DatabaseUnavailable as error:
            self._truth_is(up=False, error=error)
        except Exception:
            _log.exception("rebuilding the cache failed")
        return False

    async def rebuild(self, reason: str) -> bool:
        """Rebuild now and put the result in use; False if somebody else is at it.

        Raises DatabaseUnavailable and CacheError.
        """
        started = time.perf_counter()
        nonce = secrets.token_hex(8)
        asof = await self._cache.claim(nonce, self._claim_ms)
        if asof is None:
            return False
        board = await self._truth.board(self._cache.keep + 1)
        self.note_truth(board.position)
        users = board.value.users
        floor = None
        if len(users) > self._cache.keep:
            users = users[: self._cache.keep]
            floor = Floor(users[-1].total_score, users[-1].user_id)
        total = board.value.total
        if not await self._cache.install(nonce, self._claim_ms, asof, board.position, users, floor, total):
            self._claim_ms = min(2 * self._claim_ms, LONGEST_CLAIM_MS)
            _log.warning("a rebuild of the cache outlived its claim", next_claim_ms=self._claim_ms)
            return False
        self._rebuilt_at = time.monotonic()
        self._short_lives += 1
        async with self._turn:
            self._made = None
            await self._look()
        seconds = time.perf_counter() - started
        self._metrics.rebuilds.inc()
        self._metrics.rebuild_seconds.observe(seconds)
        _log.info("cache rebuilt", reason=reason, users=len(users), seconds=round(seconds, 3))
        return True

    # Auditing

    async def audit(self) -> Audit:
        """Compare every cached user with the truth at one snapshot. Raises DatabaseUnavailable and CacheError.

        A cache that cannot be read is dropped, and CacheDamaged raised.
        """
        export = await self._cache.export()
        if export is None:
            return Audit(None, "there is no cache; all reads go to PostgreSQL")
        if not self._cache.check_copy(export):
            self._metrics.audit_differences.inc()
            _log.error("a copy of the cache differed from it")
        floor = export.floor
        changes, board = await self._truth.audit(
            export.position.snapshot,
            None if floor is None else floor.total_score,
            self._limit,
            self._cache.keep + 1,
        )
        if changes.position.epoch != export.position.epoch:
            return Audit(None, "the cache is of another life of the database and about to be rebuilt")
        if not changes.usable:
            return Audit(
                None, "too much changed since the cache was brought up to date; it is about to be rebuilt"
            )
        copy = {user.user_id: user for user in export.users}
        for user_id in changes.gone:
            copy.pop(user_id, None)
        for user in changes.changed:
            copy.pop(user.user_id, None)
            if floor is None or floor.admits(user):
                copy[user.user_id] = user
        cached = sorted(copy.values(), key=_place)
        if len(cached) > self._cache.keep:
            cached = cached[: self._cache.keep]
            floor = Floor(cached[-1].total_score, cached[-1].user_id)
        best = board.users
        true = best[: self._cache.keep] if floor is None else [user for user in best if floor.admits(user)]
        total = export.total + changes.more
        return Audit(
            len(cached),
            differences=_differences(cached, true),
            totals=None if total == board.total else (total, board.total),
        )

    # What is up

    def _truth_is(self, *, up: bool, error: Exception | None = None) -> None:
        if up != self.postgres_up:
            if not up:
                _log.error("PostgreSQL lost", error=str(error))
            elif self.postgres_up is not None:
                _log.info("PostgreSQL back")
            self.postgres_up = up
            self._metrics.postgres_up.set(up)
            self._note_writable()

    def _note_writable(self) -> None:
        self._metrics.postgres_writable.set(self.writable)
        if self.writable:
            self._unwritable_since = None
        elif self._unwritable_since is None:
            self._unwritable_since = time.monotonic()

    def _cache_is(self, *, up: bool, error: Exception | None = None) -> None:
        if up != self.redis_up:
            if not up:
                _log.warning("cache lost, reading from PostgreSQL", error=str(error))
            elif self.redis_up is not None:
                _log.info("cache back")
            self.redis_up = up
            self._metrics.redis_up.set(up)


def _place(user: User) -> tuple[int, int]:
    return -user.total_score, user.user_id


def _differences(cached: list[User], true: list[User]) -> list[Difference]:
    of_cache = {user.user_id: user for user in cached}
    of_truth = {user.user_id: user for user in true}
    differing = {user_id for user_id in of_cache | of_truth if of_cache.get(user_id) != of_truth.get(user_id)}
    return [Difference(user_id, of_cache.get(user_id), of_truth.get(user_id)) for user_id in sorted(differing)]
