"""Large items run alone, one at a time, and small items do not wait for them."""

import asyncio
from collections.abc import Sequence

import pytest

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits
from tests.writes.batchers import Handler, run_ready_tasks, submitted

pytestmark = pytest.mark.anyio


def large_batcher(handler: Handler, concurrency: int) -> Batcher[str, str]:
    """Returns a batcher for which an item in capital letters is large."""
    limits = BatchLimits(2, concurrency, large_cost=1)
    return Batcher("test", handler, QueueLimits(100, 60), limits, cost=lambda item: 2 if item.isupper() else 1)


async def test_a_large_item_runs_alone_and_takes_turns_with_small_ones() -> None:
    handler = Handler()
    tasks = submitted(large_batcher(handler, 1), "a", "X", "b", "Y", "c", "d", "e")
    for batch, items in enumerate([["X"], ["a", "b"], ["Y"], ["c", "d"], ["e"]]):
        await handler.reached(batch + 1)
        assert handler.batches[batch] == items
        handler.finish(batch)
    await asyncio.gather(*tasks)


async def test_one_large_item_runs_at_a_time_and_small_ones_do_not_wait_for_it() -> None:
    handler = Handler()
    tasks = submitted(large_batcher(handler, 3), "X", "Y", "a", "b", "c")
    await handler.started(["X"], ["a", "b"], ["c"])
    handler.finish(1)
    await run_ready_tasks()
    assert len(handler.batches) == 3, "the other large item waits"
    handler.finish(0)
    await handler.started(["X"], ["a", "b"], ["c"], ["Y"])
    for batch in (2, 3):
        handler.finish(batch)
    assert await asyncio.gather(*tasks) == ["X of 0", "Y of 3", "a of 1", "b of 1", "c of 2"]


async def test_a_large_item_starts_as_soon_as_the_large_one_before_it_allows_it() -> None:
    publishes = Handler()

    async def read(batch: Batch[str]) -> Sequence[str | Exception]:
        batch.start_next()
        return await publishes.handle(batch.items)

    limits = BatchLimits(2, 2, large_cost=1)
    batcher = Batcher("test", read, QueueLimits(100, 60), limits, cost=lambda _item: 2)
    tasks = submitted(batcher, "X", "Y", "Z")
    await publishes.started(["X"], ["Y"], ["Z"])
    for batch in range(3):
        publishes.finish(batch)
    await asyncio.gather(*tasks)
