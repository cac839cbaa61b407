"""What travels: request bodies, parameters and cursors, checked strictly, and the structs that describe them.

Bodies are read with the standard library's parser, because it alone shows a key that is given twice, but for those
that have only one; the structs say which fields there are, and are what the OpenAPI document is made from.
"""

import asyncio
import contextlib
import json
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NoReturn
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Meta

from leaderboard import rules
from leaderboard.errors import InvalidField, InvalidParameter, LeaderboardError
from leaderboard.http.call import Receive
from leaderboard.model import INT32_MAX, Page, Score, Standing, Total
from leaderboard.queries import PageAroundQuery, PageQuery

MAX_BODY = 16 * 1024
MOST_A_PAGE = 1000

_MAX_DEPTH = 64
_BRACKETS = re.compile(r"[\[\]{}]")
# Possessive, and content with a string that does not end: linear for any text.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_UNKNOWN_NAMED = 20
"""More unknown fields than these are not listed: an answer should not outgrow its question."""
_POSITIVE = re.compile(r"[1-9][0-9]{0,9}")
_ABOUT_THE_BODY = frozenset({b"content-type", b"content-encoding"})
_JSON = [(b"content-type", b"application/json")]
_CURSOR = struct.Struct(">Bii")
_CURSOR_VERSION = 1
_KEY = re.compile(r"[!-~]{1,255}")
_TOO_LARGE = 10**30
"""Stands for an integer of more digits than are worth converting; beyond every range there is."""


class MalformedJson(LeaderboardError):
    """The body is not one JSON value in UTF-8."""


class BodyTooLarge(LeaderboardError):
    """The body is longer than MAX_BODY bytes."""


class UnsupportedMediaType(LeaderboardError):
    """The body is not declared as JSON."""


class UnsupportedEncoding(LeaderboardError):
    """The body is declared as compressed, or as encoded otherwise."""


class BodyTooSlow(LeaderboardError):
    """The request's time was over before all of its body had arrived."""


class ClientGone(LeaderboardError):
    """The client closed the connection before it had sent all of the body."""


class CreateUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /users`."""

    username: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=r"\S",
            examples=["ada"],
            description="unique; trimmed, in Unicode NFC; no control, bidi-override or unassigned characters",
        ),
    ]
    score: Score = 0
    imageUrl: (  # noqa: N815
        Annotated[
            str,
            Meta(
                max_length=2048,
                examples=["https://img.example.com/ada.png"],
                pattern="^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$",
                description="absolute `https` or `http` URL, without credentials; not loaded by the server",
            ),
        ]
        | None
    ) = None


class SetScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /users/{id}/score`."""

    score: Score


def _required(struct: type[msgspec.Struct]) -> Mapping[str, bool]:
    return MappingProxyType({field.name: field.required for field in msgspec.structs.fields(struct)})


_CREATE_USER, _SET_SCORE = _required(CreateUser), _required(SetScore)
_decode_set_score = msgspec.json.Decoder(SetScore).decode


class PageParameters(msgspec.Struct, frozen=True):
    """The parameters of `GET /leaderboard`."""

    limit: Annotated[int, Meta(ge=1, le=MOST_A_PAGE, description="users on the page, at most")] = 100
    after: Annotated[str, Meta(description="the `next` of a page: the one that follows it")] | None = None
    around_rank: (
        Annotated[int, Meta(ge=1, le=INT32_MAX, description="the page that has this rank in its middle")] | None
    ) = None


class PageAnswer(msgspec.Struct, frozen=True):
    """A page of the board."""

    users: list[Standing]
    total: Total
    next: Annotated[str | None, Meta(description="the cursor for `after`; null on the last page")]


def idempotency_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """What the request is to be known by when it is sent again. Raises InvalidParameter."""
    given = [value.decode("latin-1").strip() for name, value in headers if name == b"idempotency-key"]
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidParameter("Idempotency-Key", ", ".join(given), "1 to 255 visible ASCII characters, once")
    return given[0]


def positive(name: str, text: str, greatest: int = INT32_MAX) -> int:
    """A parameter that is an integer from 1 to `greatest`. Raises InvalidParameter."""
    if _POSITIVE.fullmatch(text) and (value := int(text)) <= greatest:
        return value
    raise InvalidParameter(name, text, f"an integer from 1 to {greatest}")


def page_question(query: bytes) -> PageQuery | PageAroundQuery:
    """Which page the query string asks for. Raises InvalidParameter."""
    known = PageParameters.__struct_fields__
    given: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True):
        if name not in known:
            raise InvalidParameter("a parameter", name, f"one of {', '.join(known)}")
        if name in given:
            raise InvalidParameter(name, value, "given once")
        given[name] = value
    limit = positive("limit", given["limit"], MOST_A_PAGE) if "limit" in given else PageParameters().limit
    if "around_rank" not in given:
        return PageQuery(limit, _place(given["after"]) if "after" in given else None)
    if "after" in given:
        raise InvalidParameter("around_rank", given["around_rank"], "given without `after`")
    return PageAroundQuery(limit, positive("around_rank", given["around_rank"]))


def page_answer(page: Page) -> PageAnswer:
    """The page as it is sent."""
    last = page.users[-1] if page.users else None
    if last is None or last.rank >= page.total:
        return PageAnswer(page.users, page.total, None)
    return PageAnswer(page.users, page.total, _cursor(last.total_score, last.user_id))


def _cursor(score: int, user_id: int) -> str:
    return urlsafe_b64encode(_CURSOR.pack(_CURSOR_VERSION, score, user_id)).decode()


def _place(cursor: str) -> tuple[int, int]:
    try:
        _, score, user_id = _CURSOR.unpack(urlsafe_b64decode(cursor))
    except (ValueError, struct.error):
        score = user_id = 0
    if user_id < 1 or _cursor(score, user_id) != cursor:
        raise InvalidParameter("after", cursor, "the `next` of a page")
    return score, user_id


async def read_json(headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
    """The body of a request that says it is JSON, as it is.

    Raises UnsupportedMediaType, UnsupportedEncoding, and what `read_body` raises.

    The body is read in any case: an answer that overtakes it would cost the client its connection.
    """
    body = await read_body(headers, receive)
    if [header for header in headers if header[0] in _ABOUT_THE_BODY] == _JSON:
        return body
    media_type = _header(headers, b"content-type").partition(";")[0].strip(" \t").lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"Content-Type is {media_type or 'missing'!r}, must be application/json")
    coding = _header(headers, b"content-encoding").strip(" \t").lower()
    if coding not in {"", "identity"}:
        raise UnsupportedEncoding(f"Content-Encoding is {coding!r}, must be identity or missing")
    return body


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str:
    # Repeated headers are joined, so that a duplicate is refused; a proxy before us might have chosen another one.
    return b", ".join(value for each, value in headers if each == name).decode("latin-1")


async def read_body(headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
    """The request's body, at most MAX_BODY. Raises BodyTooLarge and ClientGone, and BodyTooSlow if cancelled."""
    length = dict(headers).get(b"content-length", b"").lstrip(b"0")
    if length.isdigit() and (len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY):
        raise BodyTooLarge(f"the body has more than {MAX_BODY} bytes")
    body: bytes = b""
    while True:
        try:
            message = await receive()
        except asyncio.CancelledError:
            raise BodyTooSlow("the body did not arrive in time") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the client went away")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise BodyTooLarge(f"the body has more than {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return body


def create_user(body: bytes) -> tuple[str, int, str | None]:
    """Name, score and image URL of a user to create. Raises MalformedJson and InvalidField."""
    fields = _Fields(body, _CREATE_USER)
    name = fields.take("username", str, rules.clean_username)
    score = fields.take("score", int, rules.check_score)
    url = fields.take("imageUrl", str, rules.clean_image_url, nullable=True)
    fields.check()
    return name, 0 if score is UNSET else score, None if url is UNSET else url


def set_score(body: bytes) -> int:
    """The score to set. Raises MalformedJson and InvalidField."""
    if body.count(b'"') == 2:
        # One string is one key, and none that is given twice: all that the faster parser would not see.
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _decode_set_score(body).score
    fields = _Fields(body, _SET_SCORE)
    score: int = fields.take("score", int, rules.check_score)
    fields.check()
    return score


_KINDS = MappingProxyType({str: "a string", int: "an integer"})


class _Fields:
    """The members of a JSON object, taken one by one so that everything wrong with them is told at once."""

    def __init__(self, body: bytes, required: Mapping[str, bool]) -> None:
        """`required` has the names of all fields there are, and which of them must be given."""
        self._errors: dict[str, str] = {}
        self._required = required
        self._values = _parse(body)
        unknown = [name for name in self._values if name not in required]
        for name in unknown[:_UNKNOWN_NAMED]:
            self._errors[name] = f"unknown field; there are {', '.join(sorted(required))}"

    def take(self, name: str, kind: type, rule: Callable[[Any], Any], *, nullable: bool = False) -> Any:
        """The value of a member that `rule` makes of it; UNSET if it is missing and may be."""
        value = self._values.get(name, UNSET)
        if value is UNSET and self._required[name]:
            self._errors[name] = "is required"
        elif value is UNSET or (value is None and nullable):
            return value
        elif type(value) is not kind:
            self._errors[name] = f"must be {_KINDS[kind]}{' or null' if nullable else ''}, not {_called(value)}"
        else:
            try:
                return rule(value)
            except ValueError as error:
                self._errors[name] = str(error)
        return UNSET

    def check(self) -> None:
        """Raise InvalidField if anything was wrong."""
        if self._errors:
            raise InvalidField(self._errors)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
        if _depth(text) > _MAX_DEPTH:
            raise MalformedJson(f"the body is nested more than {_MAX_DEPTH} deep")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=lambda digits: int(digits) if len(digits) < 30 else _TOO_LARGE,
        )
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidField({"body": f"must be an object, not {_called(value)}"})
    return value


def _depth(text: str) -> int:
    """How deep arrays and objects are nested, at most; exact where it matters, above `_MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise MalformedJson(f"the key {name!r} is given twice")
            seen.add(name)
    return members


def _no_constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON")


def _called(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case str():
            return "a string"
        case int():
            return "an integer"
        case float():
            return "a number with a fraction or an exponent"
        case list():
            return "an array"
        case _:
            return "an object"
