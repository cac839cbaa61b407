"""One deadline for every request, whatever it waits for, kept by one timer for all of them.

A timer for each request would cost more than a hot request itself. Here a request costs two changes of a dict.
The dict is in order of arrival, so only its first entries are looked at.
"""

import asyncio
import time
from collections.abc import Callable

_CHECKS_PER_LIMIT = 50
"""How often the clock is read within one time limit."""
_MAX_PAUSE_S = 0.1


class Deadlines:
    """The active requests by their tasks. Cancels those that take longer than `limit_s` seconds."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self.may_extend = True
        """False while the process stops: a large response then has to be sent within one time limit."""
        self._clock = clock
        self._started: dict[asyncio.Task[object], float] = {}
        self._timed_out: set[asyncio.Task[object]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._started)

    def begin(self) -> asyncio.Task[object]:
        """Starts the time limit of the current task and returns the task."""
        if self._loop is None:
            # Kept because get_running_loop() is a system call before Python 3.12.
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a request is served outside of a task")
        self._started[task] = self._clock()
        return task

    def begin_again(self, task: asyncio.Task[object]) -> None:
        """Starts the time limit of `task` anew."""
        # Removed first, so that it moves to the end of the order.
        self._started.pop(task, None)
        self._started[task] = self._clock()

    def extend(self, task: asyncio.Task[object]) -> None:
        """Starts the time limit of `task` anew, unless the process is stopping."""
        if self.may_extend:
            self.begin_again(task)

    def end(self, task: asyncio.Task[object]) -> None:
        """Removes the time limit of `task`."""
        if self._started.pop(task, None) is None:
            self._timed_out.discard(task)

    def take_timeout(self, task: asyncio.Task[object]) -> bool:
        """Returns True and uncancels `task` if it was cancelled by its deadline."""
        if task not in self._timed_out:
            return False
        self._timed_out.discard(task)
        task.uncancel()
        return True

    async def watch(self) -> None:
        """Cancels the tasks that are past their deadline. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(min(_MAX_PAUSE_S, self.limit_s / _CHECKS_PER_LIMIT))
            oldest_allowed = self._clock() - self.limit_s
            late = []
            for task, started in self._started.items():
                if started > oldest_allowed:
                    break
                late.append(task)
            for task in late:
                del self._started[task]
                self._timed_out.add(task)
                task.cancel()
