"""The wire between an API process and a server, in the hands of the test: cut it, hold it, move it, watch it.

All wires of a run are in one event loop in a thread of its own. Nothing on the wire is changed or reordered.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any, Self, TypeVar

T = TypeVar("T")

Watch = Callable[[bytes, bool, int], tuple[bool, Callable[[], None] | None]]
"""Is shown each piece before it is passed on, whether the API sent it, and the number of the connection. Says
whether to pass it on, and what to do when that is done."""


class Wire(Enum):
    """What a wire does."""

    WHOLE = "whole"
    SILENT = "silent"
    """Connections stay, and nothing comes through: a machine that is gone, or a network that drops packets."""
    CUT = "cut"
    """Connections are closed and refused."""


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self.servers: list[asyncio.Server] = []
        """What listens in it, until its end."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _end(self) -> None:
        # First no more is accepted, then what has been accepted is passed to `_accept`: a server that is closed in
        # between fails to do that, and leaves the socket open.
        for server in self.servers:
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
        await _some_turns()
        for server in self.servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The loop closes their sockets in its next turns.
        await _some_turns()


async def _some_turns() -> None:
    """Let the loop do what it is about to do, and what follows from that."""
    for _ in range(5):
        await asyncio.sleep(0)


class Proxy:
    """One wire to a server on this machine, with a port of its own."""

    def __init__(self, loop: Loop, target: int) -> None:
        self._loop = loop
        self._target = target
        self._wire = Wire.WHOLE
        self._may_pass: asyncio.Event
        self._connections: set[asyncio.StreamWriter] = set()
        self._watch: Watch | None = None
        self._accepted = 0
        self._frozen = 0
        self.port: int = loop.run(self._open())

    def set(self, wire: Wire) -> None:
        """Make the wire so from now on."""
        self._loop.run(self._set(wire))

    def move(self, target: int, *, close: bool = True) -> None:
        """Lead to another server from now on; with `close`, what was connected is closed."""
        self._loop.run(self._move(target, close=close))

    def freeze(self) -> None:
        """Pass nothing more on the connections that there are now, and leave them open; new ones are as ever."""
        self._frozen = self._accepted

    def watch(self, watch: Watch) -> None:
        """Have `watch`, called in the loop's thread, see all that passes."""
        self._watch = watch

    async def _open(self) -> int:
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._loop.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _set(self, wire: Wire) -> None:
        self._wire = wire
        if wire is Wire.WHOLE:
            self._may_pass.set()
        elif wire is Wire.SILENT:
            self._may_pass.clear()
        else:
            self._may_pass.set()
            self._close()

    async def _move(self, target: int, *, close: bool) -> None:
        self._target = target
        if close:
            self._close()

    def _close(self) -> None:
        for writer in self._connections:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        self._accepted += 1
        number = self._accepted
        server: asyncio.StreamWriter | None = None
        try:
            await self._may_pass.wait()
            if self._wire is Wire.CUT:
                return
            from_server, server = await asyncio.open_connection("127.0.0.1", self._target)
            self._connections.add(server)
            there = asyncio.create_task(self._carry(reader, server, number, from_api=True))
            back = asyncio.create_task(self._carry(from_server, writer, number, from_api=False))
            _, rest = await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            # Cancelled at the end of the loop, whose callback would print that.
            pass
        finally:
            for end in (writer, server):
                if end is not None:
                    self._connections.discard(end)
                    end.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, number: int, *, from_api: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 18):
                await self._may_pass.wait()
                if number <= self._frozen:
                    await asyncio.Future()
                afterwards = None
                if self._watch is not None:
                    passes, afterwards = self._watch(data, from_api, number)
                    if not passes:
                        return
                target.write(data)
                await target.drain()
                if afterwards is not None:
                    afterwards()
