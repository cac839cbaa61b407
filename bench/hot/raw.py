"""The upper limits of the stores: what their drivers can do in one process without HTTP."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop
from redis.asyncio import Redis

from bench.growth.measure import BATCH, LANES
from bench.hot.work import MANY
from leaderboard.config import Settings
from tests.system import connect

_KEY = "raw:scores"


def rows(settings: Settings, statement: str, users: int, seconds: float) -> float:
    """Returns how many scores per second durable updates of many rows set."""
    return _on_a_fast_loop(_rows(settings, statement, users, seconds))


def calls(settings: Settings, seconds: float) -> float:
    """Returns how many calls per second Redis answers, each for the best ten of a sorted set."""
    return _on_a_fast_loop(_calls(settings, seconds))


async def _rows(settings: Settings, statement: str, users: int, seconds: float) -> float:
    connections = [await connect(settings) for _ in range(LANES)]

    def update(lane: int) -> Awaitable[object]:
        # Each lane has its own users, so that none waits for the locks of another.
        ids = [user_id * LANES + lane + 1 for user_id in random.sample(range(users // LANES), BATCH)]
        scores = [random.randint(100, 20_000) for _ in ids]
        return connections[lane].execute(statement, ids, scores)

    try:
        return BATCH * await _rate(update, LANES, seconds)
    finally:
        for connection in connections:
            await connection.close()


async def _calls(settings: Settings, seconds: float) -> float:
    async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        await redis.zadd(_KEY, {f"{number:010d}": number for number in range(10_000)})
        try:
            return await _rate(lambda _lane: redis.zrevrange(_KEY, 0, 9, withscores=True), MANY, seconds)
        finally:
            await redis.delete(_KEY)


async def _rate(call: Callable[[int], Awaitable[object]], lanes: int, seconds: float) -> float:
    started = time.perf_counter()

    async def lane(number: int) -> int:
        done = 0
        while time.perf_counter() < started + seconds:
            await call(number)
            done += 1
        return done

    done = await asyncio.gather(*(lane(number) for number in range(lanes)))
    return sum(done) / (time.perf_counter() - started)


def _on_a_fast_loop(work: Coroutine[Any, Any, float]) -> float:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
