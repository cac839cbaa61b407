"""One deadline for every request, whatever it waits for, kept by one timer for all of them.

A timer for each would cost the hot calls more than what they do; here a request costs two changes of a dict,
which is in order of arrival, so that only its first entries are looked at.
"""

import asyncio
import time

_LOOKS = 50
"""How often the clock is looked at within one deadline."""
_LONGEST_PAUSE_S = 0.1


class Deadlines:
    """The requests under way, by their tasks; cancels those that take longer than `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._begun: dict[asyncio.Task[object], float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._late: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self) -> asyncio.Task[object]:
        """From now on the task that calls this has `limit_s`; it is returned."""
        if self._loop is None:
            # Kept: to ask for it is a system call before Python 3.12.
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a request is served outside of a task")
        self._begun[task] = time.monotonic()
        return task

    def begin_again(self, task: asyncio.Task[object]) -> None:
        """From now on `task` has `limit_s` once more."""
        # To the end of the order, whatever place it had.
        self._begun.pop(task, None)
        self._begun[task] = time.monotonic()

    def end(self, task: asyncio.Task[object]) -> None:
        """It has no deadline any more."""
        if self._begun.pop(task, None) is None:
            self._late.discard(task)

    def made_late(self, task: asyncio.Task[object]) -> bool:
        """Return True and uncancel `task` if it was cancelled by its deadline."""
        if task not in self._late:
            return False
        self._late.discard(task)
        task.uncancel()
        return True

    async def watch(self) -> None:
        """Cancel what is late, until cancelled."""
        while True:
            await asyncio.sleep(min(_LONGEST_PAUSE_S, self.limit_s / _LOOKS))
            oldest = time.monotonic() - self.limit_s
            late = []
            for task, begun in self._begun.items():
                if begun > oldest:
                    break
                late.append(task)
            for task in late:
                del self._begun[task]
                self._late.add(task)
                task.cancel()
