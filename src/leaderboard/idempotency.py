"""A write that is sent again, because its answer was lost, is done once: `Idempotency-Key`.

The transaction that writes also keeps the key, so there is no moment at which one is there and the other is not.
What may be sent at the same time meets at three places: here, in one process, at the set of keys under way; in
PostgreSQL at the table's primary key, which undoes the second of two; and before both at a look into the table, so
that what was done long ago costs no failed transaction. Refusals change nothing and are not kept: sent again, the
request is decided anew.

Of the answer only that is kept which neither the request nor `users` has, so that a row is small whatever the
client sends. The number of keys is bounded, for each caller and for all together, and a write does not pay for
it: a process that writes with keys counts the table in the background, and refuses new keys of callers that were
at a bound when it last counted. So a bound can be exceeded by what is written from one count to the next.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog

from leaderboard.batching import Batcher, Bounds, nothing_done
from leaderboard.database.store import Database, FirstWrite, IdempotencyKey, KeysKept
from leaderboard.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotencyKeysFull,
    TooManyIdempotencyKeys,
    Unavailable,
    UsernameTaken,
)
from leaderboard.observe import Metrics
from leaderboard.snapshot import SnapshotPosition
from leaderboard.sync import CacheSync

KEPT_H = 24
"""How many hours a key is kept, at the least."""
COUNT_EVERY_S = 1.0
"""How long the pause between two counts is, at the least."""
COUNT_PAUSE = 100
"""How many times as long as a count the pause after it is: to count takes a hundredth of one core at most."""
_FORGET_EVERY_S = 60
_FORGET_BATCH = 10_000
_LOOKUPS_AT_ONCE = 1000

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


def idempotency_key(caller: str, key: str, asked: object) -> IdempotencyKey:
    """The key of a write; `asked` is all that makes it this write and no other."""
    # The migration to rows with hashes makes the same of the rows before it.
    return IdempotencyKey(_hash(f"{caller}\0{key}".encode()), caller, _hash(msgspec.json.encode(asked)))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class KeyBounds:
    """The most idempotency keys that are kept: of one caller, and of all together.

    A caller that is not known, which is named '', has only the second bound.
    """

    per_caller: int
    total: int


class Idempotency:
    """Does writes with a key once, for one process among several."""

    def __init__(
        self, truth: Database, sync: CacheSync, metrics: Metrics, bounds: Bounds, key_bounds: KeyBounds
    ) -> None:
        self._truth = truth
        self._sync = sync
        self._metrics = metrics
        self._key_bounds = key_bounds
        self.lookups: Batcher[IdempotencyKey, tuple[FirstWrite | None, SnapshotPosition]] = Batcher(
            "idempotency keys", self._look_up, bounds, most=_LOOKUPS_AT_ONCE
        )
        self._under_way: set[str] = set()
        self._kept = KeysKept(0, frozenset())
        self._changes = 0
        self._counted = -1

    async def once(
        self,
        key: IdempotencyKey | None,
        write: Callable[[], Awaitable[_Answer]],
        again: Callable[[FirstWrite], _Answer],
    ) -> _Answer:
        """The answer of `write`; that of `again` if the write has been done with this key before.

        Raises IdempotencyKeyReused, IdempotencyKeyInUse, TooManyIdempotencyKeys, IdempotencyKeysFull, and what
        `write` and `again` raise.
        """
        if key is None:
            return await write()
        if key.key in self._under_way:
            raise IdempotencyKeyInUse("another request with this idempotency key is under way")
        self._under_way.add(key.key)
        try:
            with nothing_done():
                first = await self._first_write(key)
            if first is not None:
                return again(first)
            self._check_bounds(key.caller)
            try:
                return await write()
            except (IdempotencyKeyInUse, UsernameTaken):
                # By the same request, perhaps, that came to another process.
                first = await self._first_write(key)
                if first is not None:
                    return again(first)
                raise
            finally:
                # Not before: a count that has begun meanwhile may lack it.
                self._changes += 1
        finally:
            self._under_way.discard(key.key)

    async def run(self) -> None:
        """Delete what is older than KEPT_H and count the rest, until cancelled."""
        await asyncio.gather(self._forget_regularly(), self._count_regularly())

    async def _forget_regularly(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            try:
                while await self._truth.forget_keys(KEPT_H, _FORGET_BATCH) == _FORGET_BATCH:
                    pass
            except Unavailable:
                continue
            except Exception:
                _log.exception("forgetting old idempotency keys failed")
            # Also after what other processes wrote and forgot.
            self._changes += 1

    async def _count_regularly(self) -> None:
        while True:
            pause_s = COUNT_EVERY_S
            try:
                # While something is refused, others may have made room.
                if self._counted != self._changes or self._kept.full or self._is_full():
                    began = time.monotonic()
                    await self._count()
                    pause_s = max(pause_s, COUNT_PAUSE * (time.monotonic() - began))
            except Unavailable:
                pass
            except Exception:
                _log.exception("counting idempotency keys failed")
            await asyncio.sleep(pause_s)

    async def _count(self) -> None:
        changes = self._changes
        before, self._kept = self._kept, await self._truth.count_keys(self._key_bounds.per_caller)
        self._counted = changes
        self._metrics.idempotency_keys.set(self._kept.total)
        for caller in sorted(self._kept.full - before.full):
            _log.warning("a caller has as many idempotency keys as it may", caller=caller)
        if self._is_full() and before.total < self._key_bounds.total:
            _log.warning("there are as many idempotency keys as may be kept", kept=self._kept.total)

    def _is_full(self) -> bool:
        return self._kept.total >= self._key_bounds.total

    def _check_bounds(self, caller: str) -> None:
        if caller in self._kept.full:
            most = self._key_bounds.per_caller
            raise TooManyIdempotencyKeys(
                f"{caller} has as many idempotency keys as one caller may, {most}; each is kept for {KEPT_H} hours"
            )
        if self._is_full():
            most = self._key_bounds.total
            raise IdempotencyKeysFull(
                f"as many idempotency keys are kept as may be, {most}; each is kept for {KEPT_H} hours"
            )

    async def _first_write(self, key: IdempotencyKey) -> FirstWrite | None:
        first, moment = await self.lookups.submit(key)
        if first is None:
            return None
        # Whoever gets it may rely on it as on the first: no later read shows an older board.
        await self._sync.cover(moment)
        if not first.same:
            raise IdempotencyKeyReused("this idempotency key came with another request before")
        return first

    async def _look_up(self, keys: Sequence[IdempotencyKey]) -> list[tuple[FirstWrite | None, SnapshotPosition]]:
        seen = await self._truth.first_writes(keys)
        self._sync.note_truth(seen.position)
        return [(first, seen.position) for first in seen.value]
