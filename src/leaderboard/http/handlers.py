"""The handlers of the routes: each reads a request, calls the service and returns a response.

The docstring of a handler is the summary of its route in the OpenAPI document.
"""

import math
from typing import Any

from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.errors import InvalidField
from leaderboard.http import bodies, paging, requests, security
from leaderboard.http.access import Access, Forbidden
from leaderboard.http.asgi import AsgiScope, Receive
from leaderboard.http.deadlines import Deadlines
from leaderboard.http.endpoint import CALLER
from leaderboard.http.negotiation import prefers_html
from leaderboard.http.response import Headers, Response
from leaderboard.http.router import NoSuchPath
from leaderboard.http.status import ServiceStatus
from leaderboard.metrics import Metrics
from leaderboard.model import EncodedTop, UserRef, encode_json
from leaderboard.queries import PageAroundQuery, PageQuery
from leaderboard.service.cache_reads import Reply
from leaderboard.service.entries import EntryWrites
from leaderboard.service.idempotency import Once
from leaderboard.service.reads import Reads
from leaderboard.service.writes import Writes
from leaderboard.web.pages import HOME_SIZE, Pages

JSON = security.encode_headers("application/json")
"""The headers of an answer in JSON."""
_PROMETHEUS = security.encode_headers("text/plain; version=0.0.4; charset=utf-8")
_HTML = "text/html; charset=utf-8"
_VARY = (b"vary", b"accept")

_encode = encode_json


