"""Request bodies: the structs that describe them, and the functions that check them.

A body is checked field by field, so that the error names everything that is wrong with it.
"""

import contextlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from leaderboard import rules
from leaderboard.errors import InvalidField
from leaderboard.http.strict_json import json_type, parse_object
from leaderboard.model import ExternalId, Score

_MAX_UNKNOWN_FIELDS = 20
"""The error lists no more unknown fields than these, so that it is not much longer than the request."""


class Kind(Enum):
    """A type of JSON, with the types that the parser makes of it."""

    TEXT = (str,)
    INTEGER = (int,)
    NUMBER = (int, Decimal)
    BOOLEAN = (bool,)
    LIST = (list,)


Username = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"\S",
        examples=["ada"],
        description="unique, with USERNAMES=caseless whatever the case and width of letters; trimmed, in Unicode"
        " NFC; no control, invisible, bidi-override or unassigned characters",
    ),
]
ImageUrl = Annotated[
    str,
    Meta(
        max_length=2048,
        examples=["https://img.example.com/ada.png"],
        pattern="^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$",
        description="absolute `https` or `http` URL, without credentials; not loaded by the server",
    ),
]


ExternalIdText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=rules.MAX_EXTERNAL_ID,
        pattern=f"^{rules.EXTERNAL_ID_PATTERN}$",
        examples=["steam:76561198000000001"],
        description="the caller's own id for the user: unique, 1 to 128 bytes in UTF-8, no control characters",
    ),
]
NewUsername = Annotated[
    Username,
    Meta(description="with an external id that no user has: creates the user with this name and the score"),
]


class CreateUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /users`."""

    username: Username
    score: Score = 0
    imageUrl: ImageUrl | None = None  # noqa: N815
    externalId: ExternalIdText | UnsetType = UNSET  # noqa: N815


class PutUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /users/@{externalId}`. Without an image the user has none."""

    username: Username
    imageUrl: ImageUrl | None = None  # noqa: N815


class SetScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /users/{id}/score`."""

    score: Score
    username: NewUsername | UnsetType = UNSET


def create_user(body: bytes) -> tuple[str, int, str | None, ExternalId | None]:
    """Returns the name, score, image URL and external id of the user to create.

    Raises MalformedJson and InvalidField.
    """
    fields = Fields(parse_object(body), _CREATE_USER)
    name = fields.take("username", Kind.TEXT, rules.clean_username)
    score = fields.take("score", Kind.INTEGER, rules.check_score)
    url = fields.take("imageUrl", Kind.TEXT, rules.clean_image_url, nullable=True)
    external_id = fields.take("externalId", Kind.TEXT, rules.check_external_id)
    fields.check()
    return (
        name,
        0 if score is UNSET else score,
        None if url is UNSET else url,
        None if external_id is UNSET else external_id,
    )


def put_user(body: bytes) -> tuple[str, str | None]:
    """Returns the name and the image URL to set. Raises MalformedJson and InvalidField."""
    fields = Fields(parse_object(body), _PUT_USER)
    name = fields.take("username", Kind.TEXT, rules.clean_username)
    url = fields.take("imageUrl", Kind.TEXT, rules.clean_image_url, nullable=True)
    fields.check()
    return name, None if url is UNSET else url


def set_score(body: bytes) -> tuple[int, str | None]:
    """Returns the score to set, and the name of the user to create. Raises MalformedJson and InvalidField."""
    if body.count(b'"') == 2:
        # There is one key at most, so none is repeated: all that the faster parser would not notice.
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _decode_set_score(body).score, None
    fields = Fields(parse_object(body), _SET_SCORE)
    score: int = fields.take("score", Kind.INTEGER, rules.check_score)
    name = fields.take("username", Kind.TEXT, rules.clean_username)
    fields.check()
    return score, None if name is UNSET else name


class Fields:
    """The fields of a JSON object, taken one by one. Collects everything that is wrong with them."""

    def __init__(self, values: Mapping[str, Any], required: Mapping[str, bool]) -> None:
        """`required` maps the name of each known field to whether it must be given."""
        self._errors: dict[str, str] = {}
        self._required = required
        self._values = values
        unknown = [name for name in self._values if name not in required]
        for name in unknown[:_MAX_UNKNOWN_FIELDS]:
            self._errors[name] = f"unknown field; there are {', '.join(sorted(required))}"

    def take(self, name: str, kind: Kind, rule: Callable[[Any], Any], *, nullable: bool = False) -> Any:
        """Returns the field's value after `rule`; UNSET if it is wrong, or if it is optional and missing."""
        value = self._values.get(name, UNSET)
        if value is UNSET and self._required[name]:
            self._errors[name] = "is required"
        elif value is UNSET or (value is None and nullable):
            return value
        elif type(value) not in kind.value:
            expected = _KIND_NAMES[kind] + (" or null" if nullable else "")
            self._errors[name] = f"must be {expected}, not {json_type(value)}"
        else:
            try:
                return rule(value)
            except ValueError as error:
                self._errors[name] = str(error)
        return UNSET

    def has(self, name: str) -> bool:
        """Returns whether the field is given, right or wrong."""
        return name in self._values

    def refuse(self, name: str, error: str) -> None:
        """Adds what is wrong with a field."""
        self._errors[name] = error

    def errors(self) -> Mapping[str, str]:
        """Returns what was wrong so far, by the names of the fields."""
        return self._errors

    def check(self) -> None:
        """Raises InvalidField if anything was wrong."""
        if self._errors:
            raise InvalidField(self._errors)


def required_fields(struct: type[msgspec.Struct]) -> Mapping[str, bool]:
    """Returns the names of the fields of a body, and whether each must be given."""
    return MappingProxyType({field.name: field.required for field in msgspec.structs.fields(struct)})


_KIND_NAMES = MappingProxyType(
    {
        Kind.TEXT: "a string",
        Kind.INTEGER: "an integer",
        Kind.NUMBER: "a number",
        Kind.BOOLEAN: "true or false",
        Kind.LIST: "an array",
    }
)
_CREATE_USER, _SET_SCORE = required_fields(CreateUser), required_fields(SetScore)
_PUT_USER = required_fields(PutUser)
_decode_set_score = msgspec.json.Decoder(SetScore).decode
