"""Group commit: requests that arrive during a round trip are sent together in the next one.

One class serves reads and writes. An item joins only a batch that has not started, so the batch does its work
after the item was submitted. That is why equal queries of one batch may share a result. The queue is bounded by
length and by expected wait; past either bound `submit` raises Overloaded. Items whose caller was cancelled are
skipped.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from leaderboard.errors import Overloaded

_WEIGHT_OF_LAST = 0.1
"""The weight of the last batch in the moving average of the batches' durations."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class CancelledBeforeStart(asyncio.CancelledError):
    """Raised instead of CancelledError when the item had not started, so that it is certain not to run."""


@contextmanager
def cancel_is_safe() -> Iterator[None]:
    """Turn a cancellation into CancelledBeforeStart: nothing has been written yet."""
    try:
        yield
    except asyncio.CancelledError:
        raise CancelledBeforeStart from None


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many callers may wait in a queue, and the longest expected wait in seconds.

    The expected wait is compared only for an item that does not fit the next batch.
    """

    max_waiting: int
    max_wait_s: float


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many items a batch may have, and how many batches may run at the same time.

    An item that costs more than `large_cost` runs alone, one at a time, and smaller items overtake it. The limits
    of the queue apply to small and to large items separately.
    """

    max_items: int
    concurrency: int = 1
    large_cost: float = float("inf")


class Batch(Generic[Item]):
    """The items of one batch, and its place among the batches that run."""

    __slots__ = ("_hand_over", "items")

    def __init__(self, items: Sequence[Item], hand_over: Callable[[], None]) -> None:
        self.items = items
        self._hand_over = hand_over

    def start_next(self) -> None:
        """Let the next batch start, although this one has not returned its results yet."""
        self._hand_over()


Handler = Callable[[Batch[Item]], Awaitable[Sequence[Result | Exception]]]
"""Returns a result for each item, in order.

A result that is an exception is raised to its caller only. An exception that the handler raises goes to every
caller of the batch.
"""


class _Entry(Generic[Item, Result]):
    """An item in the queue, with the futures of its callers."""

    __slots__ = ("begun", "futures", "item", "large", "since")

    def __init__(self, item: Item, future: asyncio.Future[Result], *, large: bool) -> None:
        self.item = item
        self.futures = [future]
        self.large = large
        self.since = time.monotonic()
        self.begun = False


class _Line(Generic[Item, Result]):
    """The items of one kind that wait, in order, and how long their batches take."""

    __slots__ = ("batch_s", "callers", "entries")

    def __init__(self) -> None:
        self.entries: deque[_Entry[Item, Result]] = deque()
        self.callers = 0
        """How many callers wait, those that were cancelled included: a line that stands still must not grow."""
        self.batch_s = 0.0
        """The moving average of the durations of the batches."""

    def note_batch(self, duration_s: float) -> None:
        """Note how long a batch took."""
        self.batch_s += _WEIGHT_OF_LAST * (duration_s - self.batch_s)

    def expected_wait_s(self, at_once: int) -> float:
        """Return how long a new item would wait, if so many items can be taken at once; 0 if it fits."""
        batches_before = len(self.entries) // at_once
        if not batches_before:
            return 0.0
        # The moving average says nothing while a batch hangs; how long the first item has waited does.
        return max(batches_before * self.batch_s, time.monotonic() - self.entries[0].since)


class _Queue(Generic[Item, Result]):
    """The items that wait: a line of small ones, and a line of large ones."""

    def __init__(self, *, deduplicate: bool) -> None:
        self.small: _Line[Item, Result] = _Line()
        self.large: _Line[Item, Result] = _Line()
        self._by_item: dict[Item, _Entry[Item, Result]] | None = {} if deduplicate else None
        self._large_was_last = False
        self.large_runs = False
        """Whether a batch with a large item runs. While it does, no other large item is taken."""

    def __bool__(self) -> bool:
        return bool(self.small.entries or self.large.entries)

    def find(self, item: Item) -> _Entry[Item, Result] | None:
        """Return the entry of an equal item that waits."""
        return None if self._by_item is None else self._by_item.get(item)

    def line(self, *, large: bool) -> _Line[Item, Result]:
        """Return the line of small or of large items."""
        return self.large if large else self.small

    def add(self, entry: _Entry[Item, Result]) -> None:
        """Add an item at the end of its line."""
        self.line(large=entry.large).entries.append(entry)
        if self._by_item is not None:
            self._by_item[entry.item] = entry

    def take(self, max_items: int) -> list[_Entry[Item, Result]]:
        """Remove and return the next batch, empty if none can start; small and large items take turns."""
        batch: list[_Entry[Item, Result]] = []
        for large in (False, True) if self._large_was_last else (True, False):
            line, most = (self.large, 1) if large else (self.small, max_items)
            while line.entries and len(batch) < most and not (large and self.large_runs):
                entry = self._remove_first(line)
                if not all(future.cancelled() for future in entry.futures):
                    entry.begun = True
                    batch.append(entry)
            if batch:
                self._large_was_last = large
                self.large_runs |= large
                break
        return batch

    def _remove_first(self, line: _Line[Item, Result]) -> _Entry[Item, Result]:
        entry = line.entries.popleft()
        line.callers -= len(entry.futures)
        if self._by_item is not None:
            del self._by_item[entry.item]
        return entry


