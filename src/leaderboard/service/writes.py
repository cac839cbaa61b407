"""Creates users and sets scores. A batch is committed, then published, while the next batch commits.

The path of a score: `set_score` queues it. `_write_scores` commits the batch by one statement, then publishes it:
`Visibility.wait_until_visible` starts the Synchronizer, whose CatchUp moves the cache by the script `apply.lua`.
That script writes the sorted set.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits, cancel_is_safe
from leaderboard.database.database import Database
from leaderboard.database.idempotency_keys import FirstWrite
from leaderboard.database.scores import NewScore
from leaderboard.database.users import NewUser
from leaderboard.database.writing import NotWritten
from leaderboard.errors import (
    LockedOut,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import ScoreSet, User
from leaderboard.service.commit import CommittedBatch, commit
from leaderboard.service.idempotency import Idempotency, Once, idempotency_key
from leaderboard.sync.visibility import Visibility
from leaderboard.tuning import WriteTuning

_MAX_BATCH = 1000


class Writes:
    """The writes of one process."""

    def __init__(
        self,
        database: Database,
        visibility: Visibility,
        health: Health,
        idempotency: Idempotency,
        metrics: Metrics,
        limits: QueueLimits,
        tuning: WriteTuning,
    ) -> None:
        self._database = database
        self._visibility = visibility
        self._health = health
        self._idempotency = idempotency
        self._metrics = metrics
        self._tuning = tuning
        self._scores: Batcher[NewScore, ScoreSet | NotWritten] = Batcher(
            "scores", self._write_scores, limits, BatchLimits(_MAX_BATCH)
        )
        self._users: Batcher[NewUser, User | NotWritten] = Batcher(
            "new users", self._write_users, limits, BatchLimits(_MAX_BATCH)
        )

    # Scores

    async def set_score(self, user_id: int, total_score: int, once: Once | None = None) -> ScoreSet:
        """Set a user's score. Raises UserNotFound, and with `once` what `Idempotency.once` raises."""
        self._health.check_writable()
        if once is None:
            return await self._submit_score(NewScore(user_id, total_score))
        key = idempotency_key(*once, ("set", user_id, total_score))
        item = NewScore(user_id, total_score, key)
        return await self._idempotency.once(
            key, lambda: self._submit_score(item), lambda first: _first_score(item, first)
        )

    async def _submit_score(self, item: NewScore) -> ScoreSet:
        result = await self._scores.submit(item)
        deadline = time.monotonic() + self._tuning.row_wait_s
        while result is NotWritten.LOCKED:
            # Tried again with another batch: waiting for the row itself would hold up all others.
            if time.monotonic() > deadline:
                raise LockedOut(f"another transaction has locked the user {item.user_id}")
            with cancel_is_safe():
                await asyncio.sleep(random.uniform(*self._tuning.row_retry_s))
            result = await self._scores.submit(item)
        if isinstance(result, ScoreSet):
            return result
        raise UserNotFound(item.user_id)

    async def _write_scores(self, batch: Batch[NewScore]) -> Sequence[ScoreSet | NotWritten | Exception]:
        self._metrics.batch_items.labels("scores").observe(len(batch.items))
        committed = await commit(batch.items, self._database.scores.set, self._health)
        batch.start_next()
        await self._publish(committed)
        return committed.results

    # Users

    async def create_user(
        self, user_name: str, image_url: str | None, total_score: int, once: Once | None = None
    ) -> User:
        """Create a user. Raises UsernameTaken, and with `once` what `Idempotency.once` raises."""
        self._health.check_writable()
        if once is None:
            return await self._submit_user(NewUser(user_name, image_url, total_score))
        key = idempotency_key(*once, ("create", user_name, image_url, total_score))
        item = NewUser(user_name, image_url, total_score, key)
        return await self._idempotency.once(
            key,
            lambda: self._submit_user(item),
            lambda first: User(first.user_id, user_name, image_url, total_score),
        )

    async def _submit_user(self, item: NewUser) -> User:
        result = await self._users.submit(item)
        if isinstance(result, User):
            return result
        raise UsernameTaken(item.user_name)

    async def _write_users(self, batch: Batch[NewUser]) -> Sequence[User | NotWritten | Exception]:
        self._metrics.batch_items.labels("new users").observe(len(batch.items))
        committed = await commit(batch.items, self._database.users.create, self._health)
        batch.start_next()
        await self._publish(committed)
        return committed.results

    # Both

    async def _publish(self, committed: CommittedBatch[Any]) -> None:
        """Wait until the commit is visible."""
        for position in committed.positions:
            self._health.note_postgres(position)
        await asyncio.gather(*map(self._visibility.wait_until_visible, committed.positions))

    def queues(self) -> Sequence[Batcher[Any, Any]]:
        """Return the queues."""
        return (self._idempotency.lookups, self._scores, self._users)

    async def close(self) -> None:
        """Finish what was begun."""
        for queue in self.queues():
            await queue.close()


def _first_score(item: NewScore, first: FirstWrite) -> ScoreSet:
    """Return the result of a score that was set before, with the present name. Raises UserNotFound."""
    if first.user_name is None or first.previous_score is None:
        raise UserNotFound(item.user_id)
    return ScoreSet(item.user_id, first.user_name, first.image_url, item.total_score, first.previous_score)
