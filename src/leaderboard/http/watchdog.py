"""Resets connections of clients that read nothing, and warns when clients wait to be accepted.

The HTTP server does neither. What a client does not read stays in the kernel, which keeps offering it as long as
the client acknowledges packets. TCP_USER_TIMEOUT would also end connections of clients that read slowly but
steadily (docs/decisions/0012). So this asks the kernel how many bytes each client has acknowledged.
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

_CHECKS_PER_LIMIT = 10
"""How often connections are checked within the limit."""
_MIN_PAUSE_S = 0.05
_FILES_AT_ONCE = 256
"""Open files checked before other tasks run: takes 0.4 ms, or 2.5 ms if none of their clients reads."""
_OPEN_FILES = "/proc/self/fd"
_TCP_INFO = struct.Struct("24xI92xQ")
"""Of Linux's `struct tcp_info`: `tcpi_unacked`, the queue of a listening socket, and `tcpi_bytes_acked`."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing resets the connection, and the kernel keeps nothing for it."""

_log = structlog.get_logger(__name__)


class Watchdog:
    """Watches the client connections of one process, which it finds by their local port.

    It resets those whose clients have acknowledged nothing for `limit_s` seconds (up to a fifth more) while there
    was something to read. It works on Linux; elsewhere it does nothing.
    """

    def __init__(self, port: int, limit_s: float) -> None:
        self._port = port
        self._limit_s = limit_s
        self._progress: dict[object, tuple[int, float]] = {}
        """By client, for those that have something to read: the bytes acknowledged, and since when."""
        self._checks_with_queue = 0
        """Consecutive checks that found clients waiting to be accepted."""

    async def watch(self) -> None:
        """Checks all connections regularly. Runs until it is cancelled."""
        if sys.platform != "linux":
            return
        while True:
            await asyncio.sleep(max(_MIN_PAUSE_S, self._limit_s / _CHECKS_PER_LIMIT))
            try:
                files = [int(name) for name in os.listdir(_OPEN_FILES)]
            except OSError as error:
                reason = f"{_OPEN_FILES}: {error.strerror}"
                _log.warning("clients that read nothing cannot be detected", reason=reason)
                return
            await self._check(files)

    async def _check(self, files: list[int]) -> None:
        progress: dict[object, tuple[int, float]] = {}
        reset = queue = 0
        for number, file in enumerate(files, 1):
            unacknowledged = _unacknowledged(file)
            if unacknowledged != 0:
                with suppress(OSError, struct.error), _client_socket(file, self._port) as connection:
                    if unacknowledged is None:
                        queue, _ = _tcp_info(connection)
                    elif self._is_stalled(connection, progress):
                        reset += 1
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                        connection.shutdown(socket.SHUT_RDWR)
            if number % _FILES_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._progress = progress
        if reset:
            _log.info("reset connections of clients that read nothing", connections=reset)
        self._checks_with_queue = self._checks_with_queue + 1 if queue else 0
        if self._checks_with_queue == 2:
            _log.warning("clients wait to be accepted; see MAX_CONNECTIONS", waiting=queue)

    def _is_stalled(self, connection: socket.socket, progress: dict[object, tuple[int, float]]) -> bool:
        """Returns True if the client has acknowledged nothing for too long. If not, updates `progress`."""
        client = connection.getpeername()
        _, acknowledged = _tcp_info(connection)
        now = time.monotonic()
        before, since = self._progress.get(client, (-1, now))
        if before != acknowledged:
            since = now
        if now - since >= self._limit_s:
            return True
        progress[client] = acknowledged, since
        return False


def _unacknowledged(file: int) -> int | None:
    """Returns the bytes that a peer has yet to acknowledge; None for a listener, 0 for no socket."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, b"\0\0\0\0"))
    except OSError as error:
        return None if error.errno == errno.EINVAL else 0
    return int(count)


@contextmanager
def _client_socket(file: int, port: int) -> Iterator[socket.socket]:
    """Opens a copy of the file as a socket on `port`. Raises OSError if it is none, or closed.

    It must be a copy: the server's threads may close the file at any moment and open another of the same number.
    """
    copy = os.dup(file)
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with connection:
        if connection.family not in {socket.AF_INET, socket.AF_INET6} or connection.getsockname()[1] != port:
            raise OSError(errno.EADDRNOTAVAIL, "not a client connection")
        yield connection


def _tcp_info(connection: socket.socket) -> tuple[int, int]:
    """Returns the clients waiting to be accepted, if it listens, and the bytes the peer has acknowledged."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    waiting, acknowledged = _TCP_INFO.unpack(info)
    return waiting, acknowledged
