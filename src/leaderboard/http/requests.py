"""Reads requests: the body, the header Idempotency-Key, and values in paths and query strings."""

import asyncio
import re
from collections.abc import Collection
from urllib.parse import parse_qsl, unquote_to_bytes

from leaderboard.board_rules import BOARD_NAME, check_board_name
from leaderboard.errors import InvalidParameter, LeaderboardError
from leaderboard.http.asgi import Receive
from leaderboard.model import INT32_MAX, UserRef
from leaderboard.rules import check_external_id

MAX_BODY_BYTES = 16 * 1024

_CONTENT_HEADERS = frozenset({b"content-type", b"content-encoding"})
_JSON = [(b"content-type", b"application/json")]
_POSITIVE = re.compile(r"[1-9][0-9]{0,9}")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")

RequestHeaders = list[tuple[bytes, bytes]]


class BodyTooLarge(LeaderboardError):
    """The body is longer than the limit, in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body has more than {limit} bytes")


class UnsupportedMediaType(LeaderboardError):
    """Content-Type is missing or is not JSON."""


class UnsupportedEncoding(LeaderboardError):
    """Content-Encoding says that the body is compressed, or encoded otherwise."""


class BodyTooSlow(LeaderboardError):
    """The time limit of the request was over before its body had arrived."""


class ClientGone(LeaderboardError):
    """The client closed the connection before it had sent the whole body."""


async def read_json(headers: RequestHeaders, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """Returns the body of a request that declares it as JSON. Does not parse it.

    Raises UnsupportedMediaType, UnsupportedEncoding, and what `read_body` raises. The body is read in any case: a
    response sent before the body has arrived would cost the client its connection.
    """
    body = await read_body(headers, receive, limit)
    if [header for header in headers if header[0] in _CONTENT_HEADERS] == _JSON:
        return body
    media_type = _header(headers, b"content-type").partition(";")[0].strip(" \t").lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"Content-Type is {media_type or 'missing'!r}, must be application/json")
    coding = _header(headers, b"content-encoding").strip(" \t").lower()
    if coding not in {"", "identity"}:
        raise UnsupportedEncoding(f"Content-Encoding is {coding!r}, must be identity or missing")
    return body


async def read_body(headers: RequestHeaders, receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """Returns the body, of `limit` bytes at most.

    Raises BodyTooLarge and ClientGone, and BodyTooSlow if it is cancelled.
    """
    length = dict(headers).get(b"content-length", b"").lstrip(b"0")
    if length.isdigit() and (len(length) > len(str(limit)) or int(length) > limit):
        raise BodyTooLarge(limit)
    body: bytes = b""
    while True:
        try:
            message = await receive()
        except asyncio.CancelledError:
            raise BodyTooSlow("the body did not arrive in time") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection")
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(limit)
        if not message.get("more_body", False):
            return body


def idempotency_key(headers: RequestHeaders) -> str | None:
    """Returns the header Idempotency-Key, None if it is missing. Raises InvalidParameter."""
    values = [value.decode("latin-1").strip() for name, value in headers if name == b"idempotency-key"]
    if not values:
        return None
    if len(values) > 1 or not _IDEMPOTENCY_KEY.fullmatch(values[0]):
        raise InvalidParameter("Idempotency-Key", ", ".join(values), "1 to 255 visible ASCII characters, once")
    return values[0]


def positive(name: str, text: str, maximum: int = INT32_MAX) -> int:
    """Returns the parameter `name` as an integer from 1 to `maximum`. Raises InvalidParameter."""
    if _POSITIVE.fullmatch(text) and (value := int(text)) <= maximum:
        return value
    raise InvalidParameter(name, text, f"an integer from 1 to {maximum}")


def user(name: str, text: str, encoded: bytes) -> UserRef:
    """Returns the parameter `name` as the number of a user, or as the external id after an `@`.

    `encoded` is what the text was decoded from. The server and `query_parameters` decode bytes that are not UTF-8
    as U+FFFD, and then several texts would be one external id. Raises InvalidParameter.
    """
    if _POSITIVE.fullmatch(text) and (value := int(text)) <= INT32_MAX:
        return value
    allowed = f"an integer from 1 to {INT32_MAX}, or @ and an external id"
    if text.startswith("@"):
        try:
            if "\ufffd" in text:
                unquote_to_bytes(encoded).decode()
            return check_external_id(text[1:])
        except UnicodeDecodeError:
            allowed = "UTF-8"
        except ValueError as error:
            raise InvalidParameter(name, text, f"@ and an external id; this one {error}") from None
    raise InvalidParameter(name, text, allowed)


def board_name(name: str, text: str) -> str:
    """Returns the parameter `name` as the name of a board. Raises InvalidParameter."""
    try:
        return check_board_name(text)
    except ValueError:
        raise InvalidParameter(name, text, BOARD_NAME) from None


def query_parameters(query_string: bytes, known: Collection[str]) -> dict[str, str]:
    """Returns the parameters of a query string by their names. Raises InvalidParameter."""
    values: dict[str, str] = {}
    for name, value in parse_qsl(query_string.decode("utf-8", "replace"), keep_blank_values=True):
        if name not in known:
            allowed = f"one of {', '.join(known)}" if known else "missing: this call takes none"
            raise InvalidParameter("a parameter", name, allowed)
        if name in values:
            raise InvalidParameter(name, value, "given once")
        values[name] = value
    return values


def _header(headers: RequestHeaders, name: bytes) -> str:
    # Repeated headers are joined, so that a duplicate is refused rather than one of them chosen.
    return b", ".join(value for each, value in headers if each == name).decode("latin-1")
