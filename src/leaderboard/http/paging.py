"""Pages of the board: the query parameters, the answer, and the cursor from one page to the next.

A cursor is the score and the id of the last user of a page. It is URL-safe Base64, without padding, of a version
byte, the score (8 bytes) and the user id (4 bytes, both big-endian): score 100, id 7 → `AgAAAAAAAABkAAAABw`.
"""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from leaderboard.errors import InvalidParameter
from leaderboard.http.requests import positive
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN, Page, Standing, Total
from leaderboard.queries import PageAroundQuery, PageQuery

MAX_PAGE_SIZE = 1000

_CURSOR = struct.Struct(">Bqi")
_CURSOR_VERSION = 2


class PageParameters(msgspec.Struct, frozen=True):
    """The parameters of `GET /leaderboard`."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE, description="users on the page, at most")] = 100
    after: Annotated[str, Meta(description="the `next` of a page: returns the page that follows it")] | None = None
    around_rank: (
        Annotated[int, Meta(ge=1, le=INT32_MAX, description="returns the page around this rank")] | None
    ) = None


class PageAnswer(msgspec.Struct, frozen=True):
    """A page of the board."""

    users: list[Standing]
    total: Total
    next: Annotated[str | None, Meta(description="the cursor for `after`; null on the last page")]


def page_query(query_string: bytes) -> PageQuery | PageAroundQuery:
    """Returns the query for the page that a query string asks for. Raises InvalidParameter."""
    values = _parameters(query_string)
    limit = positive("limit", values["limit"], MAX_PAGE_SIZE) if "limit" in values else PageParameters().limit
    if "around_rank" not in values:
        return PageQuery(limit, _parse_cursor(values["after"]) if "after" in values else None)
    if "after" in values:
        raise InvalidParameter("around_rank", values["around_rank"], "given without `after`")
    return PageAroundQuery(limit, positive("around_rank", values["around_rank"]))


def page_answer(page: Page) -> PageAnswer:
    """Returns the page as it is sent, with the cursor to the next one."""
    return PageAnswer(page.users, page.total, page.end and _cursor(*page.end))


def _parameters(query_string: bytes) -> dict[str, str]:
    known = PageParameters.__struct_fields__
    values: dict[str, str] = {}
    for name, value in parse_qsl(query_string.decode("utf-8", "replace"), keep_blank_values=True):
        if name not in known:
            raise InvalidParameter("a parameter", name, f"one of {', '.join(known)}")
        if name in values:
            raise InvalidParameter(name, value, "given once")
        values[name] = value
    return values


def _cursor(score: int, user_id: int) -> str:
    return urlsafe_b64encode(_CURSOR.pack(_CURSOR_VERSION, score, user_id)).rstrip(b"=").decode()


def _parse_cursor(cursor: str) -> tuple[int, int]:
    """Returns the score and the user id in `cursor`. Raises InvalidParameter."""
    try:
        _, score, user_id = _CURSOR.unpack(urlsafe_b64decode(f"{cursor}=="))
    except (ValueError, struct.error):
        score = user_id = 0
    if user_id < 1 or not SCORE_MIN <= score <= SCORE_MAX or _cursor(score, user_id) != cursor:
        raise InvalidParameter("after", cursor, "the `next` of a page")
    return score, user_id
