"""The ASGI adapter of one route: access check, handler, deadline, error responses, sending."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from leaderboard.batching import CancelledBeforeStart
from leaderboard.errors import LeaderboardError, OutcomeUnknown, Overloaded
from leaderboard.http import problems
from leaderboard.http.access import AccessDenied
from leaderboard.http.asgi import RESPONSE_BODY, AsgiScope, Message, Receive, Send
from leaderboard.http.deadlines import Deadlines
from leaderboard.http.large_responses import CHUNK_BYTES, LargeResponses
from leaderboard.http.requests import BodyTooLarge, ClientGone, read_body
from leaderboard.http.response import Response
from leaderboard.http.route import Handler
from leaderboard.http.status import ServiceStatus
from leaderboard.metrics import Metrics

CALLER = "leaderboard.caller"
"""The key of the ASGI scope that holds the name of the caller, where it is known."""

_CLOSE = (b"connection", b"close")
_NO_BODY: Message = {"type": RESPONSE_BODY, "body": b""}
_STATUS_TEXTS = {status.value: str(status.value) for status in HTTPStatus}

_log = structlog.get_logger(__name__)


class RequestLog:
    """Counts requests and errors, and logs them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log_requests = logging.getLogger().isEnabledFor(logging.DEBUG)

    def record(self, scope: AsgiScope, path: str, status: int, started: float) -> None:
        """Counts an answered request of the route `path`, and logs it at debug level."""
        self._metrics.requests.inc(path, _STATUS_TEXTS[status])
        if self._log_requests:
            milliseconds = round((time.perf_counter() - started) * 1000, 2)
            _log.debug("request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds)

    def record_error(self, error: Exception) -> None:
        """Counts an error by its problem code. Logs it with its traceback if it is a bug."""
        kind = problems.kind_of(error)
        if kind is problems.INTERNAL:
            _log.error("a request failed", exc_info=error)
        self._metrics.refusals.labels(kind.code).inc()


@dataclass(frozen=True, slots=True)
class EndpointContext:
    """What all endpoints of a process share."""

    status: ServiceStatus
    deadlines: Deadlines
    large_responses: LargeResponses
    log: RequestLog
    root_path: str


class Endpoint:
    """One route as an ASGI application."""

    def __init__(
        self,
        context: EndpointContext,
        path: str,
        handler: Handler,
        *,
        writes: bool = False,
        access_check: Callable[[AsgiScope], str] | None = None,
    ) -> None:
        """`path` is the name of the route in the metrics. `access_check` returns the name of the caller."""
        self._context = context
        self._path = path
        self._handler = handler
        self._writes = writes
        self._access_check = access_check

    async def serve(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        started = time.perf_counter()
        context = self._context
        deadlines = context.deadlines
        task = deadlines.begin()
        try:
            if self._access_check is not None:
                await self._check_access(self._access_check, scope, receive)
            response = await self._handler(scope, receive)
        except asyncio.CancelledError as error:
            if not deadlines.take_timeout(task):
                raise
            response = self._error_response(self._timeout_error(error))
        except Exception as error:  # noqa: BLE001 - every error becomes a response, and this is where
            deadlines.take_timeout(task)
            response = self._error_response(error)
        finally:
            deadlines.end(task)
        if context.status.stopping:
            response = response.with_header(*_CLOSE)
        if scope["method"] == "HEAD":
            await send(response.start)
            await send(_NO_BODY)
        elif len(response.body) > CHUNK_BYTES:
            response = await self._send_large(response, send, task, scope)
        else:
            await send(response.start)
            await send(response.end)
        context.log.record(scope, self._path, response.status, started)

    async def _send_large(
        self, response: Response, send: Send, task: asyncio.Task[object], scope: AsgiScope
    ) -> Response:
        """Sends a large response, or an error if there is no room for it. Returns the one that was sent."""
        try:
            await self._context.large_responses.send(response, send, task, scope["path"])
        except Overloaded as error:
            response = self._error_response(error)
            await send(response.start)
            await send(response.end)
        return response

    def _error_response(self, error: Exception) -> Response:
        self._context.log.record_error(error)
        return problems.response(error, self._context.root_path)

    def _timeout_error(self, error: asyncio.CancelledError) -> LeaderboardError:
        limit_s = self._context.deadlines.limit_s
        if self._writes and not isinstance(error, CancelledBeforeStart):
            return OutcomeUnknown(f"the write was not confirmed within {limit_s:g} s")
        return Overloaded(f"there was no response within {limit_s:g} s")

    async def _check_access(
        self, access_check: Callable[[AsgiScope], str], scope: AsgiScope, receive: Receive
    ) -> None:
        try:
            scope[CALLER] = access_check(scope)
        except AccessDenied:
            await _discard_body(scope, receive)
            raise


def error_handler(error: LeaderboardError) -> Handler:
    """Returns a handler that raises `error` for every request."""

    async def raise_error(scope: AsgiScope, receive: Receive) -> Response:
        await _discard_body(scope, receive)
        raise error

    return raise_error


async def _discard_body(scope: AsgiScope, receive: Receive) -> None:
    """Reads the body of a request that is answered with an error.

    A response sent before the body has arrived would cost the client its connection.
    """
    with contextlib.suppress(BodyTooLarge, ClientGone):
        await read_body(scope["headers"], receive)
