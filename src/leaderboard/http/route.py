"""A row of the route table: method, path, handler, and what the OpenAPI document says about it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from leaderboard.credentials import Scope
from leaderboard.http.asgi import AsgiScope, Receive
from leaderboard.http.response import Response
from leaderboard.model import INT32_MAX

Handler: TypeAlias = Callable[[AsgiScope, Receive], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """An integer in the path, from 1 to `maximum`, or to the value of the setting `maximum_setting`."""

    name: str
    example: int
    maximum: int = INT32_MAX
    maximum_setting: str | None = None


@dataclass(frozen=True, slots=True)
class UserParameter:
    """A user in the path: its number, or `@` and its external id."""

    name: str
    example: int


@dataclass(frozen=True, slots=True)
class TextParameter:
    """A text in the path, which matches a pattern."""

    name: str
    example: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the route table.

    Attributes:
        handler: a method of `Handlers`, not bound. Its docstring is the summary in the OpenAPI document.
        answer: the struct of a successful response, its media type if no struct describes it, or None without a
            body.
        other_answers: structs of which a successful response may have one instead.
        problems: codes from the table of problems.
        parameters: those of the path, in its order.
        needs: the scope a key must have; None if the route is always open to everyone.
        body: the struct of the request body, None if there is none.
        takes_key: Idempotency-Key makes a repeated request harmless.
        query: the struct of the query parameters, None if there are none.
        other_responses: the struct of each further status that is not a problem.
        media_types: further media types of a successful response.
        may_be_stale: while PostgreSQL is unreachable, an older answer with `Age` is sent.
        on_default: it is about the board `default`. A route with neither this nor `{board}` in its path is about
            all boards or users, and no key that is limited to boards may use it.
        own_user_only: where users may write, the token of the user in the path is enough. The token must name the
            user as the path does.
        limited: rate limits and `ALLOWED_HOSTS` apply.
        documented: the OpenAPI document has it.
    """

    method: str
    path: str
    handler: Callable[[Any, AsgiScope, Receive], Awaitable[Response]]
    answer: type | str | None
    problems: tuple[str, ...] = ()
    parameters: tuple[Parameter | UserParameter | TextParameter, ...] = ()
    needs: Scope | None = None
    status: int = 200
    body: type | None = None
    takes_key: bool = False
    query: type | None = None
    other_answers: tuple[type, ...] = ()
    other_responses: Mapping[int, type] = field(default_factory=dict)
    media_types: tuple[str, ...] = ()
    may_be_stale: bool = False
    on_default: bool = False
    own_user_only: bool = False
    limited: bool = True
    documented: bool = True

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.method != "GET"

    @property
    def name(self) -> str:
        """The name of the operation."""
        return self.handler.__name__

    @property
    def summary(self) -> str:
        """What the route does, in one line."""
        return self.handler.__doc__ or ""
