"""Measures how long single calls take."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Self, TypeVar

_WARM_UP = 5
_FEWEST = 5
"""The least number of measurements, even if they take too long."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles of a duration, and how often it was measured."""

    p50_ms: float
    p99_ms: float
    times: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Returns the quantiles of two or more durations."""
        p99 = quantiles(seconds, n=100, method="inclusive")[98]
        return cls(median(seconds) * 1000, p99 * 1000, len(seconds))


async def timed(
    ask: Callable[[Item], Awaitable[object]], items: Sequence[Item], seconds: float, *, pause_s: float = 0
) -> Latency:
    """Measures `ask` for the items, one after the other and again from the first, for about `seconds`."""
    endless = itertools.cycle(items)
    for item in itertools.islice(endless, _WARM_UP):
        await ask(item)
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends or len(taken) < _FEWEST:
        await ask(next(endless))
        taken.append(time.perf_counter() - started)
        await asyncio.sleep(pause_s)
    return Latency.of(taken)
