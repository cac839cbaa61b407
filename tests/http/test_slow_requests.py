"""The deadline of requests, and the limits on large responses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack
from typing import TypeVar

import pytest

from leaderboard.errors import Overloaded
from leaderboard.http.asgi import Message
from leaderboard.http.deadlines import Deadlines
from leaderboard.http.large_responses import CHUNK_BYTES, LargeResponseLimits, LargeResponses
from leaderboard.http.response import Response
from tests.system import PATIENCE_S

T = TypeVar("T")

LIMIT_S = 0.1


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def deadlines(clock: Clock) -> AsyncIterator[Deadlines]:
    watched = Deadlines(LIMIT_S, clock)
    watching = asyncio.create_task(watched.watch())
    yield watched
    watching.cancel()


async def request(deadlines: Deadlines, done: asyncio.Event) -> str:
    """Returns how a request that waits for `done` ends."""
    task = deadlines.begin()
    try:
        await done.wait()
    except asyncio.CancelledError:
        outcome = "late" if deadlines.take_timeout(task) else "cancelled"
        assert task.cancelling() == (outcome == "cancelled")
        return outcome
    finally:
        deadlines.end(task)
        assert not deadlines.take_timeout(task)
    return "done"


async def in_time(outcome: Awaitable[T]) -> T:
    return await asyncio.wait_for(outcome, PATIENCE_S)


async def several_checks() -> None:
    """Waits until the clock has been read a few times, so that whatever is late has been cancelled."""
    await asyncio.sleep(LIMIT_S / 5)


@pytest.mark.anyio
async def test_a_late_request_is_cancelled_and_can_see_why(deadlines: Deadlines, clock: Clock) -> None:
    done, never = asyncio.Event(), asyncio.Event()
    early = [asyncio.create_task(request(deadlines, event)) for event in (done, never, never)]
    await asyncio.sleep(0)
    clock.now += 0.6 * LIMIT_S
    later = asyncio.create_task(request(deadlines, never))
    await several_checks()
    assert len(deadlines) == 4
    done.set()
    early[1].cancel()
    assert await in_time(asyncio.gather(*early[:2])) == ["done", "cancelled"]
    clock.now += 0.6 * LIMIT_S
    assert await in_time(early[2]) == "late"
    await several_checks()
    assert not later.done()
    clock.now += 0.6 * LIMIT_S
    assert await in_time(later) == "late"
    assert len(deadlines) == 0


@pytest.mark.anyio
async def test_an_extended_deadline_does_not_delay_the_others(deadlines: Deadlines, clock: Clock) -> None:
    never = asyncio.Event()
    extended, late = (asyncio.create_task(request(deadlines, never)) for _ in range(2))
    await asyncio.sleep(0)
    clock.now += 0.6 * LIMIT_S
    deadlines.extend(extended)
    clock.now += 0.6 * LIMIT_S
    assert await in_time(late) == "late"
    assert not extended.done()
    clock.now += 0.6 * LIMIT_S
    assert await in_time(extended) == "late"


@pytest.mark.anyio
async def test_no_deadline_is_extended_while_the_process_stops(deadlines: Deadlines, clock: Clock) -> None:
    task = asyncio.create_task(request(deadlines, asyncio.Event()))
    await asyncio.sleep(0)
    clock.now += 0.6 * LIMIT_S
    deadlines.may_extend = False
    deadlines.extend(task)
    clock.now += 0.6 * LIMIT_S
    assert await in_time(task) == "late"


def large_responses(max_bytes: int) -> LargeResponses:
    return LargeResponses(Deadlines(LIMIT_S), LargeResponseLimits(max_bytes))


def test_a_single_large_response_may_have_any_size() -> None:
    large = large_responses(max_bytes=100)
    with large.reserve(b"x" * 1000), pytest.raises(Overloaded), large.reserve(b"y"):
        pass


def test_large_responses_have_a_total_limit_and_a_shared_one_counts_once() -> None:
    large = large_responses(max_bytes=100)
    body, another = b"x" * 60, b"y" * 60
    with large.reserve(body), large.reserve(body):
        assert large.bytes_in_use == 60
        with pytest.raises(Overloaded), large.reserve(another):
            pass
        with large.reserve(b"z" * 40):
            assert large.bytes_in_use == 100
    with large.reserve(another):
        assert large.bytes_in_use == 60
    assert large.bytes_in_use == 0


@pytest.mark.anyio
@pytest.mark.parametrize("crowded", [False, True])
async def test_a_slow_client_of_a_large_response_is_disconnected_only_if_others_need_the_room(
    clock: Clock, crowded: bool
) -> None:
    bytes_per_second = 10 * CHUNK_BYTES
    response = Response(200, (), b"x" * (20 * CHUNK_BYTES))
    deadlines = Deadlines(LIMIT_S, clock)
    large = LargeResponses(deadlines, LargeResponseLimits(3 * len(response.body), bytes_per_second), clock)
    sent = 0

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        # Half as fast as it has to be.
        clock.now += 2 * len(message.get("body", b"")) / bytes_per_second

    with ExitStack() as others:
        if crowded:
            others.enter_context(large.reserve(b"y" * len(response.body)))
        await large.send(response, send, deadlines.begin(), "/")
    assert (sent < len(response.body)) == crowded
    assert large.bytes_in_use == 0
    assert len(deadlines) == 0
