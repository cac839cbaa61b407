"""Runs background work on a timer."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import structlog

from leaderboard.errors import CacheError, Unavailable

_log = structlog.get_logger(__name__)


class Job(Protocol):
    """Background work of a process, such as `every` does it."""

    async def run(self) -> None:
        """Work until cancelled."""


class Jobs:
    """The background work of a process, started and stopped together."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = tuple(jobs)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start all of it."""
        self._tasks = [asyncio.create_task(service.run()) for service in self._jobs]

    async def stop(self) -> None:
        """Cancel all of it, and wait for that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def every(
    interval_s: float, name: str, work: Callable[[], Awaitable[float | None]], *, at_once: bool = False
) -> None:
    """Call `work` about every `interval_s` seconds until cancelled; with `at_once`, a first time now.

    `work` may return a longer pause for this once. A store that is unavailable is tried again at the next turn;
    any other error is logged. The pause varies by 20 %, so that processes do not work at the same time.
    """
    pause_s = 0.0 if at_once else interval_s
    while True:
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
        pause_s = interval_s
        try:
            pause_s = max(interval_s, await work() or 0.0)
        except (Unavailable, CacheError):
            continue
        except Exception:
            _log.exception(f"{name} failed")
