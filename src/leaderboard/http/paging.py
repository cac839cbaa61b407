"""Pages of a board: the query parameters, the answer, and the cursor from one page to the next.

A cursor is the sort key (on `default` the score) and the id of the last user of a page. It is URL-safe Base64,
without padding, of a version byte, the sort key (8 bytes) and the user id (4 bytes, both big-endian): score 100,
id 7 → `AgAAAAAAAABkAAAABw`.
"""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from leaderboard.errors import InvalidParameter
from leaderboard.http.requests import positive, query_parameters, user
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN, Page, Standing, Total, UserRef
from leaderboard.queries import PageAroundQuery, PageQuery, SeasonRef
from leaderboard.rules import MAX_EXTERNAL_ID

MAX_PAGE_SIZE = 1000
MAX_FRIENDS = 100

_CURSOR = struct.Struct(">Bqi")
_CURSOR_VERSION = 2
_USER = rf"([1-9][0-9]{{0,8}}|@([^,\u0000-\u001f\u007f-\u009f]|,,){{1,{MAX_EXTERNAL_ID}}})"
_USERS = f"^{_USER}(,{_USER}){{0,{MAX_FRIENDS - 1}}}$"


class Friends(NamedTuple):
    """The users whose entries are asked for."""

    users: Sequence[UserRef]
    season: SeasonRef | None = None


class PageParameters(msgspec.Struct, frozen=True):
    """The parameters of `GET /leaderboard`."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE, description="users on the page, at most")] = 100
    after: Annotated[str, Meta(description="the `next` of a page: returns the page that follows it")] | None = None
    around_rank: (
        Annotated[int, Meta(ge=1, le=INT32_MAX, description="returns the page around this rank")] | None
    ) = None
    users: (
        Annotated[
            str,
            Meta(
                pattern=_USERS,
                description=f"up to {MAX_FRIENDS} users, as in `1,5,@abc`: returns those of them that are on the"
                " board, best first, with their ranks among all; without `total` and `next`. A comma in an"
                " external id is written twice",
            ),
        ]
        | None
    ) = None


NextPage = Annotated[str | None, Meta(description="the cursor for `after`; null on the last page")]


class PageAnswer(msgspec.Struct, frozen=True):
    """A page of the board. The answer to `users` has neither `total` nor `next`."""

    users: list[Standing]
    total: Total | UnsetType = UNSET
    next: NextPage | UnsetType = UNSET


def page_query(query_string: bytes) -> PageQuery | PageAroundQuery | Friends:
    """Returns the query that a query string asks about `default`. Raises InvalidParameter."""
    return query_of(query_parameters(query_string, PageParameters.__struct_fields__), query_string, None)


def query_of(
    values: Mapping[str, str], query_string: bytes, season: SeasonRef | None
) -> PageQuery | PageAroundQuery | Friends:
    """Returns the query that the parameters of a query string ask about a season. Raises InvalidParameter."""
    if "users" in values:
        if others := [name for name in PageParameters.__struct_fields__ if name in values and name != "users"]:
            raise InvalidParameter("users", values["users"], f"given without `{others[0]}`")
        return Friends(_users(values["users"], query_string), season)
    limit = positive("limit", values["limit"], MAX_PAGE_SIZE) if "limit" in values else PageParameters().limit
    if "around_rank" not in values:
        after = _parse_cursor(values["after"], *_bounds(season)) if "after" in values else None
        return PageQuery(limit, after, season=season)
    if "after" in values:
        raise InvalidParameter("around_rank", values["around_rank"], "given without `after`")
    return PageAroundQuery(limit, positive("around_rank", values["around_rank"]), season=season)


def page_answer(page: Page) -> PageAnswer:
    """Returns the page as it is sent, with the cursor to the next one."""
    return PageAnswer(page.users, page.total, page.end and _cursor(*page.end))


def _users(text: str, query_string: bytes) -> Sequence[UserRef]:
    """Returns the users of a list like 1,5,@abc. Raises InvalidParameter."""
    # A comma of an external id is written twice. No external id has a NUL.
    found = text.replace(",,", "\0").split(",", MAX_FRIENDS)
    try:
        if len(found) > MAX_FRIENDS or "\0" in text:
            raise InvalidParameter("users", text, "")
        return [user("users", each.replace("\0", ","), query_string) for each in found]
    except InvalidParameter:
        allowed = f"up to {MAX_FRIENDS} integers from 1 to {INT32_MAX}, or @ and external ids, as in 1,5,@abc"
        raise InvalidParameter("users", text, allowed) from None


def _bounds(season: SeasonRef | None) -> tuple[int, int]:
    """Returns the lowest and the highest number of a cursor: a score of `default`, or any sort key."""
    return (SCORE_MIN, SCORE_MAX) if season is None else (-(2**63), 2**63 - 1)


def _cursor(score: int, user_id: int) -> str:
    return urlsafe_b64encode(_CURSOR.pack(_CURSOR_VERSION, score, user_id)).rstrip(b"=").decode()


def _parse_cursor(cursor: str, lowest: int, highest: int) -> tuple[int, int]:
    """Returns the score, or the sort key, and the user id in `cursor`. Raises InvalidParameter."""
    try:
        _, score, user_id = _CURSOR.unpack(urlsafe_b64decode(f"{cursor}=="))
    except (ValueError, struct.error):
        score = user_id = 0
    if user_id < 1 or not lowest <= score <= highest or _cursor(score, user_id) != cursor:
        raise InvalidParameter("after", cursor, "the `next` of a page")
    return score, user_id
