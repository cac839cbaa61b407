"""The tops of one state of the cache as JSON, within a bounded number of bytes.

A top of 100,000 users has some ten million bytes, and there are as many different tops.
"""

from leaderboard.model import EncodedTop

MAX_BYTES = 16 * 1024 * 1024


class EncodedTops:
    """Encoded tops by their number of users; the least recently used one is dropped first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # In the order of their last use.
        self._tops: dict[int, EncodedTop] = {}

    def get(self, n: int) -> EncodedTop | None:
        """Return the best `n` users, None if they are not kept."""
        top = self._tops.pop(n, None)
        if top is not None:
            self._tops[n] = top
        return top

    def put(self, n: int, top: EncodedTop) -> None:
        """Keep the best `n` users, unless they take more bytes than all tops may."""
        if len(top.body) > self._max_bytes:
            return
        self._tops[n] = top
        self._bytes += len(top.body)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._tops.pop(next(iter(self._tops))).body)

    def clear(self) -> None:
        """Drop all of them."""
        self._tops.clear()
        self._bytes = 0
