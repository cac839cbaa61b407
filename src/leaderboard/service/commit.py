"""Commits a batch of writes by one statement; if items are at fault, the others without them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from leaderboard.batching import isolate_failures
from leaderboard.database.rows import Committed
from leaderboard.errors import DatabaseReadOnly, DatabaseRefused, IdempotencyKeyInUse, LockedOut
from leaderboard.health import Health
from leaderboard.snapshot import Position

_FAULTS_OF_ITEMS = (DatabaseRefused, LockedOut, IdempotencyKeyInUse)
"""Errors that one item of a batch can cause. The other items are then written without it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CommittedBatch(Generic[Result]):
    """The results of a batch in order, and the position of its commit.

    There are several positions only if the batch had to be divided, because items were at fault.
    """

    results: Sequence[Result | Exception]
    positions: frozenset[Position]


async def commit(
    items: Sequence[Item],
    statement: Callable[[Sequence[Item]], Awaitable[Committed[Result]]],
    health: Health,
) -> CommittedBatch[Result]:
    """Write all items by `statement`, and return what it did to each."""
    results: list[Result | Exception] = []
    positions: set[Position] = set()

    async def write(part: Sequence[Item]) -> Committed[Result]:
        try:
            return await statement(part)
        except DatabaseReadOnly as error:
            health.note_read_only(error)
            raise

    for part, committed in await isolate_failures(items, write, _FAULTS_OF_ITEMS):
        if isinstance(committed, Exception):
            results += [committed] * len(part)
        else:
            results += committed.results
            positions.add(committed.position)
    return CommittedBatch(results, frozenset(positions))
