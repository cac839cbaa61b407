"""The deadline of requests, and the room for large answers."""

import asyncio
import time
from types import SimpleNamespace
from typing import cast

import pytest

from leaderboard.errors import Overloaded
from leaderboard.http import routes
from leaderboard.http.call import Message, Out, Receive, Scope
from leaderboard.http.deadline import Deadlines
from leaderboard.http.outbox import PIECE, Outbox
from leaderboard.http.routes import Api, Endpoint


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


@pytest.mark.anyio
@pytest.mark.parametrize("crowded", [False, True])
async def test_a_slow_client_of_a_large_answer_is_cut_only_where_others_want_the_room(
    monkeypatch: pytest.MonkeyPatch, crowded: bool
) -> None:
    monkeypatch.setattr(routes, "SLOWEST", 1000 * PIECE)
    body = b"x" * (20 * PIECE)
    outbox = Outbox(most=len(body) if crowded else 3 * len(body))
    # Nothing watches these deadlines: what is held against them here is the time of the whole.
    api = SimpleNamespace(deadlines=Deadlines(0.01), outbox=outbox, stopping=False, note=lambda *_: None)
    sent = 0

    async def answer(_api: object, _scope: Scope, _receive: Receive) -> Out:
        return Out(200, (), body)

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        await asyncio.sleep(0.005)

    await Endpoint(cast("Api", api), "/", answer).serve({"method": "GET", "path": "/"}, receive, send)
    assert (sent < len(body)) == crowded
