"""What a row of the route table is, what its handler returns, and ASGI's types, in which the server speaks."""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from leaderboard import credentials

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY = "http.response.body"

Headers = tuple[tuple[bytes, bytes], ...]


class Out:
    """A response, which may be sent any number of times: by the messages `start` and `end`."""

    __slots__ = ("body", "end", "headers", "start", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        length = (b"content-length", b"%d" % len(body))
        self.start: Message = {"type": "http.response.start", "status": status, "headers": [*headers, length]}
        self.end: Message = {"type": BODY, "body": body}


Handler: TypeAlias = Callable[[Any, Scope, Receive], Awaitable[Out]]


@dataclass(frozen=True, slots=True)
class Call:
    """One row of the table.

    `answer`, `body` and `query`, which is the parameters, are structs, or `answer` a media type where there is
    none; `problems` are codes of the table of problems; `also` are other statuses with bodies of their own;
    `aged`: while PostgreSQL is unreachable the answer may be an older one, with its Age.

    `needs` is the scope a key must have, None for a call that is open to all, always; `own`: where users may
    write, a token of the user in the path is enough; `limited`: it counts against the caller's rate limit, and
    `ALLOWED_HOSTS` holds for it.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type | str
    needs: credentials.Scope | None
    status: int = 200
    body: type | None = None
    query: type | None = None
    problems: tuple[str, ...] = ()
    also: dict[int, type | str] = field(default_factory=dict)
    aged: bool = False
    own: bool = False
    limited: bool = True
    documented: bool = True
