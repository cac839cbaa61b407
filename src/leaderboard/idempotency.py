"""A write that is sent again, because its answer was lost, is done once: `Idempotency-Key`.

The transaction that writes also keeps the answer under the key, so there is no moment at which one is there
and the other is not. What may be sent at the same time meets at three places: here, in one process, at the set
of keys under way; in PostgreSQL at the table's primary key, which undoes the second of two; and before both at
a look into the table, so that what was done long ago costs no failed transaction. Refusals change nothing and
are not kept: sent again, the request is decided anew.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import structlog

from leaderboard.batching import Batcher, Bounds, nothing_done
from leaderboard.errors import IdempotencyKeyInUse, IdempotencyKeyReused, Unavailable, UsernameTaken
from leaderboard.model import ScoreSet, User
from leaderboard.snapshot import Moment
from leaderboard.sync import CacheSync
from leaderboard.truth.store import FirstAnswer, IdempotencyKey, TruthStore

KEPT_H = 24
"""How many hours a first answer is remembered, at the least."""
_FORGET_EVERY_S = 60
_FORGET_BATCH = 10_000
_LOOKUPS_AT_ONCE = 1000

_Answer = TypeVar("_Answer", User, ScoreSet)

_log = structlog.get_logger(__name__)


def idempotency_key(caller: str, key: str, asked: object) -> IdempotencyKey:
    """The key of a write; `asked` is all that makes it this write and no other."""
    return IdempotencyKey(caller, key, hashlib.sha256(msgspec.json.encode(asked)).digest())


class Idempotency:
    """Does writes with a key once, for one process among several."""

    def __init__(self, truth: TruthStore, sync: CacheSync, bounds: Bounds) -> None:
        self._truth = truth
        self._sync = sync
        self.lookups: Batcher[IdempotencyKey, tuple[FirstAnswer | None, Moment]] = Batcher(
            "idempotency keys", self._look_up, bounds, most=_LOOKUPS_AT_ONCE
        )
        self._under_way: set[tuple[str, str]] = set()

    async def once(
        self, key: IdempotencyKey | None, kind: type[_Answer], write: Callable[[], Awaitable[_Answer]]
    ) -> _Answer:
        """The answer of `write`, or the first answer to what came with this key before.

        Raises IdempotencyKeyReused, IdempotencyKeyInUse, and what `write` raises.
        """
        if key is None:
            return await write()
        name = key.caller, key.key
        if name in self._under_way:
            raise IdempotencyKeyInUse("another request with this idempotency key is under way")
        self._under_way.add(name)
        try:
            with nothing_done():
                answer = await self._first_answer(key, kind)
            if answer is not None:
                return answer
            try:
                return await write()
            except (IdempotencyKeyInUse, UsernameTaken):
                # By the same request, perhaps, that came to another process.
                answer = await self._first_answer(key, kind)
                if answer is not None:
                    return answer
                raise
        finally:
            self._under_way.discard(name)

    async def forget_regularly(self) -> None:
        """Delete what is older than KEPT_H, until cancelled."""
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            try:
                while await self._truth.forget_answers(KEPT_H, _FORGET_BATCH) == _FORGET_BATCH:
                    pass
            except Unavailable:
                continue
            except Exception:
                _log.exception("forgetting old answers failed")

    async def _first_answer(self, key: IdempotencyKey, kind: type[_Answer]) -> _Answer | None:
        first, moment = await self.lookups.submit(key)
        if first is None:
            return None
        # Whoever gets it may rely on it as on the first: no later read shows an older board.
        await self._sync.cover(moment)
        if first.fingerprint != key.fingerprint or not isinstance(first.answer, kind):
            raise IdempotencyKeyReused("this idempotency key came with another request before")
        return first.answer

    async def _look_up(self, keys: Sequence[IdempotencyKey]) -> list[tuple[FirstAnswer | None, Moment]]:
        seen = await self._truth.first_answers(keys)
        self._sync.note_truth(seen.moment)
        return [(first, seen.moment) for first in seen.value]
