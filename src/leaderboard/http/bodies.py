"""Request bodies: the structs that describe them, and the functions that check them.

A body is checked field by field, so that the error names everything that is wrong with it.
"""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta

from leaderboard import rules
from leaderboard.errors import InvalidField
from leaderboard.http.strict_json import json_type, parse_object
from leaderboard.model import Score

_MAX_UNKNOWN_FIELDS = 20
"""The error lists no more unknown fields than these, so that it is not much longer than the request."""


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


def create_user(body: bytes) -> tuple[str, int, str | None]:
    """Returns the name, score and image URL of the user to create. Raises MalformedJson and InvalidField."""
    fields = _Fields(body, _CREATE_USER)
    name = fields.take("username", str, rules.clean_username)
    score = fields.take("score", int, rules.check_score)
    url = fields.take("imageUrl", str, rules.clean_image_url, nullable=True)
    fields.check()
    return name, 0 if score is UNSET else score, None if url is UNSET else url


def set_score(body: bytes) -> int:
    """Returns the score to set. Raises MalformedJson and InvalidField."""
    if body.count(b'"') == 2:
        # There is one key at most, so none is repeated: all that the faster parser would not notice.
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _decode_set_score(body).score
    fields = _Fields(body, _SET_SCORE)
    score: int = fields.take("score", int, rules.check_score)
    fields.check()
    return score


class _Fields:
    """The fields of a JSON object, taken one by one. Collects everything that is wrong with them."""

    def __init__(self, body: bytes, required: Mapping[str, bool]) -> None:
        """`required` maps the name of each known field to whether it must be given."""
        self._errors: dict[str, str] = {}
        self._required = required
        self._values = parse_object(body)
        unknown = [name for name in self._values if name not in required]
        for name in unknown[:_MAX_UNKNOWN_FIELDS]:
            self._errors[name] = f"unknown field; there are {', '.join(sorted(required))}"

    def take(self, name: str, kind: type, rule: Callable[[Any], Any], *, nullable: bool = False) -> Any:
        """Returns the field's value after `rule`; UNSET if it is wrong, or if it is optional and missing."""
        value = self._values.get(name, UNSET)
        if value is UNSET and self._required[name]:
            self._errors[name] = "is required"
        elif value is UNSET or (value is None and nullable):
            return value
        elif type(value) is not kind:
            expected = _TYPE_NAMES[kind] + (" or null" if nullable else "")
            self._errors[name] = f"must be {expected}, not {json_type(value)}"
        else:
            try:
                return rule(value)
            except ValueError as error:
                self._errors[name] = str(error)
        return UNSET

    def check(self) -> None:
        """Raises InvalidField if anything was wrong."""
        if self._errors:
            raise InvalidField(self._errors)


def _required(struct: type[msgspec.Struct]) -> Mapping[str, bool]:
    return MappingProxyType({field.name: field.required for field in msgspec.structs.fields(struct)})


_TYPE_NAMES = MappingProxyType({str: "a string", int: "an integer"})
_CREATE_USER, _SET_SCORE = _required(CreateUser), _required(SetScore)
_decode_set_score = msgspec.json.Decoder(SetScore).decode
