"""Limits how many idempotency keys exist, and deletes old ones.

A write does not pay for the limit: a process that writes with keys counts the table in the background, and refuses
new keys of callers that had too many at the last count. So the limit can be exceeded by what is written between
two counts.
"""

import asyncio
import time
from dataclasses import dataclass

import structlog

from leaderboard.database.idempotency_keys import IdempotencyKeys, KeyCounts
from leaderboard.errors import IdempotencyKeysFull, TooManyIdempotencyKeys
from leaderboard.metrics import Metrics
from leaderboard.periodic import every
from leaderboard.tuning import KeyTuning

KEPT_H = 24
"""How many hours a key is kept, at least."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The most idempotency keys: of one caller, and of all callers together.

    An unauthenticated caller, whose name is '', has the second limit only.
    """

    per_caller: int
    total: int


class KeyLimiter:
    """Counts and deletes idempotency keys in the background, and refuses new ones past the limits."""

    def __init__(self, keys: IdempotencyKeys, metrics: Metrics, limits: KeyLimits, tuning: KeyTuning) -> None:
        self._keys = keys
        self._metrics = metrics
        self._limits = limits
        self._tuning = tuning
        self._counts = KeyCounts(0, frozenset())
        self._changes = 0
        self._counted_changes = -1

    def note_change(self) -> None:
        """Note that the number of keys may have changed."""
        self._changes += 1

    def check(self, caller: str) -> None:
        """Raise TooManyIdempotencyKeys or IdempotencyKeysFull if a limit was reached at the last count."""
        if caller in self._counts.full:
            raise TooManyIdempotencyKeys(
                f"{caller} has {self._limits.per_caller} idempotency keys, as many as one caller may have;"
                f" each is kept for {KEPT_H} hours"
            )
        if self._is_full():
            raise IdempotencyKeysFull(
                f"{self._limits.total} idempotency keys are kept, as many as may be;"
                f" each is kept for {KEPT_H} hours"
            )

    async def run(self) -> None:
        """Delete keys older than KEPT_H, and count the others, until cancelled."""
        await asyncio.gather(
            every(self._tuning.delete_every_s, "deleting old idempotency keys", self._delete_old),
            every(self._tuning.count_every_s, "counting idempotency keys", self._count_if_changed, at_once=True),
        )

    async def _delete_old(self) -> None:
        try:
            while await self._keys.delete_old(KEPT_H, self._tuning.delete_batch) == self._tuning.delete_batch:
                pass
        finally:
            # Other processes write and delete keys too, so count now and then in any case.
            self.note_change()

    async def _count_if_changed(self) -> float | None:
        # While something is refused, other processes may have made room.
        if self._counted_changes == self._changes and not self._counts.full and not self._is_full():
            return None
        began = time.monotonic()
        await self._count()
        return self._tuning.count_pause * (time.monotonic() - began)

    async def _count(self) -> None:
        changes = self._changes
        before, self._counts = self._counts, await self._keys.count(self._limits.per_caller)
        self._counted_changes = changes
        self._metrics.idempotency_keys.set(self._counts.total)
        for caller in sorted(self._counts.full - before.full):
            _log.warning("a caller has as many idempotency keys as it may have", caller=caller)
        if self._is_full() and before.total < self._limits.total:
            _log.warning("there are as many idempotency keys as may be kept", kept=self._counts.total)

    def _is_full(self) -> bool:
        return self._counts.total >= self._limits.total
