"""Does a write with an `Idempotency-Key` once, however often it is sent.

The transaction that writes also inserts the key, so one never exists without the other. Requests with the same key
meet at three places: in one process, at the set of keys in progress; before the write, at a look into the table,
so that an old key costs no failed transaction; and in PostgreSQL at the primary key, which fails the second of two
transactions. A write that is refused changes nothing, and its key is not stored: sent again, it is tried again.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits, cancel_is_safe
from leaderboard.database.idempotency_keys import FirstWrite, IdempotencyKey, IdempotencyKeys
from leaderboard.database.rows import AtSnapshot
from leaderboard.errors import ExternalIdTaken, IdempotencyKeyInUse, IdempotencyKeyReused, UsernameTaken
from leaderboard.health import Health
from leaderboard.maintenance.idempotency_keys import KeyLimiter
from leaderboard.sync.visibility import Visibility

_LOOKUP_BATCH = 1000

Once = tuple[str, str]
"""The caller of a write, and the idempotency key that it sent."""

Answer = TypeVar("Answer")


def idempotency_key(caller: str, key: str, request: object) -> IdempotencyKey:
    """Return the key of a write; `request` is everything that makes it this write and no other."""
    return IdempotencyKey(_hash(f"{caller}\0{key}".encode()), caller, _hash(msgspec.json.encode(request)))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


class Idempotency:
    """Does writes with a key once, as one process among several."""

    def __init__(
        self,
        keys: IdempotencyKeys,
        visibility: Visibility,
        health: Health,
        limiter: KeyLimiter,
        limits: QueueLimits,
    ) -> None:
        self._keys = keys
        self._visibility = visibility
        self._health = health
        self._limiter = limiter
        self._in_progress: set[str] = set()
        self.lookups: Batcher[IdempotencyKey, AtSnapshot[FirstWrite | None]] = Batcher(
            "idempotency keys", self._look_up, limits, BatchLimits(_LOOKUP_BATCH)
        )

    async def once(
        self,
        key: IdempotencyKey,
        write: Callable[[], Awaitable[Answer]],
        answer_again: Callable[[FirstWrite], Answer],
    ) -> Answer:
        """Return the answer of `write`, or of `answer_again` if a write with this key was done before.

        Raises IdempotencyKeyReused, IdempotencyKeyInUse, TooManyIdempotencyKeys, IdempotencyKeysFull, and what
        `write` and `answer_again` raise.
        """
        if key.key in self._in_progress:
            raise IdempotencyKeyInUse("another request with this idempotency key is under way")
        self._in_progress.add(key.key)
        try:
            with cancel_is_safe():
                first = await self._first_write(key)
            if first is not None:
                return answer_again(first)
            self._limiter.check(key.caller)
            try:
                return await write()
            except (IdempotencyKeyInUse, UsernameTaken, ExternalIdTaken):
                # The same request may have come to another process.
                first = await self._first_write(key)
                if first is not None:
                    return answer_again(first)
                raise
            finally:
                # Not earlier: a count that began meanwhile may lack this key.
                self._limiter.note_change()
        finally:
            self._in_progress.discard(key.key)

    async def _first_write(self, key: IdempotencyKey) -> FirstWrite | None:
        found = await self.lookups.submit(key)
        first = found.value
        if first is None:
            return None
        # As after the first write, no later read shows an older board.
        await self._visibility.wait_until_visible(found.position)
        if not first.same:
            raise IdempotencyKeyReused("this idempotency key came with another request before")
        return first

    async def _look_up(self, batch: Batch[IdempotencyKey]) -> Sequence[AtSnapshot[FirstWrite | None]]:
        found = await self._keys.first_writes(batch.items)
        self._health.note_postgres(found.position)
        return [AtSnapshot(first, found.position) for first in found.value]
