"""The deadline of requests, and the room for large answers."""

import asyncio
import time

import pytest

from leaderboard.errors import Overloaded
from leaderboard.http.deadline import Deadlines
from leaderboard.http.outbox import Outbox


@pytest.mark.anyio
async def test_what_is_late_is_cancelled_and_knows_why() -> None:
    deadlines = Deadlines(0.1)
    watching = asyncio.create_task(deadlines.watch())
    outcome = []

    async def request(seconds: float) -> None:
        task = deadlines.begin()
        started = time.monotonic()
        try:
            await asyncio.sleep(seconds)
            outcome.append((seconds, "done"))
        except asyncio.CancelledError:
            outcome.append((seconds, "late" if deadlines.made_late(task) else "cancelled"))
            assert task.cancelling() == (outcome[-1][1] == "cancelled")
        finally:
            deadlines.end(task)
        assert time.monotonic() - started < 0.2

    others = asyncio.create_task(request(9))
    tasks = [asyncio.create_task(request(seconds)) for seconds in (0, 0.05, 5, 6)]
    await asyncio.sleep(0.05)
    assert len(deadlines) >= 3
    others.cancel()
    await asyncio.gather(*tasks, others)
    assert sorted(outcome) == [(0, "done"), (0.05, "done"), (5, "late"), (6, "late"), (9, "cancelled")]
    assert len(deadlines) == 0
    assert not deadlines._late
    watching.cancel()


@pytest.mark.anyio
async def test_who_gets_more_time_does_not_stand_before_the_others() -> None:
    deadlines = Deadlines(0.2)
    watching = asyncio.create_task(deadlines.watch())

    async def renewed() -> None:
        task = deadlines.begin()
        while True:
            deadlines.begin_again(task)
            await asyncio.sleep(0.05)

    async def late() -> bool:
        task = deadlines.begin()
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            return deadlines.made_late(task)
        return False

    first = asyncio.create_task(renewed())
    await asyncio.sleep(0)
    started = time.monotonic()
    assert await asyncio.create_task(late())
    assert time.monotonic() - started < 1
    assert not first.done()
    for task in (first, watching):
        task.cancel()


def test_one_large_answer_may_be_sent_however_large_it_is() -> None:
    outbox = Outbox(most=100)
    with outbox.holding(b"x" * 1000), pytest.raises(Overloaded), outbox.holding(b"y"):
        pass


def test_large_answers_have_so_much_room_and_one_that_is_shared_counts_once() -> None:
    outbox = Outbox(most=100)
    body, another = b"x" * 60, b"y" * 60
    with outbox.holding(body), outbox.holding(body):
        with pytest.raises(Overloaded), outbox.holding(another):
            pass
        with outbox.holding(b"z" * 40):
            pass
    with outbox.holding(another):
        pass
    assert outbox._held == 0
    assert not outbox._readers
