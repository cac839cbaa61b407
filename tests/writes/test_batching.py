"""Group commit: which items share a batch, which callers get an error, and when the queue is full."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.batching import Batch, Batcher, BatchLimits, CancelledBeforeStart, QueueLimits, isolate_failures
from leaderboard.errors import Overloaded
from tests.system import PATIENCE_S

pytestmark = pytest.mark.anyio


class Handler:
    """Handles a batch when the test says so, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._gates: list[asyncio.Future[Sequence[str | Exception]]] = []

    async def __call__(self, batch: Batch[str]) -> Sequence[str | Exception]:
        return await self.handle(batch.items)

    async def handle(self, items: Sequence[str]) -> Sequence[str | Exception]:
        gate: asyncio.Future[Sequence[str | Exception]] = asyncio.get_running_loop().create_future()
        self.batches.append(list(items))
        self._gates.append(gate)
        return await gate

    def finish(self, batch: int) -> None:
        """Answer each item of that batch with itself and the batch's number."""
        self._gates[batch].set_result([f"{item} of {batch}" for item in self.batches[batch]])

    def answer(self, batch: int, results: Sequence[str | Exception]) -> None:
        self._gates[batch].set_result(results)

    def fail(self, batch: int, error: Exception) -> None:
        self._gates[batch].set_exception(error)

    async def reached(self, count: int) -> None:
        """Wait until that many batches have started."""
        await until(lambda: len(self.batches) >= count)

    async def started(self, *batches: list[str]) -> None:
        """Wait until exactly these batches have started."""
        await self.reached(len(batches))
        await others_had_their_turn()
        assert self.batches == list(batches)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s"
        await asyncio.sleep(0)


async def others_had_their_turn() -> None:
    """Let whatever is ready run; for showing that something does not happen."""
    for _ in range(20):
        await asyncio.sleep(0)


def submitted(batcher: Batcher[str, str], *items: str) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(batcher.submit(item)) for item in items]


async def test_an_item_joins_only_a_batch_that_has_not_started() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(10))
    early = submitted(batcher, "a", "b")
    await handler.started(["a", "b"])
    late = submitted(batcher, "c") + submitted(batcher, "d")
    await others_had_their_turn()
    assert handler.batches == [["a", "b"]]
    assert batcher.depth == 2
    handler.finish(0)
    assert await asyncio.gather(*early) == ["a of 0", "b of 0"]
    await handler.started(["a", "b"], ["c", "d"])
    assert batcher.depth == 0
    handler.finish(1)
    assert await asyncio.gather(*late) == ["c of 1", "d of 1"]


async def test_a_batch_has_a_greatest_size_and_keeps_the_order() -> None:
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
    await others_had_their_turn()
    handler.finish(0)
    assert await asyncio.gather(*early) == ["a of 0"]
    await others_had_their_turn()
    assert not any(task.done() for task in late)
    await handler.started(["a"], ["a"])
    handler.finish(1)
    assert await asyncio.gather(*late) == ["a of 1", "a of 1"]


async def test_identical_writes_are_each_done() -> None:
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
async def test_a_full_queue_refuses_an_item_at_once(deduplicate: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(2, 60), BatchLimits(10), deduplicate=deduplicate)
    tasks = submitted(batcher, "a")
    await handler.started(["a"])
    tasks += submitted(batcher, "b", "b")  # callers that share a result are still two callers
    await others_had_their_turn()
    assert batcher.depth == 2
    with pytest.raises(Overloaded, match="test"):
        batcher.submit("b").send(None)  # raises before it would wait for anything
    handler.finish(0)
    await handler.reached(2)
    tasks += submitted(batcher, "c")
    await others_had_their_turn()
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
    await others_had_their_turn()
    leaving = [tasks[0], tasks[3]]
    if when == "while it runs":
        handler.finish(0)
        await handler.started(["x"], ["a", "b", "c"])
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    if when == "before it starts":
        handler.finish(0)
        await handler.started(["x"], ["a", "b"])  # "c" has no caller any more
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
    await others_had_their_turn()
    for task in (begun, waiting):
        task.cancel()
    await asyncio.gather(begun, waiting, return_exceptions=True)
    assert learned == [("begun", False), ("waiting", True)]
    handler.finish(0)
    await others_had_their_turn()
    assert handler.batches == [["begun"]], "a cancelled item is not handled"
    assert batcher.depth == 0


