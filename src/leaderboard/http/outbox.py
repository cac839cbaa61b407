"""Sends answers. Large ones go in pieces, and only so many at a time: a client that reads slowly, or not at all,
must not make this process hold more and more of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from leaderboard.errors import Overloaded

PIECE = 64 * 1024
"""Bytes handed to the server at once; it holds a few of them for each connection."""

MOST_HELD = 64 * 1024 * 1024
"""Bytes of large bodies that may be on their way at the same time; one of any size always may."""

SLOWEST = 512 * 1024
"""Bytes a second that a client has to take of a large body while there is little room for others."""


class Outbox:
    """The large bodies on their way. One that several clients wait for is held, and counted, once."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held = 0
        self._readers: Counter[int] = Counter()

    @property
    def crowded(self) -> bool:
        """Whether more than half of the room is taken."""
        return self._held > self._most / 2

    @contextmanager
    def holding(self, body: bytes) -> Iterator[None]:
        """While `body` is on its way. Raises Overloaded if there is no room for it."""
        if not self._readers[id(body)] and self._held and self._held + len(body) > self._most:
            raise Overloaded("as many large answers as fit are on their way already")
        if not self._readers[id(body)]:
            self._held += len(body)
        self._readers[id(body)] += 1
        try:
            yield
        finally:
            self._readers[id(body)] -= 1
            if not self._readers[id(body)]:
                del self._readers[id(body)]
                self._held -= len(body)
