"""The HTTP server: Granian with our application, in one or several processes on one port.

On SIGTERM it stops in order. For STOP_DELAY_MS it reports not ready but still answers, on new connections too, so
that load balancers notice. Then it accepts no more connections, finishes the active requests and ends. SIGINT is
for a person and skips the delay.
"""

import errno
import math
import os
import resource
import socket
from collections.abc import Callable
from functools import partial

import structlog
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from leaderboard import granian_worker
from leaderboard.config import FEWEST_CONNECTIONS, Settings
from leaderboard.http.asgi import AsgiApp

_MAX_BUFFER_BYTES = 64 * 1024
"""Bytes that the server buffers for each connection: requests not yet read, and answers not yet sent."""
_OTHER_FILES = 40
"""Limit of a process's open files that are neither clients' connections nor connections to PostgreSQL.

It has about 28: pipes, event loops, logs, connections to Redis, the listening socket.
"""
_FILES_PER_DB_CONNECTION = 2
"""The connection, and another one for asking PostgreSQL to cancel its statement."""
_MAX_BACKLOG = 1024
"""Connections that wait to be accepted by one process."""

_log = structlog.get_logger(__name__)


class CannotServe(Exception):
    """The port is taken, or the limit of open files is too low."""


def check_port(settings: Settings) -> None:
    """Raise CannotServe unless the port is free.

    Granian sets SO_REUSEPORT, so it would not notice another Granian on the same port.
    """
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or errno.EADDRINUSE)
        raise CannotServe(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another port"
        ) from None


def serve(
    settings: Settings,
    *,
    load: Callable[[Settings], AsgiApp] = granian_worker.load,
    stop_on_hangup: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM. Raises CannotServe.

    `load` is called in each worker process and returns its application. `stop_on_hangup` is for a person at a
    terminal: closing the terminal stops the server, and there is no delay.
    """
    if stop_on_hangup:
        settings = settings.model_copy(update={"stop_delay_ms": 0})
    connections = _connections(settings)
    server = Granian(
        "leaderboard",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        workers=settings.workers,
        # Without TLS no client uses HTTP/2 by itself, and "auto" waits without limit for the first byte.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(
            header_read_timeout=settings.idle_timeout_ms, max_buffer_size=_MAX_BUFFER_BYTES
        ),
        backpressure=connections,
        # No longer than the number of connections, so that a small limit does not cause a long wait.
        backlog=min(connections, _MAX_BACKLOG),
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=math.ceil(granian_worker.longest_stop_s(settings)),
        log_level=LogLevels.warning,
        # Granian's log lines go to our handlers.
        log_dictconfig={"formatters": {}, "handlers": {}, "loggers": {"_granian": {"propagate": True}}},
    )
    interrupt = server.signal_handler_interrupt
    server.on_startup(partial(granian_worker.take_signals, interrupt, stop_on_hangup=stop_on_hangup))
    server.serve(spawn_target=granian_worker.run, target_loader=partial(load, settings), wrap_loader=False)


def _connections(settings: Settings) -> int:
    """Return how many clients' connections a process accepts: MAX_CONNECTIONS, or what its files allow.

    If accepting fails for lack of a file, the server retries it in a busy loop.
    """
    others = _OTHER_FILES + _FILES_PER_DB_CONNECTION * settings.db_pool_size
    limit = _raise_file_limit(settings.max_connections + others)
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


def _raise_file_limit(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, or as far as allowed; return the files that may be used."""
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
