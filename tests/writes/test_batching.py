"""Group commit: who shares a batch with whom, whose failure is whose, and where the queue ends."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.batching import Batcher, Bounds, CancelledBeforeStart, bisect
from leaderboard.errors import Overloaded
from tests.system import PATIENCE_S

pytestmark = pytest.mark.anyio


class Handler:
    """Handles nothing until it is told to, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._gates: list[asyncio.Future[Sequence[str | Exception]]] = []

    async def __call__(self, items: Sequence[str]) -> Sequence[str | Exception]:
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
    batcher = Batcher("test", handler, Bounds(100, 60), most=10)
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
    batcher = Batcher("test", handler, Bounds(100, 60), most=3)
    tasks = submitted(batcher, *"abcdefgh")
    for batch, items in enumerate([["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]):
        await handler.reached(batch + 1)
        assert handler.batches[batch] == items
        handler.finish(batch)
    assert [answer[0] for answer in await asyncio.gather(*tasks)] == list("abcdefgh")


async def test_identical_questions_of_one_batch_share_one_answer() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=10, share=True)
    tasks = submitted(batcher, "a", "b", "a", "a")
    await handler.started(["a", "b"])
    handler.finish(0)
    answers = await asyncio.gather(*tasks)
    assert answers == ["a of 0", "b of 0", "a of 0", "a of 0"]
    assert answers[0] is answers[2] is answers[3]


async def test_a_question_does_not_share_the_answer_of_a_batch_that_has_started() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=10, share=True)
    early = submitted(batcher, "a")
    await handler.started(["a"])
    late = submitted(batcher, "a", "a")
    await others_had_their_turn()
    handler.finish(0)
    assert await asyncio.gather(*early) == ["a of 0"]
    await handler.started(["a"], ["a"])
    handler.finish(1)
    assert await asyncio.gather(*late) == ["a of 1", "a of 1"]


async def test_identical_writes_are_each_done() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=10)
    tasks = submitted(batcher, "a", "a", "b")
    await handler.started(["a", "a", "b"])
    handler.answer(0, ["first", "second", "third"])
    assert await asyncio.gather(*tasks) == ["first", "second", "third"]


@pytest.mark.parametrize("share", [False, True])
async def test_the_exception_of_one_item_is_its_own(share: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=10, share=share)
    tasks = submitted(batcher, "a", "b", "c")
    await handler.started(["a", "b", "c"])
    handler.answer(0, ["fine", ValueError("b is bad"), "fine too"])
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[::2] == ["fine", "fine too"]
    assert isinstance(answers[1], ValueError)


async def test_the_exception_of_a_batch_is_everybodys_and_only_theirs() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=2, share=True)
    tasks = submitted(batcher, "a", "b", "c", "b")
    await handler.started(["a", "b"])
    handler.fail(0, ValueError("all bad"))
    await handler.started(["a", "b"], ["c"])
    handler.finish(1)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError, str, ValueError]
    assert batcher.depth == 0


@pytest.mark.parametrize("share", [False, True])
async def test_beyond_the_bound_an_item_is_refused_at_once(share: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(2, 60), most=10, share=share)
    tasks = submitted(batcher, "a")
    await handler.started(["a"])
    tasks += submitted(batcher, "b", "b")  # two who share an answer are still two who wait
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
async def test_a_cancelled_waiter_cancels_neither_its_batch_nor_other_sharers(when: str) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=10, share=True)
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
        await handler.started(["x"], ["a", "b"])  # nobody waits for "c" any more
    handler.finish(1)
    answers = await asyncio.wait_for(asyncio.gather(*first, tasks[1], tasks[2]), PATIENCE_S)
    assert answers == ["x of 0", "a of 1", "b of 1"]
    assert all(task.cancelled() for task in leaving)
    assert batcher.depth == 0


@pytest.mark.parametrize("share", [False, True])
async def test_whoever_is_cancelled_is_told_whether_its_batch_had_begun(share: bool) -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=10, share=share)
    told = []

    async def submit(item: str) -> None:
        try:
            await batcher.submit(item)
        except asyncio.CancelledError as error:
            told.append((item, isinstance(error, CancelledBeforeStart)))
            raise

    begun = asyncio.create_task(submit("begun"))
    await handler.started(["begun"])
    waiting = asyncio.create_task(submit("waiting"))
    await others_had_their_turn()
    for task in (begun, waiting):
        task.cancel()
    await asyncio.gather(begun, waiting, return_exceptions=True)
    assert told == [("begun", False), ("waiting", True)]
    handler.finish(0)
    await others_had_their_turn()
    assert handler.batches == [["begun"]], "what was dropped is not done"
    assert batcher.depth == 0