async def test_a_slow_queue_takes_no_more_than_the_next_batches() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 0.05), BatchLimits(2, 2), deduplicate=True)
    tasks = submitted(batcher, *"abcd")
    await handler.started(["a", "b"], ["c", "d"])
    tasks += submitted(batcher, *"efg")
    await asyncio.sleep(0.06)
    tasks += submitted(batcher, "h")
    await others_had_their_turn()
    with pytest.raises(Overloaded, match=r"the queue for test is longer than 0\.05 s"):
        batcher.submit("i").send(None)
    tasks += submitted(batcher, "h")  # a shared result costs nothing
    await others_had_their_turn()
    handler.finish(0)
    await handler.reached(3)
    handler.finish(1)
    await handler.reached(4)
    tasks += submitted(batcher, *"jklm")
    await others_had_their_turn()
    assert batcher.depth == 4
    for batch in (2, 3):
        handler.finish(batch)
    await handler.reached(6)
    for batch in (4, 5):
        handler.finish(batch)
    await asyncio.gather(*tasks)


async def test_as_many_batches_run_at_once_as_the_concurrency_says() -> None:
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
    await others_had_their_turn()
    assert len(handler.batches) == 6, "still two at once"
    handler.finish(4)
    await handler.reached(7)
    handler.finish(5)
    handler.finish(6)
    await asyncio.gather(*again)


async def test_close_waits_for_all_that_was_submitted() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, QueueLimits(100, 60), BatchLimits(1))
    tasks = submitted(batcher, "a", "b")
    await handler.started(["a"])
    closing = asyncio.create_task(batcher.close())
    await others_had_their_turn()
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


# Large items


def large_batcher(handler: Handler, concurrency: int) -> Batcher[str, str]:
    """An item in capitals is large."""
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
    await others_had_their_turn()
    assert len(handler.batches) == 3, "the other large item waits"
    handler.finish(0)
    await handler.started(["X"], ["a", "b"], ["c"], ["Y"])
    for batch in (2, 3):
        handler.finish(batch)
    assert await asyncio.gather(*tasks) == ["X of 0", "Y of 3", "a of 1", "b of 1", "c of 2"]


async def test_a_large_item_that_lets_the_next_batch_start_lets_a_large_one_start() -> None:
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


# Isolating failures


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
    await others_had_their_turn()
    with pytest.raises(Overloaded):
        await batcher.submit("a fourth large one")
    small = submitted(batcher, "a")
    await handler.reached(2)
    for batch in range(4):
        await handler.reached(batch + 1)
        handler.finish(batch)
    await asyncio.gather(*large, *small)


async def test_a_cancelled_batch_does_not_stop_the_queue() -> None:
    async def handle(batch: Batch[str]) -> Sequence[str]:
        if batch.items == ["cancelled"]:
            raise asyncio.CancelledError
        return batch.items

    batcher = Batcher("test", handle, QueueLimits(100, 60), BatchLimits(10))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(batcher.submit("cancelled"), PATIENCE_S)
    assert await asyncio.wait_for(batcher.submit("a"), PATIENCE_S) == "a"


class AtFault(Exception):
    """Raised for a batch that has an item at fault."""


async def isolated(items: Sequence[int], handle: Callable[[Sequence[int]], Awaitable[list[Any]]]) -> list[Any]:
    """The result or the error of each item."""
    results: list[Any] = []
    for part, result in await isolate_failures(items, handle, (AtFault,)):
        results += [result] * len(part) if isinstance(result, Exception) else result
    return results


@given(st.integers(1, 60), st.frozensets(st.integers(0, 59), max_size=5))
async def test_the_items_at_fault_are_found_and_all_others_are_done_once(
    size: int, at_fault: frozenset[int]
) -> None:
    calls: list[list[int]] = []
    done: list[int] = []

    async def handle(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        if at_fault & set(items):
            raise AtFault
        done.extend(items)
        return [10 * item for item in items]

    results = await isolated(range(size), handle)
    found = {item for item, result in enumerate(results) if isinstance(result, AtFault)}
    assert found == {item for item in at_fault if item < size}
    assert [result for result in results if not isinstance(result, AtFault)] == [10 * item for item in done]
    assert done == [item for item in range(size) if item not in at_fault]
    assert len(calls) <= 1 + 2 * len(found) * size.bit_length()


async def test_an_error_that_no_item_can_cause_is_raised() -> None:
    calls = []

    async def handle(items: Sequence[int]) -> list[int]:
        calls.append(items)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await isolated(range(10), handle)
    assert len(calls) == 1


@pytest.mark.parametrize("failing", [0, 1])
async def test_the_results_of_one_half_are_kept_when_the_other_half_fails(failing: int) -> None:
    """The first half was committed: its callers must not be told that nothing was changed."""

    async def handle(items: Sequence[int]) -> list[str]:
        if len(items) > 1:
            raise AtFault
        if items[0] == failing:
            raise ConnectionError("lost")
        return [f"done {items[0]}"]

    results = await isolated([0, 1], handle)
    assert [str(result) for result in results] == [
        "lost" if item == failing else f"done {item}" for item in (0, 1)
    ]