class Handlers:
    """The handlers. Each is a method that takes the ASGI scope and `receive`, and returns a Response."""

    def __init__(
        self,
        reads: Reads,
        writes: Writes,
        entries: EntryWrites,
        status: ServiceStatus,
        access: Access,
        metrics: Metrics,
        deadlines: Deadlines,
        web: "WebHandlers",
        *,
        openapi: bytes,
        max_top_n: int,
    ) -> None:
        """`openapi` is the OpenAPI document as JSON."""
        self._reads = reads
        self._writes = writes
        self._entries = entries
        self._status = status
        self._access = access
        self._metrics = metrics
        self._deadlines = deadlines
        self._web = web
        self._openapi = openapi
        self._max_top_n = max_top_n

    # The leaderboard

    async def get_user(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A user and its rank"""
        return response_of(await self._reads.standing(user_of(scope)))

    async def set_score(self, scope: AsgiScope, receive: Receive) -> Response:
        """Set a user's score"""
        body = await requests.read_json(scope["headers"], receive)
        user = user_of(scope)
        score, user_name = bodies.set_score(body)
        check_creation(self._access, scope, user, user_name)
        return Response(200, JSON, _encode(await self._writes.set_score(user, score, once_of(scope), user_name)))

    async def get_top(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The best n users"""
        n = requests.positive("n", scope["path_params"]["n"], self._max_top_n)
        return response_of(await self._reads.top(n))

    async def get_page(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A page of the board: from the first user on, after another page, around a rank, or of some users"""
        return await page_response(self._reads, paging.page_query(scope["query_string"]))

    async def get_context(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A user among the five above and the five below"""
        return response_of(await self._reads.context(user_of(scope)))

    # The process

    async def root(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The status; for a browser the board as a page"""
        if self._web.has_home_page and prefers_html(scope["headers"]):
            return self._web.home(await self._reads.top(HOME_SIZE))
        return Response(200, (*JSON, _VARY), _encode(self._status.report()))

    async def livez(self, _scope: AsgiScope, _receive: Receive) -> Response:
        """Whether the process runs; touches nothing else"""
        return Response(200, JSON, b'{"status":"alive"}')

    async def readyz(self, _scope: AsgiScope, _receive: Receive) -> Response:
        """Whether calls can be answered"""
        status = self._status.report()
        return Response(200 if status.is_ready else 503, JSON, _encode(status))

    async def get_metrics(self, _scope: AsgiScope, _receive: Receive) -> Response:
        """Metrics for Prometheus"""
        self._metrics.in_flight.set(len(self._deadlines))
        for queue in (*self._reads.queues(), *self._writes.queues(), *self._entries.queues()):
            self._metrics.waiting.labels(queue.name).set(queue.depth)
        return Response(200, _PROMETHEUS, self._metrics.render())

    async def openapi(self, _scope: AsgiScope, _receive: Receive) -> Response:
        """This document"""
        return Response(200, JSON, self._openapi)

    # The web pages

    async def docs(self, _scope: AsgiScope, _receive: Receive) -> Response:
        """This document as a page"""
        return self._web.docs

    async def asset(self, scope: AsgiScope, _receive: Receive) -> Response:
        """Parts of the pages"""
        return self._web.asset(scope["path_params"]["name"])


class WebHandlers:
    """The responses that are web pages, or parts of them."""

    def __init__(self, pages: Pages, openapi: dict[str, object], *, has_home_page: bool) -> None:
        """Without `has_home_page`, `/` shows the status to browsers too, as reads need a key."""
        self.has_home_page = has_home_page
        self._pages = pages
        self._home_headers = security.encode_headers(_HTML, security.page(pages.home_policy))
        docs_headers = security.encode_headers(_HTML, security.page(pages.docs_policy))
        self.docs = Response(200, docs_headers, pages.docs(openapi))
        self._assets = {
            path: Response(200, security.encode_headers(asset.content_type, security.ASSET), asset.content)
            for path, asset in pages.assets.items()
        }

    def home(self, reply: Reply[EncodedTop]) -> Response:
        """Returns the home page with the users of `reply`, the answer to a query for the top."""
        page = self._pages.home(reply.result.decode(), age_seconds=_age(reply))
        return Response(200, (*self._home_headers, _VARY, *_age_header(reply)), page)

    def asset(self, name: str) -> Response:
        """Returns the file. Raises NoSuchPath."""
        response = self._assets.get(f"/assets/{name}")
        if response is None:
            raise NoSuchPath
        return response


def user_of(scope: AsgiScope) -> UserRef:
    """Returns the user in the path. Raises InvalidParameter."""
    return requests.user("id", scope["path_params"]["id"], scope.get("raw_path", b""))


def check_creation(access: Access, scope: AsgiScope, user: UserRef, user_name: str | None) -> None:
    """Checks a `username` beside a score, by which a user with an unknown external id is created.

    That needs what `POST /users` needs, whatever board the score is for. Raises InvalidField and Forbidden.
    """
    if user_name is None:
        return
    if isinstance(user, int):
        raise InvalidField({"username": "is only for a user of an external id, who is created if unknown"})
    if not access.has_scope("write", scope, DEFAULT_BOARD):
        raise Forbidden("creating a user with `username` needs a key for write, on the board default too")


def once_of(scope: AsgiScope) -> Once | None:
    """Returns the caller and its Idempotency-Key, None without a key. Raises InvalidParameter."""
    key = requests.idempotency_key(scope["headers"])
    # With the caller, so that two callers who choose the same key do not share it.
    return None if key is None else (scope.get(CALLER, ""), key)


async def page_response(reads: Reads, query: PageQuery | PageAroundQuery | paging.Friends) -> Response:
    """Returns the response to a query for a page, or for some users of the board."""
    if isinstance(query, paging.Friends):
        return response_of(await reads.friends(query.users, query.season))
    reply = await reads.page(query)
    return Response(200, JSON, _encode(paging.page_answer(reply.result)))


def response_of(reply: Reply[Any]) -> Response:
    """Returns the response with the result of `reply`, encoded once."""
    response: Response | None = reply.response
    if response is None:
        answer = reply.result
        body = answer.body if isinstance(answer, EncodedTop) else _encode(answer)
        headers = JSON if reply.age_s is None else (*JSON, *_age_header(reply))
        response = reply.response = Response(200, headers, body)
    return response


def _age(reply: Reply[Any]) -> int | None:
    return None if reply.age_s is None else math.ceil(reply.age_s)


def _age_header(reply: Reply[Any]) -> Headers:
    age = _age(reply)
    return () if age is None else ((b"age", str(age).encode()),)
