"""Limits the total size of large responses that are being sent.

They are sent in pieces. Without a limit, clients that read slowly or not at all would make the process hold more
and more of them.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from leaderboard.errors import Overloaded

PIECE = 64 * 1024
"""Size in bytes of a piece; the server holds a few pieces for each connection."""

MOST_HELD = 64 * 1024 * 1024
"""Total bytes of large bodies being sent; a single one may be larger."""

SLOWEST = 512 * 1024
"""Bytes a second: a client that reads a large body more slowly is disconnected while there is little room."""


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
