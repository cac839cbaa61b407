"""Request bodies of the calls about boards, seasons and entries, and of changes to a user."""

import contextlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from leaderboard import rules
from leaderboard.board_rules import MAX_DECIMALS, Better, BoardRules, Keeps, Number, Ranks, Ties, parse_rules
from leaderboard.errors import InvalidField
from leaderboard.http.bodies import (
    ExternalIdText,
    Fields,
    ImageUrl,
    Kind,
    NewUsername,
    Username,
    required_fields,
)
from leaderboard.http.strict_json import json_type, parse_object
from leaderboard.model import INT32_MAX, UserId, UserRef
from leaderboard.schedules import Every

MAX_ITEMS = 1000
"""Most scores of one request."""
MAX_ITEMS_BYTES = 384 * 1024
"""Most bytes of a body with many scores.

A score takes 60 bytes at most, without blanks. With an external id and a name in ASCII it takes 360.
"""

_MAX_ERRORS = 20
"""The error lists about as many faults of items, so that it is not much longer than the request."""

NewNumber = Annotated[float, Meta(description="exact; no more decimals than the board has")]
SeasonNumber = Annotated[int, Meta(ge=1, le=INT32_MAX)]


class Change(NamedTuple):
    """A score to set, or a number to add to one; `user_name` is for a user who does not exist yet."""

    number: Number
    adds: bool
    user_name: str | None


class ChangeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A score to set or an increment to add: exactly one of the two."""

    score: NewNumber | UnsetType = UNSET
    increment: NewNumber | UnsetType = UNSET
    username: NewUsername | UnsetType = UNSET


class _ChangeByWhole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As ChangeEntry, with a whole number."""

    score: int | UnsetType = UNSET
    increment: int | UnsetType = UNSET


class ChangeOneOfMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user with a score to set or an increment to add: exactly one of the two, and one of the two ids."""

    userId: UserId | UnsetType = UNSET  # noqa: N815
    externalId: ExternalIdText | UnsetType = UNSET  # noqa: N815
    score: NewNumber | UnsetType = UNSET
    increment: NewNumber | UnsetType = UNSET
    username: NewUsername | UnsetType = UNSET


class ChangeEntries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /boards/{board}/scores`. Each user may be there once."""

    scores: Annotated[list[ChangeOneOfMany], Meta(min_length=1, max_length=MAX_ITEMS)]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the seasons of a board end: `every` or `cron`, in a time zone of the IANA database."""

    every: Every | None = None
    cron: Annotated[str, Meta(max_length=200, examples=["0 4 * * MON"])] | None = None
    timezone: Annotated[str, Meta(examples=["Europe/Berlin"])] | None = None


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /boards/{board}`. What is missing or null gets its default."""

    better: Better | None = None
    keeps: Keeps | None = None
    ties: Ties | None = None
    ranks: Ranks | None = None
    decimals: Annotated[int, Meta(ge=0, le=MAX_DECIMALS)] | None = None
    lowest: NewNumber | None = None
    highest: NewNumber | None = None
    season: Schedule | None = None
    keepSeasons: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None  # noqa: N815
    title: Annotated[str, Meta(min_length=1, max_length=rules.MAX_TITLE, pattern=r"\S")] | None = None


