"""The HTTP server: Granian with our application, one or several processes of it on one port.

It stops in order. SIGTERM: not ready from now on, but everything is answered, new connections too, until whoever
sends requests here has had `STOP_DELAY_MS` to notice; then nothing more is accepted, what is under way is
finished, and the process ends. SIGINT, from a person, skips the delay.
"""

import asyncio
import contextlib
import errno
import math
import multiprocessing
import os
import resource
import signal
import socket
from functools import partial

import granian._signals
from granian import Granian
from granian._granian import WorkerSignal
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.http.call import AsgiApp
from leaderboard.observe import set_up_logs

_CLOSING_S = 2
"""How long a process may take to close its stores, when everything has been answered."""
_LARGEST_HEADERS = 64 * 1024
"""Bytes the server holds for each connection, at most, of requests not read yet and of answers not taken yet."""
_OTHER_FILES = 1000
"""Open files of a process that are not clients' connections, generously."""


class PortInUse(Exception):
    """The port cannot be listened on; says why."""


def check_port(settings: Settings) -> None:
    """Raise PortInUse unless the port is free.

    Granian shares its port with others of its kind, and would not notice that one is there already.
    """
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or errno.EADDRINUSE)
        raise PortInUse(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another port"
        ) from None


def serve(settings: Settings, *, stop_on_hangup: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; with `stop_on_hangup`, for a person, until the terminal is closed, and
    without delay."""
    if stop_on_hangup:
        settings = settings.model_copy(update={"stop_delay_ms": 0})
    _allow_files(settings.max_connections + _OTHER_FILES)
    server = Granian(
        "leaderboard",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        workers=settings.workers,
        # Without TLS nobody speaks 2 unasked, and "auto" waits for ever for a first byte, to learn which it is.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(
            header_read_timeout=settings.idle_timeout_ms, max_buffer_size=_LARGEST_HEADERS
        ),
        backpressure=settings.max_connections,
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=math.ceil((settings.stop_delay_ms + settings.request_timeout_ms) / 1000) + _CLOSING_S,
        log_level=LogLevels.warning,
        # Its lines go where ours go.
        log_dictconfig={"formatters": {}, "handlers": {}, "loggers": {"_granian": {"propagate": True}}},
    )

    main = os.getpid()

    def take(number: int, _frame: object) -> None:
        if os.getpid() != main:
            # A worker just forked has these handlers until it has its own, and nothing to finish.
            os._exit(0)
        if number != signal.SIGTERM:
            # They are told by Granian as well, but with SIGTERM.
            for worker in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid or 0, signal.SIGINT)
        server.signal_handler_interrupt()  # type: ignore[no-untyped-call]

    def take_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if stop_on_hangup else ())):
            signal.signal(number, take)

    server.on_startup(take_signals)
    server.serve(target_loader=partial(_worker, settings), wrap_loader=False)


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files to that, if it is lower and may be raised: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _worker(settings: Settings) -> AsgiApp:
    """What each process runs: sets it up and returns the application."""
    set_up_logs(settings.log_level, settings.log_format)
    app = App(settings)
    application = app.asgi()
    granian._signals.set_loop_signals = partial(_set_loop_signals, app)  # noqa: SLF001
    return application


def _set_loop_signals(app: App, loop: asyncio.AbstractEventLoop) -> WorkerSignal:
    """Instead of Granian's own: stops after a delay, and once, as it would hang in a second `WorkerSignal.set`.

    Ctrl-C comes twice: from the terminal, which tells the whole process group, and from the parent.
    """
    stop = WorkerSignal()
    told = False

    def stop_now() -> None:
        nonlocal told
        if not told:
            told = True
            stop.set()
            app.end_soon()

    def begin(delay_s: float) -> None:
        app.begin_to_stop()
        loop.call_later(delay_s, stop_now)

    def take(number: int, _frame: object) -> None:
        if not app.serving:
            # The server would not hear of it, and has nothing to finish.
            os._exit(0)
        loop.call_soon_threadsafe(begin, app.settings.stop_delay_ms / 1000 if number == signal.SIGTERM else 0)

    # Not the loop's own handlers: those lose what comes while the loop does not run yet. It wakes often enough.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, take)
    return stop
