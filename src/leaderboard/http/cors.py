"""CORS: pages of the origins in CORS_ORIGINS may call the API and read every answer.

A browser asks first, by a preflight, whether a page may send a request that a form cannot make: with another
method, with a key, with a body in JSON. It shows the page an answer that names the page's origin.

There is no Access-Control-Allow-Credentials: the page itself sets Authorization, and there are no cookies. Private
Network Access gets no answer: browsers now ask the person whether a page may reach the local network.
"""

from collections.abc import Awaitable, Iterable

from leaderboard.http import security
from leaderboard.http.asgi import RESPONSE_START, AsgiApp, AsgiScope, Message, Receive, Send
from leaderboard.http.hosts import AllowedOrigins
from leaderboard.http.response import NoContent, Response
from leaderboard.http.route import Handler

_REQUEST_HEADERS = b"authorization, content-type, idempotency-key, if-none-match, last-event-id"
"""What the API reads and a page may send only after a preflight. A path ignores what it does not read."""
_EXPOSED_HEADERS = b"age, allow, etag, location, retry-after, www-authenticate"
"""What answers have and a page may read only if this names it."""
_MAX_AGE_S = b"7200"
"""How long a browser may keep the answer to a preflight; for Chromium no more counts."""
_METHOD_ASKED = b"access-control-request-method"


def options_response(methods: Iterable[str]) -> Response:
    """Returns the answer to OPTIONS, also to a preflight, for a path that has these methods."""
    listed = ", ".join(methods).encode()
    return NoContent(
        (
            *security.encode_headers(None),
            (b"allow", listed),
            (b"access-control-allow-methods", listed),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", _MAX_AGE_S),
        )
    )


def answering_preflights(handler: Handler, response: Response) -> Handler:
    """Returns `handler`, but preflights have this response."""

    async def answer(scope: AsgiScope, receive: Receive) -> Response:
        if scope["method"] == "OPTIONS" and any(name == _METHOD_ASKED for name, _ in scope["headers"]):
            return response
        return await handler(scope, receive)

    return answer


def with_cors(app: AsgiApp, origins: AllowedOrigins) -> AsgiApp:
    """Returns `app` with the headers of CORS in each of its answers."""
    vary = () if origins.any else (b"origin",)

    def serve(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return app(scope, receive, send)
        allowed = origins.allow(scope)

        def send_with_cors(message: Message) -> Awaitable[None]:
            if message["type"] == RESPONSE_START:
                # A new message, as an answer to several clients has one for all of them.
                message = {**message, "headers": _headers(message["headers"], allowed, vary)}
            return send(message)

        return app(scope, receive, send_with_cors)

    return serve


def _headers(
    headers: Iterable[tuple[bytes, bytes]], allowed: bytes | None, vary: tuple[bytes, ...]
) -> list[tuple[bytes, bytes]]:
    """Returns the headers of an answer with those of CORS; `vary` is what it depends on besides."""
    result: list[tuple[bytes, bytes]] = []
    for header in headers:
        name, value = header
        if name == b"vary":
            vary = (value, *vary)
        elif name != security.RESOURCE_POLICY or allowed is None:
            result.append(header)
    if vary:
        result.append((b"vary", b", ".join(vary)))
    if allowed is not None:
        result += (
            (security.RESOURCE_POLICY, b"cross-origin"),
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED_HEADERS),
        )
    return result
