"""A response, and the ASGI messages that send it."""

from typing import TypeAlias

from leaderboard.http.asgi import RESPONSE_BODY, RESPONSE_START, Message

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


class Response:
    """A response. Immutable: one response may be sent to many clients, by its messages `start` and `end`."""

    __slots__ = ("body", "end", "etag", "headers", "start", "status")

    def __init__(self, status: int, headers: Headers, body: bytes, *, etag: bytes = b"") -> None:
        """`etag` is the value of the header ETag; without one, empty."""
        self.status = status
        self.headers = headers
        self.body = body
        self.etag = etag
        sent = [*headers, (b"content-length", b"%d" % len(body))]
        if etag:
            sent.append((b"etag", etag))
        self.start: Message = {"type": RESPONSE_START, "status": status, "headers": sent}
        self.end: Message = {"type": RESPONSE_BODY, "body": body}

    def with_header(self, name: bytes, value: bytes) -> "Response":
        """Returns the same response with one more header."""
        return Response(self.status, (*self.headers, (name, value)), self.body, etag=self.etag)


class NoContent(Response):
    """A response of the status 204 or 304, which has neither a body nor a length (RFC 9110, section 8.6)."""

    __slots__ = ()

    def __init__(self, headers: Headers, status: int = 204) -> None:
        super().__init__(status, headers, b"")
        self.start: Message = {"type": RESPONSE_START, "status": status, "headers": list(headers)}

    def with_header(self, name: bytes, value: bytes) -> Response:
        return NoContent((*self.headers, (name, value)), self.status)
