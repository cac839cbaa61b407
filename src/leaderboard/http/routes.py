"""The whole HTTP surface on one page: every call, what it takes, gives and refuses.

The table is what is served, what the OpenAPI document is made from, and what the tests walk through. The hot
calls are plain ASGI: no middleware and no request objects stand between the server and the service.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
import structlog

from leaderboard.batching import CancelledBeforeStart
from leaderboard.errors import LeaderboardError, OutcomeUnknown, Overloaded
from leaderboard.http import openapi, problems, security, wire
from leaderboard.http.access import Access, Refused
from leaderboard.http.call import BODY, AsgiApp, Call, Handler, Headers, Message, Out, Receive, Scope, Send
from leaderboard.http.deadline import Deadlines
from leaderboard.http.outbox import PIECE, SLOWEST, Outbox
from leaderboard.http.page.board import BOARD_SIZE
from leaderboard.http.page.pages import Pages
from leaderboard.http.router import NoSuchPath, Router, below
from leaderboard.metrics import Metrics
from leaderboard.model import Context, EncodedTop, ScoreSet, Standing, Top, User
from leaderboard.service.idempotency import Once
from leaderboard.service.reads import Reads, Reply
from leaderboard.service.writes import Writes

_JSON = security.wire("application/json")
_TEXT = security.wire("text/plain; version=0.0.4; charset=utf-8")

_CALLER = "leaderboard.caller"
"""Where a request's scope keeps who makes it, if that is known."""
_CLOSE = (b"connection", b"close")
_NOTHING: Message = {"type": BODY, "body": b""}
_STATUSES = {status.value: str(status.value) for status in HTTPStatus}

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class Status(msgspec.Struct, frozen=True):
    """How this process is."""

    service: str
    version: str
    status: str
    postgres: str
    redis: str
    writes: str


class Health(Protocol):
    """What the API asks about the process it is in."""

    postgres_up: bool | None
    redis_up: bool | None

    @property
    def writable(self) -> bool: ...

    @property
    def unwritable_s(self) -> float: ...


