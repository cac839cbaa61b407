"""Finds the users of external ids, the callers' own ids, and remembers some of them.

PostgreSQL sees to it that an external id stays with its user while that exists, and user ids are never used again.
So what is remembered is right until the user is erased. Then whatever is done with its number finds no user, and
PostgreSQL is asked once more. An external id that no user has is not remembered: another process may give it to a
user at any time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits, cancel_is_safe
from leaderboard.database.database import Database
from leaderboard.errors import ExternalIdNotFound, LeaderboardError, LockedOut, NotOnBoard, UserNotFound
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import Account, ExternalId, UserRef
from leaderboard.sync.visibility import Visibility

_BATCH = 1000
_NO_USER = 0
"""The number of no user: what is done with it fails as it does for any unknown user."""
_TRIES = 5
"""How often a user may be created and erased by others while this process looks for it."""

Answer = TypeVar("Answer")


class UserIds:
    """The numbers of users by their external ids, as one process finds them."""

    def __init__(
        self,
        database: Database,
        visibility: Visibility,
        health: Health,
        metrics: Metrics,
        limits: QueueLimits,
        remembered: int,
    ) -> None:
        """`remembered` is how many users are remembered, at most."""
        self._database = database
        self._visibility = visibility
        self._health = health
        self._metrics = metrics
        self._max_remembered = remembered
        # In the order of their last use; of one epoch of the database, as another one may give numbers again.
        self._numbers: dict[ExternalId, int] = {}
        self._epoch: str | None = None
        self.lookups: Batcher[ExternalId, Account | None] = Batcher(
            "external ids", self._look_up, limits, BatchLimits(_BATCH), deduplicate=True
        )

    async def account(self, external_id: ExternalId) -> Account | None:
        """Return the user with this external id by PostgreSQL, hidden or not, None if there is none."""
        self._health.check_postgres()
        with cancel_is_safe():
            account = await self.lookups.ask(external_id)
        if account is None:
            self._numbers.pop(external_id, None)
        else:
            self.remember(external_id, account.user_id)
        return account

    async def numbers(self, external_ids: Sequence[ExternalId]) -> Mapping[ExternalId, int]:
        """Return the number of each by PostgreSQL; for an unknown one, a number that no user has."""
        accounts = await asyncio.gather(*map(self.account, external_ids))
        return {
            external_id: _NO_USER if account is None else account.user_id
            for external_id, account in zip(external_ids, accounts, strict=True)
        }

    async def with_number(
        self,
        user: UserRef,
        act: Callable[[int], Awaitable[Answer]],
        create: Callable[[], Awaitable[Answer | None]] | None = None,
        *,
        by_memory: bool = True,
    ) -> Answer:
        """Return what `act` returns for the number of a user.

        Without a user of an external id, returns what `create` returns, which is None if another caller has
        created it meanwhile. Raises what `act` raises. What it says of an unknown user names the external id, and
        so does not tell whether a hidden user has it. Without `by_memory` PostgreSQL is asked first.
        """
        if isinstance(user, int):
            return await act(user)
        external_id = user
        number = self._remembered(external_id) if by_memory else None
        if number is not None:
            try:
                return await act(number)
            except (UserNotFound, NotOnBoard) as error:
                if await self._number(external_id) == number:
                    raise _about(external_id, error) from None
        for _ in range(_TRIES):
            number = await self._number(external_id)
            if number == _NO_USER and create is not None:
                created = await create()
                if created is not None:
                    return created
                continue
            try:
                return await act(number)
            except (UserNotFound, NotOnBoard) as error:
                if create is None:
                    raise _about(external_id, error) from None
        raise LockedOut(f"the user with the external id {external_id!r} is being created and erased all the time")

    def remember(self, external_id: ExternalId, number: int) -> None:
        """Remember the number of a user, of whom PostgreSQL has just told."""
        self._keep_to_the_epoch()
        self._numbers.pop(external_id, None)
        self._numbers[external_id] = number
        if len(self._numbers) > self._max_remembered:
            del self._numbers[next(iter(self._numbers))]

    def _remembered(self, external_id: ExternalId) -> int | None:
        self._keep_to_the_epoch()
        number = self._numbers.pop(external_id, None)
        if number is not None:
            self._numbers[external_id] = number
        return number

    def _keep_to_the_epoch(self) -> None:
        if self._epoch != self._health.epoch:
            self._epoch = self._health.epoch
            self._numbers.clear()

    async def _number(self, external_id: ExternalId) -> int:
        account = await self.account(external_id)
        return _NO_USER if account is None else account.user_id

    async def _look_up(self, batch: Batch[ExternalId]) -> Sequence[Account | None]:
        self._metrics.batch_items.labels("external ids").observe(len(batch.items))
        found = await self._database.users.find_external_ids(batch.items)
        batch.start_next()
        self._health.note_postgres(found.position)
        # That a user is unknown is an answer, too: no later read may show it.
        await self._visibility.wait_until_visible(found.position)
        return [found.value.get(external_id) for external_id in batch.items]


def _about(external_id: ExternalId, error: UserNotFound | NotOnBoard) -> LeaderboardError:
    if isinstance(error, NotOnBoard):
        return NotOnBoard(f"@{external_id}", error.board)
    return ExternalIdNotFound(external_id)
