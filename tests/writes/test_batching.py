"""Group commit: which items share a batch, which callers get an error, and when the queue is full."""

import asyncio
from collections.abc import Sequence

import pytest

from leaderboard.batching import Batch, Batcher, BatchLimits, CancelledBeforeStart, QueueLimits
from leaderboard.errors import Overloaded
from tests.system import PATIENCE_S
from tests.writes.batchers import Handler, run_ready_tasks, submitted

pytestmark = pytest.mark.anyio


async def test_an_item_joins_only_a_batch_that_has_not_started() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10))
    early = submitted(batcher, "a", "b")
    await handler.started(["a", "b"])
    late = submitted(batcher, "c") + submitted(batcher, "d")
    await run_ready_tasks()
    assert handler.batches == [["a", "b"]]
    assert batcher.depth == 2
    handler.finish(0)
    assert await asyncio.gather(*early) == ["a of 0", "b of 0"]
    await handler.started(["a", "b"], ["c", "d"])
    assert batcher.depth == 0
    handler.finish(1)
    assert await asyncio.gather(*late) == ["c of 1", "d of 1"]


async def test_a_batch_has_a_maximum_size_and_keeps_the_order() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(3))
    tasks = submitted(batcher, *"abcdefgh")
    for batch, items in enumerate([["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]):
        await handler.reached(batch + 1)
        assert handler.batches[batch] == items
        handler.finish(batch)
    assert [answer[0] for answer in await asyncio.gather(*tasks)] == list("abcdefgh")


async def test_equal_items_of_one_batch_share_a_result() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10), deduplicate=True)
    tasks = submitted(batcher, "a", "b", "a", "a")
    await handler.started(["a", "b"])
    handler.finish(0)
    answers = await asyncio.gather(*tasks)
    assert answers == ["a of 0", "b of 0", "a of 0", "a of 0"]
    assert answers[0] is answers[2] is answers[3]


async def test_an_item_does_not_share_the_result_of_a_batch_that_has_started() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10), deduplicate=True)
    early = submitted(batcher, "a")
    await handler.started(["a"])
    late = submitted(batcher, "a", "a")
    await run_ready_tasks()
    handler.finish(0)
    assert await asyncio.gather(*early) == ["a of 0"]
    await run_ready_tasks()
    assert not any(task.done() for task in late)
    await handler.started(["a"], ["a"])
    handler.finish(1)
    assert await asyncio.gather(*late) == ["a of 1", "a of 1"]


async def test_equal_items_are_handled_separately_without_deduplication() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10))
    tasks = submitted(batcher, "a", "a", "b")
    await handler.started(["a", "a", "b"])
    handler.answer(0, ["first", "second", "third"])
    assert await asyncio.gather(*tasks) == ["first", "second", "third"]


@pytest.mark.parametrize("deduplicate", [False, True])
async def test_the_error_of_one_item_goes_to_its_caller_only(deduplicate: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10), deduplicate=deduplicate)
    tasks = submitted(batcher, "a", "b", "c")
    await handler.started(["a", "b", "c"])
    handler.answer(0, ["fine", ValueError("b is bad"), "fine too"])
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[::2] == ["fine", "fine too"]
    assert isinstance(answers[1], ValueError)


async def test_the_error_of_a_batch_goes_to_its_callers_only() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(2), deduplicate=True)
    tasks = submitted(batcher, "a", "b", "c", "b")
    await handler.started(["a", "b"])
    handler.fail(0, ValueError("all bad"))
    await handler.started(["a", "b"], ["c"])
    handler.finish(1)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError, str, ValueError]
    assert batcher.depth == 0


@pytest.mark.parametrize("deduplicate", [False, True])
async def test_a_full_queue_rejects_an_item_at_once(deduplicate: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(2, 60), BatchLimits(10), deduplicate=deduplicate)
    tasks = submitted(batcher, "a")
    await handler.started(["a"])
    tasks += submitted(batcher, "b", "b")  # callers that share a result are still two callers
    await run_ready_tasks()
    assert batcher.depth == 2
    with pytest.raises(Overloaded, match="test"):
        batcher.submit("b").send(None)  # raises before it waits
    handler.finish(0)
    await handler.reached(2)
    tasks += submitted(batcher, "c")
    await run_ready_tasks()
    handler.finish(1)
    await handler.reached(3)
    handler.finish(2)
    assert await asyncio.gather(*tasks) == ["a of 0", "b of 1", "b of 1", "c of 2"]


@pytest.mark.parametrize("when", ["before it starts", "while it runs"])
async def test_a_cancelled_caller_cancels_neither_its_batch_nor_other_callers(when: str) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10), deduplicate=True)
    first = submitted(batcher, "x")
    await handler.started(["x"])
    tasks = submitted(batcher, "a", "a", "b", "c")
    await run_ready_tasks()
    leaving = [tasks[0], tasks[3]]
    if when == "while it runs":
        handler.finish(0)
        await handler.started(["x"], ["a", "b", "c"])
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    if when == "before it starts":
        handler.finish(0)
        await handler.started(["x"], ["a", "b"])  # "c" has no caller left
    handler.finish(1)
    answers = await asyncio.wait_for(asyncio.gather(*first, tasks[1], tasks[2]), PATIENCE_S)
    assert answers == ["x of 0", "a of 1", "b of 1"]
    assert all(task.cancelled() for task in leaving)
    assert batcher.depth == 0


