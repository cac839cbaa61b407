"""Looks at the clients' connections from below: ends those whose clients take nothing, tells when others wait.

The server does neither. What a client does not read stays in the kernel, which offers it for as long as the
client answers. TCP_USER_TIMEOUT would also end connections of clients that read slowly but steadily
(docs/decisions/0012). So the kernel is asked how many bytes each client has acknowledged.
"""

import asyncio
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

_LOOKS = 10
"""How often connections are looked at within the limit."""
_SHORTEST_PAUSE_S = 0.05
_AT_ONCE = 256
"""Open files looked at before other tasks get their turn: 0.4 ms, or 2.5 ms if all their clients stand still."""
_FILES = "/proc/self/fd"
_INFO = struct.Struct("24xI92xQ")
"""Of Linux's `struct tcp_info`: `tcpi_unacked`, the queue of a socket that listens, and `tcpi_bytes_acked`."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time: closing resets the connection, and the kernel keeps nothing for it."""

_log = structlog.get_logger(__name__)


class Watchdog:
    """The connections of one process's clients, found by their local port.

    Ends those whose clients have taken nothing for `limit_s` seconds, a fifth more at most, although there is
    something to take. Works on Linux; elsewhere it does nothing.
    """

    def __init__(self, port: int, limit_s: float) -> None:
        self._port = port
        self._limit_s = limit_s
        self._taken: dict[object, tuple[int, float]] = {}
        """By client, of those that have something to take: the bytes acknowledged, and since when."""
        self._crowded = 0
        """Looks in a row that found clients waiting to be accepted."""

    async def watch(self) -> None:
        """Look at all connections, again and again, until cancelled."""
        if sys.platform != "linux":
            return
        while True:
            await asyncio.sleep(max(_SHORTEST_PAUSE_S, self._limit_s / _LOOKS))
            try:
                files = [int(name) for name in os.listdir(_FILES)]
            except OSError as error:
                _log.warning("clients that take nothing are not noticed", reason=f"{_FILES}: {error.strerror}")
                return
            await self._look(files)

    async def _look(self, files: list[int]) -> None:
        taken: dict[object, tuple[int, float]] = {}
        ended = queue = 0
        for number, file in enumerate(files, 1):
            unacknowledged = _unacknowledged(file)
            if unacknowledged != 0:
                with suppress(OSError, struct.error), _of_clients(file, self._port) as connection:
                    if unacknowledged is None:
                        queue, _ = _info(connection)
                    elif self._stands_still(connection, taken):
                        ended += 1
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        connection.shutdown(socket.SHUT_RDWR)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self._taken = taken
        if ended:
            _log.info("ended connections whose clients took nothing", connections=ended)
        self._crowded = self._crowded + 1 if queue else 0
        if self._crowded == 2:
            _log.warning("clients wait to be accepted; see MAX_CONNECTIONS", waiting=queue)

    def _stands_still(self, connection: socket.socket, taken: dict[object, tuple[int, float]]) -> bool:
        """Whether the client has taken nothing for too long; if not, it is noted how far it is."""
        client = connection.getpeername()
        _, acknowledged = _info(connection)
        now = time.monotonic()
        before, since = self._taken.get(client, (-1, now))
        if before != acknowledged:
            since = now
        if now - since >= self._limit_s:
            return True
        taken[client] = acknowledged, since
        return False


def _unacknowledged(file: int) -> int | None:
    """Bytes that a socket's peer has yet to acknowledge; None if it listens, 0 for what is no socket."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, b"\0\0\0\0"))
    except OSError as error:
        return None if error.errno == errno.EINVAL else 0
    return int(count)


@contextmanager
def _of_clients(file: int, port: int) -> Iterator[socket.socket]:
    """A socket on `port`, by a copy of its file. Raises OSError if this is something else, or has been closed.

    By a copy, because the server's threads may close the file and open another of its number at any moment.
    """
    copy = os.dup(file)
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with connection:
        if connection.family not in {socket.AF_INET, socket.AF_INET6} or connection.getsockname()[1] != port:
            raise OSError(errno.EADDRNOTAVAIL, "not a connection of a client")
        yield connection


def _info(connection: socket.socket) -> tuple[int, int]:
    """How many wait to be accepted, if it listens, and how many bytes the peer has acknowledged."""
    waiting, acknowledged = _INFO.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))
    return waiting, acknowledged