async def test_a_queue_that_is_slow_takes_no_more_than_the_next_round() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 0.05), most=2, lanes=2, share=True)
    tasks = submitted(batcher, *"abcd")
    await handler.started(["a", "b"], ["c", "d"])
    tasks += submitted(batcher, *"efg")
    await asyncio.sleep(0.06)
    tasks += submitted(batcher, "h")
    await others_had_their_turn()
    with pytest.raises(Overloaded, match=r"the queue for test is longer than 0\.05 s"):
        batcher.submit("i").send(None)
    tasks += submitted(batcher, "h")  # to share an answer costs nobody anything
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


async def test_lanes_run_that_many_batches_at_once() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=1, lanes=2)
    tasks = submitted(batcher, "a", "b", "c", "d")
    await handler.started(["a"], ["b"])
    handler.finish(1)
    await handler.started(["a"], ["b"], ["c"])
    handler.finish(2)
    handler.fail(0, ValueError("a lane survives this"))
    await handler.started(["a"], ["b"], ["c"], ["d"])
    handler.finish(3)
    assert await asyncio.gather(*tasks[1:]) == ["b of 1", "c of 2", "d of 3"]
    with pytest.raises(ValueError, match="survives"):
        await tasks[0]
    again = submitted(batcher, "e", "f", "g")
    await handler.reached(6)
    await others_had_their_turn()
    assert len(handler.batches) == 6, "still two lanes, no more"
    handler.finish(4)
    await handler.reached(7)
    handler.finish(5)
    handler.finish(6)
    await asyncio.gather(*again)


async def test_close_waits_for_all_that_was_submitted() -> None:
    handler = Handler()
    batcher = Batcher("test", handler, Bounds(100, 60), most=1)
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


async def test_nobody_gets_a_result_before_it_is_released_and_the_next_batch_does_not_wait_for_that() -> None:
    handler, release = Handler(), Handler()

    async def released(results: Sequence[str | Exception]) -> None:
        await release([str(result) for result in results])

    batcher = Batcher("test", handler, Bounds(100, 60), most=2, release=released)
    tasks = submitted(batcher, *"abc")
    await handler.started(["a", "b"])
    handler.answer(0, ["a of 0", ValueError("b is wrong")])
    await release.started(["a of 0", "b is wrong"])
    await handler.started(["a", "b"], ["c"])
    assert not any(task.done() for task in tasks)
    handler.finish(1)
    await release.reached(2)
    closing = asyncio.create_task(batcher.close())
    release.finish(1)
    assert await asyncio.wait_for(tasks[2], PATIENCE_S) == "c of 1"
    assert not tasks[0].done()
    assert not tasks[1].done()
    assert not closing.done()
    release.finish(0)
    assert await asyncio.wait_for(tasks[0], PATIENCE_S) == "a of 0"
    with pytest.raises(ValueError, match="b is wrong"):
        await tasks[1]
    await asyncio.wait_for(closing, PATIENCE_S)


async def test_what_cannot_be_released_is_told_to_nobody() -> None:
    handler = Handler()

    async def released(_results: Sequence[str | Exception]) -> None:
        raise ConnectionError

    batcher = Batcher("test", handler, Bounds(100, 60), most=2, release=released)
    tasks = submitted(batcher, *"ab")
    await handler.started(["a", "b"])
    handler.finish(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert list(map(type, results)) == [ConnectionError, ConnectionError]


class Guilty(Exception):
    """What a batch raises that has a guilty item in it."""


@given(st.integers(1, 60), st.frozensets(st.integers(0, 59), max_size=5))
async def test_bisect_finds_the_guilty_and_does_all_others_once(size: int, guilty: frozenset[int]) -> None:
    calls: list[list[int]] = []
    done: list[int] = []

    async def handle(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        if guilty & set(items):
            raise Guilty
        done.extend(items)
        return [10 * item for item in items]

    results = await bisect(range(size), handle, Guilty)
    found = {item for item, result in enumerate(results) if isinstance(result, Guilty)}
    assert found == {item for item in guilty if item < size}
    assert [result for result in results if not isinstance(result, Guilty)] == [10 * item for item in done]
    assert done == [item for item in range(size) if item not in guilty]
    assert len(calls) <= 1 + 2 * len(found) * size.bit_length()


async def test_bisect_passes_on_what_is_nobodys_fault() -> None:
    calls = []

    async def handle(items: Sequence[int]) -> list[int]:
        calls.append(items)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await bisect(range(10), handle, Guilty)
    assert len(calls) == 1


@pytest.mark.parametrize("failing", [0, 1])
async def test_bisect_keeps_what_one_half_did_when_the_other_cannot_be_done(failing: int) -> None:
    """The first was committed: it must not be told that nothing was changed."""

    async def handle(items: Sequence[int]) -> list[str]:
        if len(items) > 1:
            raise KeyError("together they cannot")
        if items[0] == failing:
            raise ConnectionError("lost")
        return [f"done {items[0]}"]

    results = await bisect([0, 1], handle, KeyError)
    assert [str(result) for result in results] == [
        "lost" if item == failing else f"done {item}" for item in (0, 1)
    ]
