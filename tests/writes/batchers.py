"""A batch handler that a test controls, and helpers around a batcher."""

import asyncio
import time
from collections.abc import Callable, Sequence

from leaderboard.batching import Batch, Batcher
from tests.system import PATIENCE_S


class Handler:
    """A batch handler that records its batches and returns when the test ends them."""

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
        """Ends a batch: the result of each item is the item and the number of the batch."""
        self._gates[batch].set_result([f"{item} of {batch}" for item in self.batches[batch]])

    def answer(self, batch: int, results: Sequence[str | Exception]) -> None:
        self._gates[batch].set_result(results)

    def fail(self, batch: int, error: Exception) -> None:
        self._gates[batch].set_exception(error)

    async def reached(self, count: int) -> None:
        """Waits until `count` batches have started."""
        await until(lambda: len(self.batches) >= count)

    async def started(self, *batches: list[str]) -> None:
        """Waits until exactly these batches have started."""
        await self.reached(len(batches))
        await run_ready_tasks()
        assert self.batches == list(batches)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s"
        await asyncio.sleep(0)


async def run_ready_tasks() -> None:
    """Runs the tasks that are ready. A test then checks that something has not happened."""
    for _ in range(20):
        await asyncio.sleep(0)


def submitted(batcher: Batcher[str, str], *items: str) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(batcher.submit(item)) for item in items]