@pytest.mark.parametrize("deduplicate", [False, True])
async def test_a_cancelled_caller_learns_whether_its_batch_had_started(deduplicate: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10), deduplicate=deduplicate)
    learned = []

    async def submit(item: str) -> None:
        try:
            await batcher.submit(item)
        except asyncio.CancelledError as error:
            learned.append((item, isinstance(error, CancelledBeforeStart)))
            raise

    begun = asyncio.create_task(submit("begun"))
    await handler.started(["begun"])
    waiting = asyncio.create_task(submit("waiting"))
    await run_ready_tasks()
    for task in (begun, waiting):
        task.cancel()
    await asyncio.gather(begun, waiting, return_exceptions=True)
    assert learned == [("begun", False), ("waiting", True)]
    handler.finish(0)
    await run_ready_tasks()
    assert handler.batches == [["begun"]], "a cancelled item is not handled"
    assert batcher.depth == 0


async def test_a_slow_queue_accepts_only_the_next_batches() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 0.05), BatchLimits(2, 2), deduplicate=True)
    tasks = submitted(batcher, *"abcd")
    await handler.started(["a", "b"], ["c", "d"])
    tasks += submitted(batcher, *"efg")
    await asyncio.sleep(0.06)
    tasks += submitted(batcher, "h")
    await run_ready_tasks()
    with pytest.raises(Overloaded, match=r"the queue for test is longer than 0\.05 s"):
        batcher.submit("i").send(None)
    tasks += submitted(batcher, "h")  # a shared result costs nothing
    await run_ready_tasks()
    handler.finish(0)
    await handler.reached(3)
    handler.finish(1)
    await handler.reached(4)
    tasks += submitted(batcher, *"jklm")
    await run_ready_tasks()
    assert batcher.depth == 4
    for batch in (2, 3):
        handler.finish(batch)
    await handler.reached(6)
    for batch in (4, 5):
        handler.finish(batch)
    await asyncio.gather(*tasks)


async def test_concurrency_limits_how_many_batches_run_at_once() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(1, 2))
    tasks = submitted(batcher, "a", "b", "c", "d")
    await handler.started(["a"], ["b"])
    handler.finish(1)
    await handler.started(["a"], ["b"], ["c"])
    handler.finish(2)
    handler.fail(0, ValueError("the worker survives this"))
    await handler.started(["a"], ["b"], ["c"], ["d"])
    handler.finish(3)
    assert await asyncio.gather(*tasks[1:]) == ["b of 1", "c of 2", "d of 3"]
    with pytest.raises(ValueError, match="survives"):
        await tasks[0]
    again = submitted(batcher, "e", "f", "g")
    await handler.reached(6)
    await run_ready_tasks()
    assert len(handler.batches) == 6, "still two at once"
    handler.finish(4)
    await handler.reached(7)
    handler.finish(5)
    handler.finish(6)
    await asyncio.gather(*again)


async def test_close_waits_for_every_submitted_item() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(1))
    tasks = submitted(batcher, "a", "b")
    await handler.started(["a"])
    closing = asyncio.create_task(batcher.close())
    await run_ready_tasks()
    assert not closing.done()
    handler.finish(0)
    await handler.started(["a"], ["b"])
    assert not closing.done()
    handler.finish(1)
    await asyncio.wait_for(closing, PATIENCE_S)
    assert tasks[0].result() == "a of 0"
    await asyncio.wait_for(batcher.close(), PATIENCE_S)


async def test_a_handler_can_let_the_next_batch_start_before_it_returns() -> None:
    commits, publishes = Handler(), Handler()

    async def write(batch: Batch[str]) -> Sequence[str | Exception]:
        results = await commits.handle(batch.items)
        batch.start_next()
        await publishes.handle([str(result) for result in results])
        return results

    batcher = Batcher("test", write, QueueLimits(100, 60), BatchLimits(2))
    tasks = submitted(batcher, *"abc")
    await commits.started(["a", "b"])
    commits.answer(0, ["a of 0", ValueError("b is wrong")])
    await publishes.started(["a of 0", "b is wrong"])
    await commits.started(["a", "b"], ["c"])
    assert not any(task.done() for task in tasks)
    commits.finish(1)
    await publishes.reached(2)
    closing = asyncio.create_task(batcher.close())
    publishes.finish(1)
    assert await asyncio.wait_for(tasks[2], PATIENCE_S) == "c of 1"
    assert not tasks[0].done()
    assert not tasks[1].done()
    assert not closing.done()
    publishes.finish(0)
    assert await asyncio.wait_for(tasks[0], PATIENCE_S) == "a of 0"
    with pytest.raises(ValueError, match="b is wrong"):
        await tasks[1]
    await asyncio.wait_for(closing, PATIENCE_S)


async def test_an_error_after_the_next_batch_has_started_goes_to_every_caller() -> None:
    async def write(batch: Batch[str]) -> Sequence[str | Exception]:
        batch.start_next()
        raise ConnectionError

    batcher = Batcher("test", write, QueueLimits(100, 60), BatchLimits(2))
    results = await asyncio.gather(*submitted(batcher, *"abc"), return_exceptions=True)
    assert list(map(type, results)) == [ConnectionError] * 3


async def test_a_cancelled_batch_does_not_stop_the_queue() -> None:
    async def handle(batch: Batch[str]) -> Sequence[str]:
        if batch.items == ["cancelled"]:
            raise asyncio.CancelledError
        return batch.items

    batcher = Batcher("test", handle, QueueLimits(100, 60), BatchLimits(10))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(batcher.submit("cancelled"), PATIENCE_S)
    assert await asyncio.wait_for(batcher.submit("a"), PATIENCE_S) == "a"
