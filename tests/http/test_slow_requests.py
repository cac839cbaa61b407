"""The deadline of requests, and the room for large answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from leaderboard.errors import Overloaded
from leaderboard.http import deadline, routes
from leaderboard.http.call import Message, Out, Receive, Scope
from leaderboard.http.deadline import Deadlines
from leaderboard.http.outbox import PIECE, Outbox
from leaderboard.http.routes import Api, Endpoint
from tests.system import PATIENCE_S

T = TypeVar("T")

LIMIT_S = 0.1


class Clock:
    """The time, as the deadlines see it, goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
async def deadlines() -> AsyncIterator[Deadlines]:
    watched = Deadlines(LIMIT_S)
    watching = asyncio.create_task(watched.watch())
    yield watched
    watching.cancel()


async def request(deadlines: Deadlines, done: asyncio.Event) -> str:
    """What becomes of a request that waits for `done`."""
    task = deadlines.begin()
    try:
        await done.wait()
    except asyncio.CancelledError:
        outcome = "late" if deadlines.made_late(task) else "cancelled"
        assert task.cancelling() == (outcome == "cancelled")
        return outcome
    finally:
        deadlines.end(task)
    return "done"


async def in_time(outcome: Awaitable[T]) -> T:
    return await asyncio.wait_for(outcome, PATIENCE_S)


async def several_looks() -> None:
    """The clock has been looked at a few times meanwhile: whatever is late has been found."""
    await asyncio.sleep(LIMIT_S / 5)


@pytest.mark.anyio
async def test_what_is_late_is_cancelled_and_knows_why(deadlines: Deadlines, clock: Clock) -> None:
    done, never = asyncio.Event(), asyncio.Event()
    early = [asyncio.create_task(request(deadlines, event)) for event in (done, never, never)]
    await asyncio.sleep(0)
    clock.now += 0.6 * LIMIT_S
    later = asyncio.create_task(request(deadlines, never))
    await several_looks()
    assert len(deadlines) == 4
    done.set()
    early[1].cancel()
    assert await in_time(asyncio.gather(*early[:2])) == ["done", "cancelled"]
    clock.now += 0.6 * LIMIT_S
    assert await in_time(early[2]) == "late"
    await several_looks()
    assert not later.done()
    clock.now += 0.6 * LIMIT_S
    assert await in_time(later) == "late"
    assert len(deadlines) == 0
    assert not deadlines._late


@pytest.mark.anyio
async def test_who_gets_more_time_does_not_stand_before_the_others(deadlines: Deadlines, clock: Clock) -> None:
    never = asyncio.Event()
    renewed, late = (asyncio.create_task(request(deadlines, never)) for _ in range(2))
    await asyncio.sleep(0)
    clock.now += 0.6 * LIMIT_S
    deadlines.begin_again(renewed)
    clock.now += 0.6 * LIMIT_S
    assert await in_time(late) == "late"
    assert not renewed.done()
    clock.now += 0.6 * LIMIT_S
    assert await in_time(renewed) == "late"


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
