"""What a row of the route table is, and what its handler returns."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.types import Receive, Scope

from leaderboard import credentials

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Out:
    """A response."""

    status: int
    headers: Headers
    body: bytes


Handler: TypeAlias = Callable[[Any, Scope, Receive], Awaitable[Out]]


@dataclass(frozen=True, slots=True)
class Call:
    """One row of the table.

    `answer`, `body` and `query`, which is the parameters, are structs, or `answer` a media type where there is
    none; `problems` are codes of the table of problems; `also` are other statuses with bodies of their own;
    `aged`: while PostgreSQL is unreachable the answer may be an older one, with its Age.

    `needs` is the scope a key must have, None for a call that is open to all, always; `own`: where users may
    write, a token of the user in the path is enough; `limited`: it counts against the caller's rate limit.
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