class Api:
    """The board behind HTTP."""

    def __init__(
        self,
        reads: Reads,
        writes: Writes,
        health: Health,
        metrics: Metrics,
        *,
        pages: Pages,
        version: str,
        max_top_n: int,
        stale_reads: bool,
        ready_without_writes_s: float,
        access: Access,
        deadline_s: float,
        root_path: str = "",
    ) -> None:
        """`root_path` stands before every path of ours that an answer names."""
        self._reads = reads
        self._writes = writes
        self._health = health
        self.metrics = metrics
        self._tells_requests = logging.getLogger().isEnabledFor(logging.DEBUG)
        self.deadlines = Deadlines(deadline_s)
        self.outbox = Outbox()
        self.stopping = False
        self._version = version
        self._max_top_n = max_top_n
        self._stale_reads = stale_reads
        self._ready_without_writes_s = ready_without_writes_s
        self.access = access
        self._pages = pages
        self.root_path = root_path
        document = openapi.document(CALLS, version, max_top_n, access, root_path)
        self._openapi = _encode(document)
        self._docs = self._pages.docs(document)
        self._page_headers = security.wire("text/html; charset=utf-8", self._pages.headers)

    # The calls of the board

    async def create_user(self, scope: Scope, receive: Receive) -> Out:
        body = await wire.read_json(scope["headers"], receive)
        name, score, image_url = wire.create_user(body)
        user = await self._writes.create_user(name, image_url, score, _once(scope))
        location = f"{self.root_path}/users/{user.user_id}"
        return Out(201, (*_JSON, (b"location", location.encode())), _encode(user))

    async def get_user(self, scope: Scope, _receive: Receive) -> Out:
        return _reply(await self._reads.standing(_user_id(scope)))

    async def set_score(self, scope: Scope, receive: Receive) -> Out:
        body = await wire.read_json(scope["headers"], receive)
        answer = await self._writes.set_score(_user_id(scope), wire.set_score(body), _once(scope))
        return Out(200, _JSON, _encode(answer))

    async def get_top(self, scope: Scope, _receive: Receive) -> Out:
        n = wire.positive("n", scope["path_params"]["n"], self._max_top_n)
        return _reply(await self._reads.top(n))

    async def get_page(self, scope: Scope, _receive: Receive) -> Out:
        reply = await self._reads.page(wire.page_question(scope["query_string"]))
        return Out(200, _JSON, _encode(wire.page_answer(reply.result)))

    async def get_context(self, scope: Scope, _receive: Receive) -> Out:
        return _reply(await self._reads.context(_user_id(scope)))

    # The process

    async def root(self, scope: Scope, receive: Receive) -> Out:
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        # A browser has no key to show: where reads need one, everybody gets the status.
        if _prefers_html(accept.decode("latin-1")) and not self.access.reads_need_key:
            return await self._board_page()
        return Out(200, (*_JSON, (b"vary", b"accept")), _encode(self._status()))

    async def _board_page(self) -> Out:
        reply = await self._reads.top(BOARD_SIZE)
        page = self._pages.board(reply.result.decode(), age_seconds=_age(reply))
        return Out(200, (*self._page_headers, (b"vary", b"accept"), *_age_header(reply)), page)

    async def livez(self, _scope: Scope, _receive: Receive) -> Out:
        return Out(200, _JSON, b'{"status":"alive"}')

    async def readyz(self, _scope: Scope, _receive: Receive) -> Out:
        status = self._status()
        return Out(503 if status.status in {"unavailable", "stopping"} else 200, _JSON, _encode(status))

    async def get_metrics(self, _scope: Scope, _receive: Receive) -> Out:
        self.metrics.in_flight.set(len(self.deadlines))
        for queue in (*self._reads.queues(), *self._writes.queues()):
            self.metrics.waiting.labels(queue.name).set(queue.depth)
        return Out(200, _TEXT, self.metrics.render())

    async def openapi(self, _scope: Scope, _receive: Receive) -> Out:
        return Out(200, _JSON, self._openapi)

    async def docs(self, _scope: Scope, _receive: Receive) -> Out:
        return Out(200, self._page_headers, self._docs)

    async def asset(self, scope: Scope, _receive: Receive) -> Out:
        found = self._pages.assets.get(f"/assets/{scope['path_params']['name']}")
        if found is None:
            raise NoSuchPath
        media_type, body = found
        return Out(200, security.wire(media_type, self._pages.asset_headers), body)

    def refusal(self, error: Exception) -> Out:
        """The answer that says so, counted, and logged if it is a bug."""
        kind = problems.kind_of(error)
        if kind is problems.INTERNAL:
            _log.error("a request failed", exc_info=error)
        self.metrics.refusals.labels(kind.code).inc()
        return Out(*problems.render(error, self.root_path))

    def note(self, scope: Scope, route: str, status: int, started: float) -> None:
        """Count an answered request, and log it at debug."""
        self.metrics.requests.inc(route, _STATUSES[status])
        if self._tells_requests:
            milliseconds = round((time.perf_counter() - started) * 1000, 2)
            _log.debug("request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds)

    def _status(self) -> Status:
        up = {True: "up", False: "down", None: "unknown"}
        truth, cache = self._health.postgres_up, self._health.redis_up
        health = self._health
        if self.stopping:
            status = "stopping"
        elif truth and cache and health.writable:
            status = "ok"
        elif 0 < self._ready_without_writes_s <= health.unwritable_s:
            status = "unavailable"
        elif truth or (truth is False and cache and self._stale_reads):
            status = "degraded"
        else:
            status = "unavailable"
        writes = "unknown" if truth is None else "accepted" if health.writable else "refused"
        return Status("leaderboard", self._version, status, up[truth], up[cache], writes)


class Endpoint:
    """One row of the table as an ASGI application: runs its handler, in time, and says in HTTP what went wrong."""

    def __init__(
        self,
        api: Api,
        route: str,
        handler: Handler,
        *,
        writes: bool = False,
        gate: Callable[[Scope], str] | None = None,
    ) -> None:
        self._api = api
        self._route = route
        self._handler = handler
        self._writes = writes
        self._gate = gate

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started = time.perf_counter()
        api = self._api
        task = api.deadlines.begin()
        try:
            if self._gate is not None:
                await self._ask(self._gate, scope, receive)
            out = await self._handler(api, scope, receive)
        except asyncio.CancelledError as error:
            if not api.deadlines.made_late(task):
                raise
            out = api.refusal(self._too_late(error))
        except Exception as error:  # noqa: BLE001 - every error has an answer, and this is where it gets it
            api.deadlines.made_late(task)
            out = api.refusal(error)
        finally:
            api.deadlines.end(task)
        if api.stopping:
            out = Out(out.status, (*out.headers, _CLOSE), out.body)
        if len(out.body) > PIECE and scope["method"] != "HEAD":
            out = await self._send_large(task, scope, send, out)
        else:
            await send(out.start)
            await send(out.end if scope["method"] != "HEAD" else _NOTHING)
        api.note(scope, self._route, out.status, started)

    async def _send_large(self, task: asyncio.Task[object], scope: Scope, send: Send, out: Out) -> Out:
        """Send it in pieces, each of which the client has to take in time. Returns what was sent, or the refusal.

        While there is little room for other large answers, the whole has to be taken in time too.
        """
        deadlines = self._api.deadlines
        try:
            with self._api.outbox.holding(out.body):
                await send(out.start)
                begun = time.monotonic()
                for at in range(0, len(out.body), PIECE):
                    slow = time.monotonic() - begun > deadlines.limit_s + at / SLOWEST
                    if slow and self._api.outbox.crowded:
                        _log.debug("a client took its answer too slowly", path=scope["path"])
                        break
                    # One that is being sent when the process stops has one deadline, as all others have.
                    if not self._api.stopping or at == 0:
                        deadlines.begin_again(task)
                    more = at + PIECE < len(out.body)
                    await send({"type": BODY, "body": out.body[at : at + PIECE], "more_body": more})
        except asyncio.CancelledError:
            if not deadlines.made_late(task):
                raise
            # The server ends the connection, because the answer is not whole.
            _log.debug("a client did not take its answer", path=scope["path"])
        except Overloaded as error:
            out = self._api.refusal(error)
            await send(out.start)
            await send(out.end)
        finally:
            deadlines.end(task)
        return out

    def _too_late(self, error: asyncio.CancelledError) -> LeaderboardError:
        limit_s = self._api.deadlines.limit_s
        if self._writes and not isinstance(error, CancelledBeforeStart):
            return OutcomeUnknown(f"the write was not confirmed within {limit_s:g} s")
        return Overloaded(f"there was no answer within {limit_s:g} s")

    async def _ask(self, gate: Callable[[Scope], str], scope: Scope, receive: Receive) -> None:
        try:
            scope[_CALLER] = gate(scope)
        except Refused:
            await _drain(scope, receive)
            raise


_FIELDS = (
    *("malformed_json", "invalid_field", "request_timeout", "body_too_large"),
    *("unsupported_media_type", "unsupported_encoding"),
)
_ONCE = (
    *("idempotency_key_reused", "idempotency_key_in_use"),
    *("too_many_idempotency_keys", "idempotency_keys_full"),
)
_ACCESS = ("unauthorized", "forbidden", "rate_limited")
_WRITE = (*_ONCE, *_ACCESS, "cross_origin_write", "overloaded", "unavailable", "outcome_unknown")
_READ = (*_ACCESS, "overloaded", "unavailable")
_USER = ("invalid_parameter", "user_not_found")

CALLS: tuple[Call, ...] = (
    Call(
        "GET",
        "/leaderboard/top/{n}",
        Api.get_top,
        "The best n users",
        Top,
        needs="read",
        aged=True,
        problems=("invalid_parameter", *_READ),
    ),
    Call(
        "GET",
        "/leaderboard/user/{id}/context",
        Api.get_context,
        "A user among the five above and the five below",
        Context,
        needs="read",
        aged=True,
        problems=(*_USER, *_READ),
    ),
    Call(
        "GET",
        "/leaderboard",
        Api.get_page,
        "A page of the board: from the first user on, after another page, or around a rank",
        wire.PageAnswer,
        needs="read",
        query=wire.PageParameters,
        problems=("invalid_parameter", *_READ),
    ),
    Call(
        "POST",
        "/users/{id}/score",
        Api.set_score,
        "Set a user's score",
        ScoreSet,
        needs="write",
        own=True,
        body=wire.SetScore,
        problems=(*_USER, *_FIELDS, *_WRITE),
    ),
    Call(
        "GET",
        "/users/{id}",
        Api.get_user,
        "A user and its rank",
        Standing,
        needs="read",
        aged=True,
        problems=(*_USER, *_READ),
    ),
    Call(
        "POST",
        "/users",
        Api.create_user,
        "Create a user",
        User,
        needs="write",
        status=201,
        body=wire.CreateUser,
        problems=("invalid_parameter", "username_taken", *_FIELDS, *_WRITE),
    ),
    Call(
        "GET",
        "/",
        Api.root,
        "The status; for a browser the board as a page",
        Status,
        needs=None,
        aged=True,
        problems=("rate_limited", "overloaded", "unavailable"),
    ),
    Call(
        "GET",
        "/livez",
        Api.livez,
        "Whether the process runs; touches nothing else",
        "application/json",
        needs=None,
        limited=False,
    ),
    Call(
        "GET",
        "/readyz",
        Api.readyz,
        "Whether calls can be answered",
        Status,
        needs=None,
        limited=False,
        also={503: Status},
    ),
    Call(
        "GET", "/metrics", Api.get_metrics, "Metrics for Prometheus", "text/plain", needs="admin", problems=_ACCESS
    ),
    Call(
        "GET",
        "/openapi.json",
        Api.openapi,
        "This document",
        "application/json",
        needs=None,
        problems=("rate_limited",),
    ),
    Call("GET", "/docs", Api.docs, "This document as a page", "text/html", needs=None, problems=("rate_limited",)),
    Call(
        "GET",
        "/assets/{name}",
        Api.asset,
        "Parts of the pages",
        "text/css",
        needs=None,
        problems=("rate_limited",),
        documented=False,
    ),
)


def build(api: Api, lifespan: Callable[[], AbstractAsyncContextManager[None]]) -> AsgiApp:
    """The ASGI application; `lifespan` is entered when the server starts and left when it stops."""

    def refuse(error: LeaderboardError) -> AsgiApp:
        return Endpoint(api, "none", _refuse_with(error)).serve

    def endpoint(call: Call) -> AsgiApp:
        writes, gate = call.body is not None, api.access.gate(call)
        return Endpoint(api, call.path, call.handler, writes=writes, gate=gate).serve

    app = Router([(call.method, call.path, endpoint(call)) for call in CALLS], refuse, lifespan).serve
    return below(api.root_path, app) if api.root_path else app


def _refuse_with(error: LeaderboardError) -> Handler:
    async def refuse(_api: Api, scope: Scope, receive: Receive) -> Out:
        await _drain(scope, receive)
        raise error

    return refuse


async def _drain(scope: Scope, receive: Receive) -> None:
    """Read what nobody will: an answer that overtakes the body would cost the client its connection."""
    with contextlib.suppress(wire.BodyTooLarge, wire.ClientGone):
        await wire.read_body(scope["headers"], receive)


def _user_id(scope: Scope) -> int:
    return wire.positive("id", scope["path_params"]["id"])


def _once(scope: Scope) -> Once | None:
    key = wire.idempotency_key(scope["headers"])
    # Two who happen to choose the same key are not each other's.
    return None if key is None else (scope.get(_CALLER, ""), key)


def _reply(reply: Reply[Any]) -> Out:
    out: Out | None = reply.response
    if out is None:
        headers = _JSON if reply.age_s is None else (*_JSON, *_age_header(reply))
        answer = reply.result
        body = answer.body if isinstance(answer, EncodedTop) else _encode(answer)
        out = reply.response = Out(200, headers, body)
    return out


def _age(reply: Reply[Any]) -> int | None:
    return None if reply.age_s is None else math.ceil(reply.age_s)


def _age_header(reply: Reply[Any]) -> Headers:
    age = _age(reply)
    return () if age is None else ((b"age", str(age).encode()),)


def _prefers_html(accept: str) -> bool:
    """Whether `text/html` is asked for and nothing that JSON would satisfy is asked for more."""
    html = json = 0.0
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if media_type in {"text/html", "application/xhtml+xml"}:
            html = max(html, quality)
        elif media_type in {"application/json", "application/*", "*/*"}:
            json = max(json, quality)
    return html > json
