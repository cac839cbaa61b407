"""Group commit: what arrives while a round trip is in flight goes with the next one, together.

One class serves reads and writes. An item joins only a batch that has not started, so whatever the batch does
happens after the item was asked for; identical questions of one such batch may share an answer for that
reason. The queue is bounded: beyond the bound an item is refused at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from leaderboard.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Hands items in batches to `handle`, at most `lanes` batches at a time.

    `handle` gets up to `most` items and returns a result for each, in order; a result that is an exception is
    raised to its waiter only, an exception it raises to all of the batch. With `share`, equal items of a batch
    are handled once. An item that has waited for `patience_s` is refused when its turn comes. A waiter that is
    cancelled leaves its batch as it is.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        most: int,
        limit: int,
        patience_s: float = 5,
        lanes: int = 1,
        share: bool = False,
    ) -> None:
        self.name = name
        self._handle = handle
        self._most = most
        self._limit = limit
        self._patience_s = patience_s
        self._idle_lanes = lanes
        self._share = share
        self._waiting: deque[tuple[Item, list[asyncio.Future[Result]], float]] = deque()
        self._shared: dict[Item, list[asyncio.Future[Result]]] = {}
        self._waiters = 0
        self._running: set[asyncio.Task[None]] = set()

    @property
    def depth(self) -> int:
        """How many callers wait for a batch to start."""
        return self._waiters

    async def submit(self, item: Item) -> Result:
        """The result for `item`. Raises Overloaded when the queue is full, or what `handle` says."""
        if self._waiters >= self._limit:
            raise Overloaded(f"{self._limit} requests are waiting in the queue for {self.name} already")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        futures = self._shared.get(item) if self._share else None
        if futures is not None:
            futures.append(future)
        else:
            futures = [future]
            self._waiting.append((item, futures, time.monotonic()))
            if self._share:
                self._shared[item] = futures
        self._waiters += 1
        if self._idle_lanes:
            self._idle_lanes -= 1
            task = asyncio.create_task(self._drain(), name=f"batches of {self.name}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await future

    async def close(self) -> None:
        """Wait until what was submitted is done."""
        while self._running:
            await asyncio.wait(self._running)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch: list[tuple[Item, list[asyncio.Future[Result]]]] = []
                oldest = time.monotonic() - self._patience_s
                while self._waiting and len(batch) < self._most:
                    item, futures, since = self._waiting.popleft()
                    self._waiters -= len(futures)
                    if self._share:
                        del self._shared[item]
                    if since >= oldest:
                        batch.append((item, futures))
                    else:
                        _settle(futures, Overloaded(f"no room in {self.name} within {self._patience_s:g} s"))
                if batch:
                    await self._run(batch)
        finally:
            self._idle_lanes += 1

    async def _run(self, batch: Sequence[tuple[Item, list[asyncio.Future[Result]]]]) -> None:
        try:
            results = await self._handle([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self.name}: {len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            results = [error] * len(batch)
        for (_, futures), result in zip(batch, results, strict=True):
            _settle(futures, result)


def _settle(futures: Sequence[asyncio.Future[Result]], result: Result | Exception) -> None:
    for future in futures:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


async def bisect(
    items: Sequence[Item],
    handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
    guilty: type[Exception] | tuple[type[Exception], ...],
) -> list[Result | Exception]:
    """Handle `items` together; where that raises `guilty`, in halves, down to the one item at fault."""
    try:
        return list(await handle(items))
    except guilty as error:
        if len(items) == 1:
            return [error]
        half = len(items) // 2
        return await bisect(items[:half], handle, guilty) + await bisect(items[half:], handle, guilty)