class EndSeason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /boards/{board}/seasons`: the number of the season to end."""

    season: SeasonNumber


class UpdateUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /users/{id}`. What is missing stays as it is."""

    username: Username | UnsetType = UNSET
    imageUrl: ImageUrl | UnsetType | None = UNSET  # noqa: N815
    hidden: bool | UnsetType = UNSET
    externalId: ExternalIdText | UnsetType = UNSET  # noqa: N815


def _one_of(*names: str) -> Mapping[str, Any]:
    return {"oneOf": [{"required": [name]} for name in names]}


GIVEN_MEMBERS: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {
        ChangeEntry: _one_of("score", "increment"),
        ChangeOneOfMany: {
            "allOf": [_one_of("score", "increment"), _one_of("userId", "externalId")],
            "dependentRequired": {"username": ["externalId"]},
        },
        UpdateUser: {"minProperties": 1},
    }
)
"""Which members a body must have, in JSON Schema: a struct cannot say that one of two must be given."""


def change(body: bytes) -> Change:
    """Returns what is to be done to an entry. Raises MalformedJson and InvalidField."""
    if _WITHOUT_EXPONENT.fullmatch(body):
        # As in `bodies.set_score`. The faster parser is exact only for numbers without an exponent.
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            whole = _decode_whole(body)
            if whole.score is not UNSET:
                return Change(whole.score, adds=False, user_name=None)
            if whole.increment is not UNSET:
                return Change(whole.increment, adds=True, user_name=None)
    fields = Fields(parse_object(body), _CHANGE_ENTRY)
    found = _change(fields)
    fields.check()
    return found


def changes(body: bytes) -> Mapping[UserRef, Change]:
    """Returns what is to be done to many entries, by user and in order.

    Raises MalformedJson, and InvalidField if an item is not of the documented form or a user is there twice.
    """
    fields = Fields(parse_object(body), _CHANGE_ENTRIES)
    items = fields.take("scores", Kind.LIST, _check_count)
    fields.check()
    errors: dict[str, str] = {}
    first: dict[UserRef, int] = {}
    found: dict[UserRef, Change] = {}
    for at, item in enumerate(items):
        if len(errors) >= _MAX_ERRORS:
            break
        name = f"scores[{at}]"
        if not isinstance(item, dict):
            errors[name] = f"must be an object, not {json_type(item)}"
            continue
        member = Fields(item, _CHANGE_ONE)
        id_field, user = _user(member)
        changed = _change(member)
        if id_field == "userId" and member.has("username"):
            member.refuse("username", "is only for an externalId, whose user is created if it is unknown")
        if user in first:
            member.refuse(id_field, f"is {user!r} as in scores[{first[user]}]; each user may be there once")
        errors |= {f"{name}.{field}": error for field, error in member.errors().items()}
        if user is not UNSET:
            first.setdefault(user, at)
            found[user] = changed
    if errors:
        raise InvalidField(errors)
    return found


def board_rules(body: bytes) -> BoardRules:
    """Returns the rules of a board. Raises MalformedJson and InvalidField."""
    return parse_rules(parse_object(body))


def end_season(body: bytes) -> int:
    """Returns the number of the season to end. Raises MalformedJson and InvalidField."""
    fields = Fields(parse_object(body), _END_SEASON)
    number: int = fields.take("season", Kind.INTEGER, _check_int32)
    fields.check()
    return number


def update_user(body: bytes) -> Mapping[str, Any]:
    """Returns the arguments of `UserService.update`. Raises MalformedJson and InvalidField."""
    values = parse_object(body)
    fields = Fields(values, _UPDATE_USER)
    if not values:
        fields.refuse("body", f"is empty; give one of {', '.join(_UPDATE_USER)}")
    name = fields.take("username", Kind.TEXT, rules.clean_username)
    url = fields.take("imageUrl", Kind.TEXT, rules.clean_image_url, nullable=True)
    hidden = fields.take("hidden", Kind.BOOLEAN, bool)
    external_id = fields.take("externalId", Kind.TEXT, rules.check_external_id)
    fields.check()
    return {
        "user_name": None if name is UNSET else name,
        "image_url": url,
        "hidden": None if hidden is UNSET else hidden,
        "external_id": None if external_id is UNSET else external_id,
    }


def _user(fields: Fields) -> tuple[str, Any]:
    """Takes `userId` or `externalId`; returns which, and its value. Of both or none, it notes the fault."""
    user_id = fields.take("userId", Kind.INTEGER, _check_int32)
    external_id = fields.take("externalId", Kind.TEXT, rules.check_external_id)
    if not fields.has("externalId"):
        if not fields.has("userId"):
            fields.refuse("userId", "is required, or externalId instead")
        return "userId", user_id
    if fields.has("userId"):
        fields.refuse("externalId", "is given with userId; exactly one of the two is allowed")
    return "externalId", external_id


def _change(fields: Fields) -> Change:
    """Takes `score` or `increment`, and `username`. Of both or none of the first two, it notes the fault."""
    score = fields.take("score", Kind.NUMBER, _as_it_is)
    increment = fields.take("increment", Kind.NUMBER, _as_it_is)
    if fields.has("score") and fields.has("increment"):
        fields.refuse("increment", "is given with score; exactly one of the two is allowed")
    elif not fields.has("score") and not fields.has("increment"):
        fields.refuse("score", "is required, or increment instead")
    name = fields.take("username", Kind.TEXT, rules.clean_username)
    user_name = None if name is UNSET else name
    if fields.has("increment"):
        return Change(increment, adds=True, user_name=user_name)
    return Change(score, adds=False, user_name=user_name)


def _as_it_is(number: Number) -> Number:
    """The board's rules check the number."""
    return number


def _check_count(items: list[object]) -> list[object]:
    if not 1 <= len(items) <= MAX_ITEMS:
        raise ValueError(f"has {len(items)} items; 1 to {MAX_ITEMS} are allowed")
    return items


def _check_int32(value: int) -> int:
    if not 1 <= value <= INT32_MAX:
        raise ValueError(f"is out of range; integers from 1 to {INT32_MAX} are allowed")
    return value


_WITHOUT_EXPONENT = re.compile(rb'[^"]*"[^"]*"[^".eE]*')
_decode_whole = msgspec.json.Decoder(_ChangeByWhole).decode
_CHANGE_ENTRY, _CHANGE_ONE = required_fields(ChangeEntry), required_fields(ChangeOneOfMany)
_CHANGE_ENTRIES, _END_SEASON = required_fields(ChangeEntries), required_fields(EndSeason)
_UPDATE_USER = required_fields(UpdateUser)
