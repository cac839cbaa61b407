"""The use cases: create a user, set a score, and the reads, from the cache first and from the truth otherwise.

Every call joins a batch (`batching.py`). What was answered from PostgreSQL, a refusal as well, is held back
until the cache shows as much (`sync.py`), so that no later read anywhere shows an older board.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from leaderboard.batching import Batcher, Bounds, bisect, nothing_done
from leaderboard.cache.store import FRESH_S, CacheStore, Refuse
from leaderboard.database.rank_index import RankIndex
from leaderboard.database.rows import AtSnapshot
from leaderboard.database.store import Database, FirstWrite, NewScore, NewUser, Refusal, Written
from leaderboard.errors import (
    CacheError,
    DatabaseReadOnly,
    DatabaseRefused,
    DatabaseUnavailable,
    IdempotencyKeyInUse,
    LockedOut,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.idempotency import Idempotency, KeyBounds, idempotency_key
from leaderboard.model import (
    Answer,
    ContextQuery,
    EncodedTop,
    PageAroundQuery,
    PageQuery,
    PageQuestion,
    Question,
    ScoreSet,
    StandingQuery,
    Top,
    TopQuery,
    User,
    ranked,
)
from leaderboard.observe import Metrics
from leaderboard.snapshot import CommitPosition, SnapshotPosition, same_database
from leaderboard.sync import CacheSync

_READS_AT_ONCE = 512
_RANKS_AT_ONCE = 128
_RANK_LANES = 2
"""More of them would be smaller batches, which are more work for PostgreSQL."""
_WRITES_AT_ONCE = 1000
_LARGE_TOP = 1000
_LOCK_WAIT_S = 2.0
_OF_ONE_ITEM = (DatabaseRefused, LockedOut, IdempotencyKeyInUse)
"""What may be the fault of one item of a batch, and then fails no other."""
_LOCK_RETRY_S = (0.005, 0.05)

Value = TypeVar("Value")

Once = tuple[str, str]
"""Who sends a write that is to be done once, and the idempotency key that it comes with."""


@dataclass(slots=True)
class Reply:
    """An answer to a question, shared by all who asked it together.

    `age_s` is set only when PostgreSQL is unreachable and the answer may be as old as that. `response` is the
    answer as it is sent, left here by the first who sends it.
    """

    answer: Answer
    age_s: float | None = None
    response: Any = None


@dataclass(slots=True)
class _Told(Generic[Value]):
    """A result from PostgreSQL, and the position that the cache must reach before the result is sent."""

    value: Value
    point: SnapshotPosition | CommitPosition


class Leaderboard:
    """One board, as its callers see it."""

    def __init__(
        self,
        truth: Database,
        ranks: RankIndex,
        cache: CacheStore,
        sync: CacheSync,
        metrics: Metrics,
        *,
        bounds: Bounds,
        key_bounds: KeyBounds,
        database_lanes: int,
        stale_reads: bool,
    ) -> None:
        self._truth = truth
        self._ranks = ranks
        self._cache = cache
        self._sync = sync
        self._metrics = metrics
        self._stale_reads = stale_reads
        self._idempotency = Idempotency(truth, sync, metrics, bounds, key_bounds)
        self._reads: Batcher[Question, Reply | Refuse | None] = Batcher(
            "reads", self._read_cache, bounds, most=_READS_AT_ONCE, share=True
        )
        # One at a time, or a few of them together would hold up Redis, or this process, for everyone.
        self._large_reads: Batcher[Question, Reply | Refuse | None] = Batcher(
            "large reads", self._read_cache, bounds, most=1, share=True
        )
        self._stale: Batcher[Question, Reply | Refuse | None] = Batcher(
            "stale reads", self._read_stale, bounds, most=_READS_AT_ONCE, share=True
        )
        self._large_stale: Batcher[Question, Reply | Refuse | None] = Batcher(
            "large stale reads", self._read_stale, bounds, most=1, share=True
        )
        # Of many deep standings and contexts most of the work is the same.
        rank_lanes = min(_RANK_LANES, database_lanes - 2)
        self._deep: Batcher[StandingQuery | ContextQuery, _Told[Answer | None] | None] = Batcher(
            "ranks",
            self._read_ranks,
            bounds,
            most=_RANKS_AT_ONCE,
            lanes=rank_lanes,
            share=True,
            release=self._covered,
        )
        self._alone: Batcher[Question | PageQuestion, _Told[Answer | None]] = Batcher(
            "reads from PostgreSQL",
            self._read_truth,
            bounds,
            most=1,
            lanes=database_lanes - rank_lanes - 1,
            share=True,
            release=self._covered,
        )
        self._large_alone: Batcher[Question | PageQuestion, _Told[Answer | None]] = Batcher(
            "large reads from PostgreSQL",
            self._read_truth,
            bounds,
            most=1,
            share=True,
            release=self._covered,
        )
        self._scores: Batcher[NewScore, _Told[ScoreSet | Refusal]] = Batcher(
            "scores", self._write_scores, bounds, most=_WRITES_AT_ONCE, release=self._covered
        )
        self._users: Batcher[NewUser, _Told[User | Refusal]] = Batcher(
            "new users", self._write_users, bounds, most=_WRITES_AT_ONCE, release=self._covered
        )

    # Reads

    def top(self, n: int) -> Coroutine[None, None, Reply]:
        """The best `n` users, at most; an EncodedTop."""
        return self._ask(TopQuery(n))

    def standing(self, user_id: int) -> Coroutine[None, None, Reply]:
        """A user's Standing. Raises UserNotFound."""
        return self._ask(StandingQuery(user_id))

    def context(self, user_id: int) -> Coroutine[None, None, Reply]:
        """A user's Context. Raises UserNotFound."""
        return self._ask(ContextQuery(user_id))

    def page(self, question: PageQuestion) -> Coroutine[None, None, Reply]:
        """Some users in a row; a Page."""
        return self._ask_truth(question)

    # Writes

    async def create_user(
        self, user_name: str, image_url: str | None, total_score: int, once: Once | None = None
    ) -> User:
        """Create a user. Raises UsernameTaken, and with `once` what `Idempotency.once` raises."""
        self._check_writable()
        if once is None:
            return await self._create_user(NewUser(user_name, image_url, total_score))
        key = idempotency_key(*once, ("create", user_name, image_url, total_score))
        item = NewUser(user_name, image_url, total_score, key)
        return await self._idempotency.once(
            key,
            lambda: self._create_user(item),
            lambda first: User(first.user_id, user_name, image_url, total_score),
        )

    async def set_score(self, user_id: int, total_score: int, once: Once | None = None) -> ScoreSet:
        """Set a user's score. Raises UserNotFound, and with `once` what `Idempotency.once` raises."""
        self._check_writable()
        if once is None:
            return await self._set_score(NewScore(user_id, total_score))
        key = idempotency_key(*once, ("set", user_id, total_score))
        item = NewScore(user_id, total_score, key)
        return await self._idempotency.once(
            key, lambda: self._set_score(item), lambda first: _score_set(item, first)
        )

    async def _create_user(self, item: NewUser) -> User:
        told = await self._users.submit(item)
        if isinstance(told.value, User):
            return told.value
        raise UsernameTaken(item.user_name)

    async def _set_score(self, item: NewScore) -> ScoreSet:
        told = await self._scores.submit(item)
        deadline = time.monotonic() + _LOCK_WAIT_S
        while told.value is Refusal.LOCKED:
            # It goes with another batch: to wait for the row itself would hold up all others.
            if time.monotonic() > deadline:
                raise LockedOut(f"another transaction holds the user {item.user_id}")
            with nothing_done():
                await asyncio.sleep(random.uniform(*_LOCK_RETRY_S))
            told = await self._scores.submit(item)
        if isinstance(told.value, ScoreSet):
            return told.value
        raise UserNotFound(item.user_id)

    async def run(self) -> None:
        """What this needs done regularly, until cancelled."""
        await self._idempotency.run()

    async def close(self) -> None:
        """Finish what was begun."""
        for batcher in self._batchers():
            await batcher.close()

    def waiting(self) -> dict[str, int]:
        """How many requests wait in each queue, by its name."""
        return {batcher.name: batcher.depth for batcher in self._batchers()}

    def _batchers(self) -> Sequence[Batcher[Any, Any]]:
        cached = (self._reads, self._large_reads, self._stale, self._large_stale)
        reads = (*cached, self._deep, self._alone, self._large_alone)
        return (*reads, self._idempotency.lookups, self._scores, self._users)

    def _check_truth(self) -> None:
        """Refuse at once while PostgreSQL is known to be away; the timer of `sync` sees when it is back."""
        if self._sync.postgres_up is False:
            raise DatabaseUnavailable("PostgreSQL is unreachable")

    def _check_writable(self) -> None:
        """Refuse a write at once while PostgreSQL is known to be away or to take none."""
        self._check_truth()
        if not self._sync.writable:
            raise DatabaseUnavailable("PostgreSQL takes no writes now")

    # How reads are answered

    async def _ask(self, question: Question) -> Reply:
        large = isinstance(question, TopQuery) and question.n > _LARGE_TOP
        reply = await (self._large_reads if large else self._reads).ask(question)
        if isinstance(reply, Reply):
            self._metrics.answers.inc("cache")
            return reply
        if reply is Refuse.NO_SUCH_USER:
            self._metrics.answers.inc("cache")
            raise _not_found(question)
        try:
            return await self._ask_truth(question)
        except DatabaseUnavailable:
            if not self._stale_reads:
                raise
            return await self._ask_stale(question, large=large)

    async def _ask_truth(self, question: Question | PageQuestion) -> Reply:
        self._check_truth()
        told = None
        if isinstance(question, StandingQuery | ContextQuery):
            told = await self._deep.ask(question)
        if told is None:
            large = isinstance(question, TopQuery) and question.n > _LARGE_TOP
            told = await (self._large_alone if large else self._alone).ask(question)
        self._metrics.answers.inc("postgres")
        if told.value is None:
            raise _not_found(question)
        return Reply(told.value)

    async def _read_cache(self, questions: Sequence[Question]) -> list[Reply | Refuse | None]:
        self._metrics.batch_items.labels("reads").observe(len(questions))
        try:
            reading = await self._cache.read(questions, FRESH_S)
        except CacheError:
            reading = None
        if reading is None or reading.epoch != self._sync.epoch:
            return [None] * len(questions)
        return [answer if isinstance(answer, Refuse) else Reply(answer) for answer in reading.answers]

    async def _read_ranks(
        self, questions: Sequence[StandingQuery | ContextQuery]
    ) -> Sequence[_Told[Answer | None] | None]:
        self._metrics.batch_items.labels("ranks").observe(len(questions))
        seen = await self._ranks.standings(questions, count=False)
        if seen is None:
            return [None] * len(questions)
        return [_Told(answer, seen.position) for answer in seen.value]

    async def _read_truth(self, questions: Sequence[Question | PageQuestion]) -> list[_Told[Answer | None]]:
        seen = [await self._read_alone(question) for question in questions]
        return [_Told(each.value, each.position) for each in seen]

    async def _read_alone(self, question: Question | PageQuestion) -> AtSnapshot[Answer | None]:
        match question:
            case TopQuery(n):
                best = await self._truth.best(n)
                top = Top([ranked(rank, user) for rank, user in enumerate(best.value, 1)])
                return AtSnapshot(EncodedTop.of(top), best.position)
            case StandingQuery() | ContextQuery():
                seen = await self._ranks.standings([question], count=True)
                if seen is None:
                    raise RuntimeError("counting everybody needs no index")
                return AtSnapshot(seen.value[0], seen.position)
            case PageQuery() | PageAroundQuery():
                return await self._ranks.page(question)

    async def _ask_stale(self, question: Question, *, large: bool) -> Reply:
        """The cache's last word, with its age, while there is no truth to ask."""
        reply = await (self._large_stale if large else self._stale).ask(question)
        if reply is Refuse.NO_SUCH_USER:
            raise _not_found(question)
        if not isinstance(reply, Reply):
            raise DatabaseUnavailable("PostgreSQL is unreachable, and the cache cannot answer this")
        self._metrics.answers.inc("stale cache")
        return reply

    async def _read_stale(self, questions: Sequence[Question]) -> list[Reply | Refuse | None]:
        try:
            reading = await self._cache.read(questions, None)
        except CacheError:
            reading = None
        if reading is None or self._sync.epoch is None or not same_database(reading.epoch, self._sync.epoch):
            return [None] * len(questions)
        return [
            answer if isinstance(answer, Refuse) else Reply(answer, age_s=reading.age_s)
            for answer in reading.answers
        ]

    # How writes are done

    async def _write_scores(self, batch: Sequence[NewScore]) -> list[_Told[ScoreSet | Refusal] | Exception]:
        self._metrics.batch_items.labels("scores").observe(len(batch))
        return await bisect(batch, lambda part: self._told(self._truth.set_scores(part)), _OF_ONE_ITEM)

    async def _write_users(self, batch: Sequence[NewUser]) -> list[_Told[User | Refusal] | Exception]:
        self._metrics.batch_items.labels("users").observe(len(batch))
        return await bisect(batch, lambda part: self._told(self._truth.create_users(part)), _OF_ONE_ITEM)

    async def _told(self, writing: Awaitable[Written[Value]]) -> list[_Told[Value]]:
        try:
            written = await writing
        except DatabaseReadOnly as error:
            self._sync.note_read_only(error)
            raise
        return [_Told(outcome, written.point) for outcome in written.outcomes]

    # Before a result from PostgreSQL is sent

    async def _covered(self, batch: Sequence[_Told[Any] | Exception | None]) -> None:
        points = {told.point for told in batch if isinstance(told, _Told)}
        for point in points:
            self._sync.note_truth(point)
        await asyncio.gather(*map(self._sync.cover, points))


def _score_set(item: NewScore, first: FirstWrite) -> ScoreSet:
    """The answer to a score that was set before; the user is named as it is now. Raises UserNotFound."""
    if first.user_name is None or first.previous_score is None:
        raise UserNotFound(item.user_id)
    return ScoreSet(item.user_id, first.user_name, first.image_url, item.total_score, first.previous_score)


def _not_found(question: Question | PageQuestion) -> UserNotFound:
    if isinstance(question, StandingQuery | ContextQuery):
        return UserNotFound(question.user_id)
    raise TypeError(f"{question} always has an answer")
