"""Sends large responses in chunks, and limits their total size.

Without a limit, clients that read slowly or not at all would make the process hold more and more of them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from leaderboard.errors import Overloaded
from leaderboard.http.asgi import RESPONSE_BODY, Send
from leaderboard.http.deadlines import Deadlines
from leaderboard.http.response import Response

CHUNK_BYTES = 64 * 1024
"""Size of a chunk; a larger body is sent in chunks. The server holds a few chunks for each connection."""

MAX_BYTES = 64 * 1024 * 1024
"""Total size of the large bodies being sent; a single one may be larger."""

MIN_BYTES_PER_SECOND = 512 * 1024
"""A client that reads a large body more slowly is disconnected while more than half of MAX_BYTES is in use."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LargeResponseLimits:
    """The limits on large responses; tests use smaller ones."""

    max_bytes: int = MAX_BYTES
    min_bytes_per_second: int = MIN_BYTES_PER_SECOND


class LargeResponses:
    """The large responses that are being sent. A body sent to several clients is counted once."""

    def __init__(
        self,
        deadlines: Deadlines,
        limits: LargeResponseLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadlines = deadlines
        self._limits = limits or LargeResponseLimits()
        self._clock = clock
        self._clients: Counter[int] = Counter()
        self.bytes_in_use = 0

    async def send(self, response: Response, send: Send, task: asyncio.Task[object], path: str) -> None:
        """Sends `response` in chunks, each of which the client must take within the deadline of `task`.

        Raises Overloaded, before anything is sent, if there is no room. If the client is too slow the body stays
        incomplete, and the server then closes the connection.
        """
        with self.reserve(response.body):
            try:
                await self._send_chunks(response, send, task, path)
            except asyncio.CancelledError:
                if not self._deadlines.take_timeout(task):
                    raise
                _log.debug("client did not take the response in time", path=path)
            finally:
                self._deadlines.end(task)

    @contextmanager
    def reserve(self, body: bytes) -> Iterator[None]:
        """Counts `body` as in use. Raises Overloaded if there is no room for it."""
        if not self._clients[id(body)]:
            if self.bytes_in_use and self.bytes_in_use + len(body) > self._limits.max_bytes:
                raise Overloaded("too many large responses are being sent")
            self.bytes_in_use += len(body)
        self._clients[id(body)] += 1
        try:
            yield
        finally:
            self._clients[id(body)] -= 1
            if not self._clients[id(body)]:
                del self._clients[id(body)]
                self.bytes_in_use -= len(body)

    async def _send_chunks(self, response: Response, send: Send, task: asyncio.Task[object], path: str) -> None:
        body = response.body
        self._deadlines.begin_again(task)
        await send(response.start)
        started = self._clock()
        for offset in range(0, len(body), CHUNK_BYTES):
            if self._is_crowded() and self._is_slow(started, offset):
                _log.debug("client disconnected for taking a large response too slowly", path=path)
                return
            self._deadlines.extend(task)
            more = offset + CHUNK_BYTES < len(body)
            await send({"type": RESPONSE_BODY, "body": body[offset : offset + CHUNK_BYTES], "more_body": more})

    def _is_crowded(self) -> bool:
        return self.bytes_in_use > self._limits.max_bytes / 2

    def _is_slow(self, started: float, sent_bytes: int) -> bool:
        allowed_s = self._deadlines.limit_s + sent_bytes / self._limits.min_bytes_per_second
        return self._clock() - started > allowed_s
