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
from leaderboard.database.idempotency_keys import FirstWrite, IdempotencyKey
from leaderboard.database.scores import NewScore
from leaderboard.database.users import NewUser
from leaderboard.database.writing import NotWritten
from leaderboard.errors import (
    ExternalIdTaken,
    LockedOut,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import ExternalId, ScoreSet, User, UserRef
from leaderboard.service.commit import CommittedBatch, commit
from leaderboard.service.idempotency import Idempotency, Once, idempotency_key
from leaderboard.service.user_ids import UserIds
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
        user_ids: UserIds,
        metrics: Metrics,
        limits: QueueLimits,
        tuning: WriteTuning,
    ) -> None:
        self._database = database
        self._user_ids = user_ids
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

    async def set_score(
        self, user: UserRef, total_score: int, once: Once | None = None, user_name: str | None = None
    ) -> ScoreSet:
        """Set a user's score. A user of that external id who does not exist is created with `user_name`.

        Raises UserNotFound, UsernameTaken if a user would be created with a taken name, and with `once` what
        `Idempotency.once` raises.
        """
        self._health.check_writable()
        if once is None:
            return await self._set_score(user, total_score, None, user_name)
        asked = user if isinstance(user, int) else (user, user_name)
        key = idempotency_key(*once, ("set", asked, total_score))
        return await self._idempotency.once(
            key,
            lambda: self._set_score(user, total_score, key, user_name),
            lambda first: _first_score(total_score, first),
        )

    async def _set_score(
        self, user: UserRef, total_score: int, key: IdempotencyKey | None, user_name: str | None
    ) -> ScoreSet:
        if isinstance(user, int):
            return await self._submit_score(NewScore(user, total_score, key))

        async def create() -> ScoreSet | None:
            item = NewUser(user_name or "", None, total_score, key, user)
            try:
                made = await self._submit_user(item)
            except ExternalIdTaken:
                return None
            return ScoreSet(made.user_id, made.user_name, None, total_score, 0, user)

        return await self._user_ids.with_number(
            user,
            lambda user_id: self._submit_score(NewScore(user_id, total_score, key)),
            None if user_name is None else create,
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
        self,
        user_name: str,
        image_url: str | None,
        total_score: int,
        once: Once | None = None,
        external_id: ExternalId | None = None,
    ) -> User:
        """Create a user.

        Raises UsernameTaken, ExternalIdTaken, and with `once` what `Idempotency.once` raises.
        """
        self._health.check_writable()
        if once is None:
            return await self._submit_user(NewUser(user_name, image_url, total_score, None, external_id))
        request = ("create", user_name, image_url, total_score)
        key = idempotency_key(*once, request if external_id is None else (*request, external_id))
        item = NewUser(user_name, image_url, total_score, key, external_id)
        return await self._idempotency.once(
            key,
            lambda: self._submit_user(item),
            lambda first: User(first.user_id, user_name, image_url, total_score, external_id),
        )

    async def _submit_user(self, item: NewUser) -> User:
        result = await self._users.submit(item)
        deadline = time.monotonic() + self._tuning.row_wait_s
        while result is NotWritten.AGAIN:
            if time.monotonic() > deadline:
                raise LockedOut(f"other writes create and erase the user {item.user_name!r} all the time")
            with cancel_is_safe():
                await asyncio.sleep(random.uniform(*self._tuning.row_retry_s))
            result = await self._users.submit(item)
        if isinstance(result, User):
            if item.external_id is not None:
                self._user_ids.remember(item.external_id, result.user_id)
            return result
        if result is NotWritten.ID_TAKEN:
            raise ExternalIdTaken(item.external_id or "")
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


def _first_score(total_score: int, first: FirstWrite) -> ScoreSet:
    """Return the result of a score that was set before, with the present name. Raises UserNotFound.

    A user that was created with its score has had none before.
    """
    if first.user_name is None:
        raise UserNotFound(first.user_id)
    previous_score = first.previous_score or 0
    return ScoreSet(
        first.user_id, first.user_name, first.image_url, total_score, previous_score, first.external_id
    )
