"""Runs Granian's worker processes and ends them: all uses of Granian's private parts are here.

Read from Granian 2.8 (2.8.7). When the minor version changes, read again, in Granian:

- `granian/_signals.py`, `set_loop_signals`: what it returns, and that the worker calls it with its event loop;
- `granian/server/mp.py`, `_spawn_asgi_lifespan_worker`: its arguments, and where it calls `set_loop_signals`;
- `granian/server/common.py`, `signal_handler_interrupt` and the shape of the sockets that a worker is given;
- `WorkerSignal`, in Rust: a second `set` blocks for ever.
"""

import asyncio
import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import granian._signals
import structlog
from granian import Granian
from granian._granian import WorkerSignal

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.http.application import HttpApplication
from leaderboard.http.asgi import AsgiApp
from leaderboard.logs import set_up_logs
from leaderboard.tuning import Tuning

GRANIAN_VERSION = "2.8"
"""The minor version whose private parts are used here."""

_MAX_UNSENT_BYTES = 256 * 1024
"""Bytes that the kernel takes for one client beyond those that the client has room for."""
_CLOSE_S = 2
"""How long a process may take to close its stores after the last answer."""
_LAST_WORDS_S = 0.5
"""How long before it would be killed a process that hangs ends itself, and writes where it hangs."""
_QUIET_S = 0.5
"""When stopping, a process exits after this long without active requests, even if idle connections remain."""

_log = structlog.get_logger(__name__)


def longest_stop_s(settings: Settings) -> float:
    """Return after how many seconds a process that has not stopped is killed."""
    return (settings.stop_delay_ms + settings.request_timeout_ms) / 1000 + _CLOSE_S


def take_signals(interrupt: Callable[[], None], *, stop_on_hangup: bool) -> None:
    """Set the main process's signal handlers, once Granian has set its own.

    `interrupt` is Granian's, and stops the workers by SIGTERM. SIGINT, and SIGHUP with `stop_on_hangup`, are first
    passed on to the workers as SIGINT, so that they stop without delay.
    """
    main = os.getpid()

    def take(number: int, _frame: object) -> None:
        if os.getpid() != main:
            # A worker that has just been forked inherits these handlers. It has no requests yet.
            os._exit(0)
        if number != signal.SIGTERM:
            for worker in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid or 0, signal.SIGINT)
        interrupt()

    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if stop_on_hangup else ())):
        signal.signal(number, take)


def run(number: int, name: str | None, load: Any, sockets: tuple[tuple[Any, Any], Any], *more: Any) -> None:
    """Run Granian's worker on a listening socket with our options, which its connections inherit.

    Without TCP_NOTSENT_LOWAT the kernel keeps up to 4 MB for each client that does not read
    (`net.ipv4.tcp_wmem`).
    """
    (address, listening), shared = sockets
    if listening is None:
        listening = address.build()
    if sys.platform == "linux":
        with socket.socket(fileno=os.dup(listening.get_fd())) as copy:
            copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
    Granian._spawn_asgi_lifespan_worker(number, name, load, ((None, listening), shared), *more)  # noqa: SLF001


def load(settings: Settings, tuning: Tuning | None = None) -> AsgiApp:
    """Set up a worker process and return its application."""
    set_up_logs(settings.log_level, settings.log_format)
    app = App(settings, tuning)
    http = app.http()
    worker = Worker(app, http)
    granian._signals.set_loop_signals = worker.set_loop_signals  # noqa: SLF001
    return http.asgi(worker.lifespan)


class Worker:
    """One worker process: stops it in order and once, and when its parent is gone."""

    def __init__(self, app: App, http: HttpApplication) -> None:
        self._app = app
        self._http = http
        self._serving = False
        """Whether Granian serves, and reacts to the stop signal that `set_loop_signals` returned."""
        self._stopped = False
        self._ending: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the application from the server's start to its end."""
        watching = asyncio.create_task(_end_with_parent())
        async with self._app.serving(self._http):
            self._serving = True
            yield
            if self._ending is not None:
                self._ending.cancel()
        watching.cancel()
        # Everything is closed. The end of Python and of Granian may wait for threads.
        os._exit(0)

    def set_loop_signals(self, loop: asyncio.AbstractEventLoop) -> WorkerSignal:
        """Set the worker's signal handlers; return the signal that stops Granian. Replaces Granian's function.

        SIGTERM stops after STOP_DELAY_MS, SIGINT at once. Ctrl-C arrives twice: from the terminal, which signals
        the whole process group, and from the parent. `WorkerSignal.set` must be called only once.
        """
        stop = WorkerSignal()

        def begin(delay_s: float) -> None:
            loop.call_later(delay_s, self._stop, stop)
            self._begin_to_stop()

        def take(number: int, _frame: object) -> None:
            if not self._serving:
                # Granian would not react, and there are no requests to finish.
                os._exit(0)
            delay_s = self._app.settings.stop_delay_ms / 1000 if number == signal.SIGTERM else 0
            loop.call_soon_threadsafe(begin, delay_s)

        # Not the loop's own handlers, which lose signals that arrive before the loop runs.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, take)
        return stop

    def _begin_to_stop(self) -> None:
        """Report the process as not ready, and close clients' connections after their next answer."""
        if not self._http.stopping:
            self._http.begin_to_stop()
            # By a thread that needs no lock of Python's.
            faulthandler.dump_traceback_later(longest_stop_s(self._app.settings) - _LAST_WORDS_S, exit=True)
            _log.info("stopping", pid=os.getpid())

    def _stop(self, stop: WorkerSignal) -> None:
        if not self._stopped:
            self._stopped = True
            stop.set()
            self._ending = asyncio.create_task(self._end_when_quiet())

    async def _end_when_quiet(self) -> None:
        """End the process when it has had no active requests for a moment, unless Granian ends it earlier.

        Granian accepts no more connections now, but it would wait for clients that have sent half a request or
        that do not read their answer.
        """
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_S:
            await asyncio.sleep(0.02)
            if len(self._http.deadlines):
                quiet_since = time.monotonic()
        try:
            await self._app.close()
        finally:
            os._exit(0)


async def _end_with_parent() -> None:
    """End this process when its parent is gone: it would keep the port and go on answering."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
