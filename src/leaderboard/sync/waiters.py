"""The callers that wait until a position is visible."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from leaderboard.snapshot import Position, SnapshotPosition


@dataclass(slots=True)
class _Waiting:
    futures: list[asyncio.Future[None]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class Waiters:
    """The waiting callers by position."""

    def __init__(self) -> None:
        self._waiting: dict[Position, _Waiting] = {}
        self._overdue: set[Position] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, position: Position) -> asyncio.Future[None]:
        """Return a future that is done when the caller need not wait any longer."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(position, _Waiting()).futures.append(future)
        return future

    def positions(self) -> list[Position]:
        """Return the positions that callers wait for now."""
        return list(self._waiting)

    def since(self, position: Position) -> float:
        """Return when the first caller began to wait for it, by the monotonic clock; now if none waits."""
        waiting = self._waiting.get(position)
        return time.monotonic() if waiting is None else waiting.since

    def release(self, positions: Iterable[Position]) -> None:
        """Let the callers of these positions go on."""
        for position in positions:
            self._overdue.discard(position)
            waiting = self._waiting.pop(position, None)
            for future in () if waiting is None else waiting.futures:
                if not future.done():
                    future.set_result(None)

    def release_visible(self, visible: SnapshotPosition) -> None:
        """Let the callers go on whose position is visible in this snapshot."""
        self.release([position for position in self._waiting if visible.reflects(position)])

    def note_overdue(self, position: Position) -> None:
        """Note that a caller has waited for too long."""
        if position in self._waiting:
            self._overdue.add(position)

    def take_overdue(self) -> bool:
        """Return whether a caller has waited for too long since the last call."""
        any_overdue = bool(self._overdue)
        self._overdue.clear()
        return any_overdue
