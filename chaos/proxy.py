"""Proxies between API processes and servers, which tests cut, freeze, redirect and watch.

All proxies of a run are in one event loop in a separate thread. They change and reorder nothing.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any, Self, TypeVar

T = TypeVar("T")

Watch = Callable[[bytes, bool, int], tuple[bool, Callable[[], None] | None]]
"""Called before data is passed on, with the data, whether the API sent it, and the number of the connection.

Returns whether to pass it on, and what to call afterwards.
"""


class LinkState(Enum):
    """What a proxy does with connections and data."""

    OPEN = "open"
    SILENT = "silent"
    """Connections stay open and no data passes, as when a machine or the network fails."""
    CUT = "cut"
    """Connections are closed and refused."""


class Loop:
    """An event loop in its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self.servers: list[asyncio.Server] = []
        """The listening servers."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` in the loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _end(self) -> None:
        # First stop accepting, then let accepted connections reach `_accept`: closing a server in between leaves
        # their sockets open.
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
        # The loop closes their sockets in its next iterations.
        await _some_turns()


async def _some_turns() -> None:
    """Lets the loop run its pending callbacks, and those that follow from them."""
    for _ in range(5):
        await asyncio.sleep(0)


class Proxy:
    """A proxy to a server on this machine, with its own port."""

    def __init__(self, loop: Loop, target: int) -> None:
        self._loop = loop
        self._target = target
        self._state = LinkState.OPEN
        self._may_pass: asyncio.Event
        self._connections: set[asyncio.StreamWriter] = set()
        self._watch: Watch | None = None
        self._accepted = 0
        self._frozen = 0
        self.port: int = loop.run(self._open())

    def set(self, state: LinkState) -> None:
        """Sets what happens from now on."""
        self._loop.run(self._set(state))

    def move(self, target: int, *, close: bool = True) -> None:
        """Connects to another server from now on. With `close`, open connections are closed."""
        self._loop.run(self._move(target, close=close))

    def freeze(self) -> None:
        """Passes no more data on the open connections, and leaves them open. New ones work."""
        self._frozen = self._accepted

    def watch(self, watch: Watch) -> None:
        """Has all data shown to `watch`, in the loop's thread."""
        self._watch = watch

    async def _open(self) -> int:
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._loop.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _set(self, state: LinkState) -> None:
        self._state = state
        if state is LinkState.OPEN:
            self._may_pass.set()
        elif state is LinkState.SILENT:
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
            if self._state is LinkState.CUT:
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
            # At the end of the loop, whose callback would print the cancellation.
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