class Batcher(Generic[Item, Result]):
    """Collects items into batches, and hands each batch to `handler`.

    With `deduplicate`, equal items of a batch are handled once. `cost` returns the cost of an item. Cancelling a
    caller does not cancel a running batch.
    """

    def __init__(
        self,
        name: str,
        handler: Handler[Item, Result],
        queue_limits: QueueLimits,
        batch_limits: BatchLimits,
        *,
        deduplicate: bool = False,
        cost: Callable[[Item], float] | None = None,
    ) -> None:
        if batch_limits.concurrency < 1:
            raise ValueError(f"{name}: at least one batch must be able to run")
        self.name = name
        self._handler = handler
        self._queue_limits = queue_limits
        self._batch_limits = batch_limits
        self._cost = cost
        self._queue: _Queue[Item, Result] = _Queue(deduplicate=deduplicate)
        self._idle = batch_limits.concurrency
        self._running: set[asyncio.Task[None]] = set()
        # Kept, because asking for it is a system call before Python 3.12.
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def depth(self) -> int:
        """How many callers wait for a batch to start."""
        return self._queue.small.callers + self._queue.large.callers

    @property
    def running(self) -> int:
        """How many batches run."""
        return len(self._running)

    async def submit(self, item: Item) -> Result:
        """Return the result for `item`, or raise its error.

        Raises Overloaded when the queue is full, and CancelledBeforeStart when cancelled before the batch starts.
        """
        entry, future = self._join(item)
        try:
            return await future
        except asyncio.CancelledError:
            if entry.begun:
                raise
            raise CancelledBeforeStart from None

    def ask(self, item: Item) -> asyncio.Future[Result]:
        """As `submit`, without CancelledBeforeStart: for reads, where it makes no difference."""
        return self._join(item)[1]

    async def close(self) -> None:
        """Wait until everything that was submitted is done."""
        while self._running:
            await asyncio.wait(self._running)

    def _join(self, item: Item) -> tuple[_Entry[Item, Result], asyncio.Future[Result]]:
        entry = self._queue.find(item)
        large = entry.large if entry is not None else self._is_large(item)
        line = self._queue.line(large=large)
        if line.callers >= self._queue_limits.max_waiting:
            raise Overloaded(
                f"{self._queue_limits.max_waiting} requests are waiting in the queue for {self.name} already"
            )
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = self._loop.create_future()
        if entry is not None:
            entry.futures.append(future)
        else:
            at_once = 1 if large else self._batch_limits.max_items * self._batch_limits.concurrency
            if line.expected_wait_s(at_once) > self._queue_limits.max_wait_s:
                raise Overloaded(f"the queue for {self.name} is longer than {self._queue_limits.max_wait_s:g} s")
            entry = _Entry(item, future, large=large)
            self._queue.add(entry)
        line.callers += 1
        self._start_worker()
        return entry, future

    def _is_large(self, item: Item) -> bool:
        return self._cost is not None and self._cost(item) > self._batch_limits.large_cost

    def _start_worker(self) -> None:
        if self._idle:
            self._idle -= 1
            task = asyncio.create_task(self._work(), name=f"batches of {self.name}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self) -> None:
        """Run one batch after another until none can start, or a batch has let another worker start the next."""
        while entries := self._queue.take(self._batch_limits.max_items):
            if not await self._run(entries):
                return
        self._idle += 1

    async def _run(self, entries: Sequence[_Entry[Item, Result]]) -> bool:
        """Run one batch; returns whether this worker runs the next one too."""
        started = time.monotonic()
        handed_over = False

        def end_turn() -> None:
            large = entries[0].large
            if large:
                self._queue.large_runs = False
            self._queue.line(large=large).note_batch(time.monotonic() - started)

        def hand_over() -> None:
            nonlocal handed_over
            handed_over = True
            end_turn()
            self._idle += 1
            if self._queue:
                self._start_worker()

        results: Sequence[Result | Exception]
        try:
            results = await self._handler(Batch([entry.item for entry in entries], hand_over))
            if len(results) != len(entries):
                raise RuntimeError(f"{self.name}: {len(results)} results for {len(entries)} items")
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            results = [error] * len(entries)
        except BaseException:
            _cancel(entries)
            if not handed_over:
                hand_over()
            raise
        if not handed_over:
            end_turn()
        _resolve(entries, results)
        return not handed_over


def _cancel(entries: Sequence[_Entry[Item, Result]]) -> None:
    for entry in entries:
        for future in entry.futures:
            future.cancel()


def _resolve(entries: Sequence[_Entry[Item, Result]], results: Sequence[Result | Exception]) -> None:
    for entry, result in zip(entries, results, strict=True):
        for future in entry.futures:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


async def isolate_failures(
    items: Sequence[Item],
    handle: Callable[[Sequence[Item]], Awaitable[Result]],
    faults_of_items: tuple[type[Exception], ...],
) -> list[tuple[Sequence[Item], Result | Exception]]:
    """Handle all items together; after one of `faults_of_items`, in halves, down to the items at fault.

    Returns the parts in order, each with its result or its error. Another error in one half says nothing about the
    other half, which may have been written.
    """
    try:
        return [(items, await handle(items))]
    except faults_of_items as error:
        if len(items) == 1:
            return [(items, error)]
    half = len(items) // 2
    parts: list[tuple[Sequence[Item], Result | Exception]] = []
    for part in (items[:half], items[half:]):
        try:
            parts += await isolate_failures(part, handle, faults_of_items)
        except Exception as error:  # noqa: BLE001 - it belongs to this half
            parts.append((part, error))
    return parts
