"""The parameters of calls about boards: the board, its season, and the parts of lists."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from leaderboard.board_rules import BOARD_NAME_PATTERN, DEFAULT_BOARD
from leaderboard.errors import InvalidParameter, SeasonNotFound
from leaderboard.http.asgi import AsgiScope
from leaderboard.http.paging import PageParameters
from leaderboard.http.requests import board_name, positive, query_parameters
from leaderboard.model import INT32_MAX
from leaderboard.queries import SeasonRef

MAX_LIST = 1000
_LIST = 100
_PREVIOUS = "previous"

Season = Annotated[
    str,
    Meta(
        pattern=f"^({_PREVIOUS}|[1-9][0-9]{{0,8}})$",
        description="the number of a season, or `previous` for the last that ended; by default the current one",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIST, description="how many are listed, at most")]
AfterBoard = Annotated[
    str, Meta(pattern=f"^{BOARD_NAME_PATTERN}$", description="the name of a board: lists those after it")
]


class SeasonParameters(msgspec.Struct, frozen=True):
    """The parameters of the reads of a board."""

    season: Season | None = None


class BoardPageParameters(PageParameters, frozen=True):
    """The parameters of `GET /boards/{board}/leaderboard`."""

    season: Season | None = None


class RankParameters(msgspec.Struct, frozen=True):
    """The parameters of `POST /boards/{board}/users/{id}/score`."""

    rank: Annotated[bool, Meta(description="whether the answer has the rank, read after the write")] = False


class BoardListParameters(msgspec.Struct, frozen=True):
    """The parameters of lists of boards."""

    after: AfterBoard | None = None
    limit: Limit = _LIST


class SeasonListParameters(msgspec.Struct, frozen=True):
    """The parameters of a list of seasons."""

    before: (
        Annotated[int, Meta(ge=1, le=INT32_MAX, description="the number of a season: lists those before it")]
        | None
    ) = None
    limit: Limit = _LIST


class FindParameters(msgspec.Struct, frozen=True):
    """The parameters of `GET /users`: `username`, or `prefix` with `after` and `limit`."""

    username: Annotated[str, Meta(min_length=1, description="the name of the user")] | None = None
    prefix: (
        Annotated[str, Meta(description="what names begin with: lists those users, by name in code point order")]
        | None
    ) = None
    after: Annotated[str, Meta(description="the `next` of a list: lists what follows it")] | None = None
    limit: Limit = _LIST


def board_of(scope: AsgiScope) -> str:
    """Returns the name of the board in the path. Raises InvalidParameter."""
    return board_name("board", scope["path_params"]["board"])


def parameters(scope: AsgiScope, struct: type[msgspec.Struct]) -> Mapping[str, str]:
    """Returns the parameters in the query string, of those that `struct` has. Raises InvalidParameter."""
    return query_parameters(scope["query_string"], struct.__struct_fields__)


def season_of(board: str, values: Mapping[str, str]) -> SeasonRef | None:
    """Returns the season of a call, None for `default`. Raises InvalidParameter and SeasonNotFound."""
    text = values.get("season")
    if text is None:
        number = None
    elif text == _PREVIOUS:
        number = 0
    else:
        try:
            number = positive("season", text)
        except InvalidParameter:
            allowed = f"an integer from 1 to {INT32_MAX}, or {_PREVIOUS}"
            raise InvalidParameter("season", text, allowed) from None
    if board != DEFAULT_BOARD:
        return SeasonRef(board, number)
    if number not in {None, 1}:
        raise SeasonNotFound(board, number or 0)
    return None


def limit_of(values: Mapping[str, str]) -> int:
    """Returns how many of a list are asked for. Raises InvalidParameter."""
    return positive("limit", values["limit"], MAX_LIST) if "limit" in values else _LIST


def after_of(values: Mapping[str, str]) -> str:
    """Returns the board after which a list begins, "" for the first. Raises InvalidParameter."""
    return board_name("after", values["after"]) if "after" in values else ""


def with_rank(values: Mapping[str, str]) -> bool:
    """Returns whether the rank is asked for. Raises InvalidParameter."""
    text = values.get("rank", "false")
    if text not in {"true", "false"}:
        raise InvalidParameter("rank", text, "true or false")
    return text == "true"
