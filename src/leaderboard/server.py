"""The HTTP server: Granian with our application, one or several processes of it on one port."""

import asyncio
import errno
import os
import signal
import socket
from functools import partial

import granian._signals
from granian import Granian
from granian._granian import WorkerSignal
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.http.routes import Application
from leaderboard.observe import set_up_logs

_STOP_S = 4
"""How long a process may take to finish what it has begun."""


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
    """Serve until SIGINT or SIGTERM, and with `stop_on_hangup` until the terminal is closed."""
    server = Granian(
        "leaderboard",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        # Without TLS nobody speaks 2 unasked, and where requests end in it is not what the tests look at.
        http=HTTPModes.http1,
        workers=settings.workers,
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=_STOP_S,
        log_level=LogLevels.warning,
        # Its lines go where ours go.
        log_dictconfig={"formatters": {}, "handlers": {}, "loggers": {"_granian": {"propagate": True}}},
    )
    if stop_on_hangup:
        server.on_startup(lambda: signal.signal(signal.SIGHUP, server.signal_handler_interrupt))
    server.serve(target_loader=partial(_worker, settings), wrap_loader=False)


def _worker(settings: Settings) -> Application:
    """What each process runs: sets it up and returns the application."""
    granian._signals.set_loop_signals = _set_loop_signals  # noqa: SLF001
    set_up_logs(settings.log_level, settings.log_format)
    return App(settings).asgi()


def _set_loop_signals(loop: asyncio.AbstractEventLoop) -> WorkerSignal:
    """Granian's own, but deaf to a second signal, on which it would hang in `WorkerSignal.set`.

    Ctrl-C comes twice: from the terminal, which tells the whole process group, and from the parent.
    """
    stop = WorkerSignal()
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, tell)
    return stop
