"""Shared by tests of overload, slow clients and stopping: raw connections, a locked table, process statistics."""

import asyncio
import resource
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from leaderboard.config import Settings
from tests import system
from tests.system import ApiProcess


def connect(api: ApiProcess, data: bytes = b"", buffer: int | None = None) -> socket.socket:
    """Opens a connection and sends `data`. With `buffer`, the kernel receives few more bytes than that."""
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", api.settings.port))
    connection.settimeout(system.PATIENCE_S)
    connection.sendall(data)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Reads until the server closes the connection."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def is_reset(connection: socket.socket) -> bool:
    """Returns True if the server has reset the connection, although the client has not read everything."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def worker(api: ApiProcess) -> int:
    """Returns the id of the process that serves; the one started is its parent."""
    assert api.process is not None
    children = Path(f"/proc/{api.process.pid}/task/{api.process.pid}/children").read_text("ascii").split()
    return int(children[0])


def open_files(api: ApiProcess) -> int:
    return len(list(Path(f"/proc/{worker(api)}/fd").iterdir()))


def memory_mb(api: ApiProcess) -> float:
    pages = int(Path(f"/proc/{worker(api)}/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def in_flight(api: ApiProcess) -> float:
    name = "leaderboard_requests_in_flight "
    lines = api.client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Locks the table of users, so that no statement that needs it can proceed."""
    done = threading.Event()
    held = threading.Event()

    async def hold() -> None:
        connection = await system.connect(settings)
        async with connection.transaction():
            await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            held.set()
            await asyncio.to_thread(done.wait)
        await connection.close()

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(asyncio.run, hold())
        try:
            assert held.wait(system.PATIENCE_S)
            yield
        finally:
            done.set()
            holding.result()
