"""Large items run alone, one at a time, and small items do not wait for them."""

import asyncio
from collections.abc import Sequence

import pytest

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits
from leaderboard.errors import Overloaded
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


async def test_the_expected_wait_of_small_items_does_not_count_large_ones() -> None:
    async def handle(batch: Batch[str]) -> Sequence[str]:
        await asyncio.sleep(0.2 if len(batch.items[0]) > 5 else 0)
        return batch.items

    limits = BatchLimits(1, concurrency=2, large_cost=5)
    batcher = Batcher("test", handle, QueueLimits(100, 0.1), limits, cost=len)
    for _ in range(3):
        await batcher.submit("a large one")
    assert await asyncio.gather(*submitted(batcher, *"abcdefghijkl")) == list("abcdefghijkl")
    with pytest.raises(Overloaded):
        await asyncio.gather(*submitted(batcher, *(f"the large one {n}" for n in range(4))))
    await batcher.close()


async def test_callers_of_large_items_leave_room_for_small_ones() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(2, 60), BatchLimits(10, 2, large_cost=5), cost=len)
    large = submitted(batcher, "the large one")
    await handler.reached(1)
    large += submitted(batcher, "another large one", "a third large one")
    await run_ready_tasks()
    with pytest.raises(Overloaded):
        await batcher.submit("a fourth large one")
    small = submitted(batcher, "a")
    await handler.reached(2)
    for batch in range(4):
        await handler.reached(batch + 1)
        handler.finish(batch)
    await asyncio.gather(*large, *small)
