"""Group commit: requests that arrive during a round trip are sent together in the next one.

One class serves reads and writes. An item joins only a batch that has not started, so the batch does its work
after the item was submitted. That is why equal questions of one batch may share an answer. The queue is bounded
by length and by expected wait; past either bound `submit` raises Overloaded. Items whose caller was cancelled
are skipped.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from leaderboard.errors import Overloaded

_WEIGHT_OF_LAST = 0.1
"""In the average of how long a batch takes."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Dropped(asyncio.CancelledError):
    """Raised instead of CancelledError when the item had not started, so that it is certain not to run."""


@contextmanager
def nothing_done() -> Iterator[None]:
    """Turn a cancellation within into Dropped: nothing has been written yet."""
    try:
        yield
    except asyncio.CancelledError:
        raise Dropped from None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a queue: how many items may wait, and the longest expected wait in seconds."""

    limit: int
    patience_s: float


class _Entry(Generic[Item, Result]):
    """An item in the queue, with the futures of its callers."""

    __slots__ = ("begun", "futures", "item", "since")

    def __init__(self, item: Item, future: asyncio.Future[Result]) -> None:
        self.item = item
        self.futures = [future]
        self.since = time.monotonic()
        self.begun = False


class Batcher(Generic[Item, Result]):
    """Hands items in batches to `handle`, at most `lanes` batches at a time.

    `handle` gets up to `most` items and returns a result for each, in order. A result that is an exception is
    raised to its caller only; an exception that `handle` raises goes to all callers of the batch. Callers get
    their results when `release`, which gets all of them, has returned; the next batch does not wait for that.
    With `share`, equal items of a batch are handled once. The longest wait in `bounds` applies only to items
    that do not fit the next batch. Cancelling a caller does not cancel a running batch.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        bounds: Bounds,
        *,
        most: int,
        lanes: int = 1,
        share: bool = False,
        release: Callable[[Sequence[Result | Exception]], Awaitable[None]] | None = None,
    ) -> None:
        if lanes < 1:
            raise ValueError(f"{name}: without a lane nobody would be served")
        self.name = name
        self._handle = handle
        self._most = most
        self._limit = bounds.limit
        self._patience_s = bounds.patience_s
        self._round = most * lanes
        self._round_s = 0.0
        self._idle_lanes = lanes
        self._share = share
        self._release = release
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._shared: dict[Item, _Entry[Item, Result]] = {}
        self._waiters = 0
        # Kept: to ask for it is a system call before Python 3.12.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def depth(self) -> int:
        """How many callers wait for a batch to start."""
        return self._waiters

    async def submit(self, item: Item) -> Result:
        """The result for `item`, or what `handle` says.

        Raises Overloaded when the queue is full, and Dropped when cancelled before the batch begins.
        """
        entry, future = self._join(item)
        try:
            return await future
        except asyncio.CancelledError:
            if entry.begun:
                raise
            raise Dropped from None

    def ask(self, item: Item) -> asyncio.Future[Result]:
        """As `submit`, but never Dropped: for what changes nothing, whether it has been done or not."""
        return self._join(item)[1]

    def _join(self, item: Item) -> tuple[_Entry[Item, Result], asyncio.Future[Result]]:
        if self._waiters >= self._limit:
            raise Overloaded(f"{self._limit} requests are waiting in the queue for {self.name} already")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = self._loop.create_future()
        entry = self._shared.get(item) if self._share else None
        if entry is not None:
            entry.futures.append(future)
        else:
            self._check_patience()
            entry = _Entry(item, future)
            self._waiting.append(entry)
            if self._share:
                self._shared[item] = entry
        self._waiters += 1
        if self._idle_lanes:
            self._idle_lanes -= 1
            self._begin(self._drain())
        return entry, future

    async def close(self) -> None:
        """Wait until what was submitted is done."""
        while self._running:
            await asyncio.wait(self._running)

    def _check_patience(self) -> None:
        rounds_before = len(self._waiting) // self._round
        if not rounds_before:
            return
        # The second is for when nothing is done at all.
        waited_s = time.monotonic() - self._waiting[0].since
        if max(rounds_before * self._round_s, waited_s) > self._patience_s:
            raise Overloaded(f"the queue for {self.name} is longer than {self._patience_s:g} s")

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"batches of {self.name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch: list[_Entry[Item, Result]] = []
                while self._waiting and len(batch) < self._most:
                    entry = self._waiting.popleft()
                    # Those who have left count until here: else a queue that stands still would grow.
                    self._waiters -= len(entry.futures)
                    if self._share:
                        del self._shared[entry.item]
                    if all(future.cancelled() for future in entry.futures):
                        continue
                    entry.begun = True
                    batch.append(entry)
                if batch:
                    await self._run(batch)
        finally:
            self._idle_lanes += 1

    async def _run(self, batch: Sequence[_Entry[Item, Result]]) -> None:
        started = time.monotonic()
        try:
            results = await self._handle([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self.name}: {len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            results = [error] * len(batch)
        self._round_s += _WEIGHT_OF_LAST * (time.monotonic() - started - self._round_s)
        if self._release is None:
            _settle(batch, results)
        else:
            self._begin(self._settle_later(batch, results, self._release(results)))

    async def _settle_later(
        self,
        batch: Sequence[_Entry[Item, Result]],
        results: Sequence[Result | Exception],
        released: Awaitable[None],
    ) -> None:
        try:
            await released
        except Exception as error:  # noqa: BLE001 - as above
            results = [error] * len(batch)
        _settle(batch, results)


def _settle(batch: Sequence[_Entry[Item, Result]], results: Sequence[Result | Exception]) -> None:
    for entry, result in zip(batch, results, strict=True):
        for future in entry.futures:
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
    """Handle `items` together; where that raises `guilty`, in halves, down to the one item at fault.

    What else is raised for one half says nothing of the other, which may have been done.
    """
    try:
        return list(await handle(items))
    except guilty as error:
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    results: list[Result | Exception] = []
    for part in (items[:half], items[half:]):
        try:
            results += await bisect(part, handle, guilty)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to these items
            results += [error] * len(part)
    return results
