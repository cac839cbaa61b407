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
import sys
from functools import partial
from typing import Any

import granian._signals
import structlog
from granian import Granian
from granian._granian import WorkerSignal
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from leaderboard.app import App
from leaderboard.config import FEWEST_CONNECTIONS, Settings
from leaderboard.http.asgi import AsgiApp
from leaderboard.observe import set_up_logs

_CLOSING_S = 2
"""How long a process may take to close its stores, when everything has been answered."""
_LARGEST_HEADERS = 64 * 1024
"""Bytes the server holds for each connection, at most, of requests not read yet and of answers not taken yet."""
_OTHER_FILES = 40
"""Open files of a process that are connections neither of clients nor to PostgreSQL, at most. It has about 28:
pipes, event loops, logs, connections to Redis, the listening socket."""
_FILES_PER_DB_CONNECTION = 2
"""The connection, and another on which PostgreSQL is asked to cancel its statement."""
_LONGEST_QUEUE = 1024
"""Connections of clients that wait to be accepted by one process, at most."""
_MOST_UNSENT = 256 * 1024
"""Bytes the kernel takes for one client beyond those that the client has room for."""

_log = structlog.get_logger(__name__)


class CannotServe(Exception):
    """What serving needs is not there: the port, or open files; says what."""


def check_port(settings: Settings) -> None:
    """Raise CannotServe unless the port is free.

    Granian shares its port with others of its kind, and would not notice that one is there already.
    """
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or errno.EADDRINUSE)
        raise CannotServe(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another port"
        ) from None


def serve(settings: Settings, *, stop_on_hangup: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; with `stop_on_hangup`, for a person, until the terminal is closed, and
    without delay. Raises CannotServe."""
    if stop_on_hangup:
        settings = settings.model_copy(update={"stop_delay_ms": 0})
    connections = _connections(settings)
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
        backpressure=connections,
        # As many may wait as are served, so that a small limit is not followed by a long wait.
        backlog=min(connections, _LONGEST_QUEUE),
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
    server.serve(spawn_target=_serve_in_worker, target_loader=partial(_worker, settings), wrap_loader=False)


def _connections(settings: Settings) -> int:
    """How many connections of clients one process accepts: MAX_CONNECTIONS, or as many as its open files allow.

    Without a file for the next connection, the server would try to accept it again and again, as fast as it can.
    """
    others = _OTHER_FILES + _FILES_PER_DB_CONNECTION * settings.db_pool_size
    limit = _allow_files(settings.max_connections + others)
    connections = min(settings.max_connections, limit - others)
    if connections < FEWEST_CONNECTIONS:
        raise CannotServe(
            f"the limit of open files is {limit}, which is too low: a process needs {others} for itself and"
            f" {FEWEST_CONNECTIONS} for clients; allow {others + FEWEST_CONNECTIONS} or more (ulimit -n)"
        )
    if connections < settings.max_connections:
        _log.warning(
            "fewer client connections than MAX_CONNECTIONS, because of the limit of open files (ulimit -n)",
            max_connections=settings.max_connections,
            open_files=limit,
            client_connections=connections,
        )
    return connections


def _allow_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, or as far as it may be raised; returns how many may be used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        # macOS has another limit below the hard one.
        return soft
    return allowed


def _serve_in_worker(
    number: int, name: str | None, load: Any, sockets: tuple[tuple[Any, Any], Any], *more: Any
) -> None:
    """Run Granian's own worker, on a listening socket that has our options.

    Connections inherit them. Without a limit of what is not sent yet, the kernel keeps up to 4 MB for each client
    that does not read (`net.ipv4.tcp_wmem`).
    """
    (address, listening), shared = sockets
    if listening is None:
        listening = address.build()
    if sys.platform == "linux":
        with socket.socket(fileno=os.dup(listening.get_fd())) as copy:
            copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT)
    Granian._spawn_asgi_lifespan_worker(number, name, load, ((None, listening), shared), *more)  # noqa: SLF001


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
