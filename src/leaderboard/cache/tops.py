"""The tops of one state of the cache that have been asked for, as JSON.

They may take a bounded number of bytes, whatever is asked for: a top of 100,000 users has some ten million, and
there are as many different ones.
"""

from leaderboard.model import EncodedTop

MOST_BYTES = 16 * 1024 * 1024


class Tops:
    """Encoded tops by how many users they have; the one that was asked for longest ago is dropped first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        # In the order in which they were last asked for.
        self._tops: dict[int, EncodedTop] = {}

    def get(self, n: int) -> EncodedTop | None:
        """The best `n`, None if they are not here."""
        top = self._tops.pop(n, None)
        if top is not None:
            self._tops[n] = top
        return top

    def put(self, n: int, top: EncodedTop) -> None:
        """Keep the best `n`, unless they take more bytes than there are for all."""
        if len(top.body) > self._most_bytes:
            return
        self._tops[n] = top
        self._bytes += len(top.body)
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._tops.pop(next(iter(self._tops))).body)

    def clear(self) -> None:
        """Drop all of them."""
        self._tops.clear()
        self._bytes = 0
