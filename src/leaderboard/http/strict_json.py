"""A strict parser of JSON objects: no repeated keys, no NaN, no deep nesting, no rounded numbers.

It uses the standard library's parser, because that one alone shows a repeated key.
"""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from leaderboard.errors import InvalidField, LeaderboardError

_MAX_DEPTH = 64
_MAX_DIGITS = 30
_HUGE: int = 10**_MAX_DIGITS
"""Stands for any integer of more digits: converting them takes long, and no field allows such a value."""
_TINY = Decimal(1).scaleb(-_MAX_DIGITS)
"""Stands for any number that is nearer to 0 than Decimal can store."""
_BRACKETS = re.compile(r"[\[\]{}]")
# Possessive, and accepts a string that does not end: takes linear time for any text.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


class MalformedJson(LeaderboardError):
    """The body is not one JSON value in UTF-8."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Returns the members of a JSON object. Raises MalformedJson, and InvalidField if it is not an object."""
    try:
        text = body.decode("utf-8")
        if _depth(text) > _MAX_DEPTH:
            raise MalformedJson(f"the body is nested more than {_MAX_DEPTH} deep")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=lambda digits: int(digits) if len(digits) < _MAX_DIGITS else _HUGE,
            parse_float=_integer_or_decimal,
        )
    except UnicodeDecodeError as error:
        raise MalformedJson(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidField({"body": f"must be an object, not {json_type(value)}"})
    return value


def json_type(value: object) -> str:
    """Returns what a parsed value was in JSON, with its article."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case str():
            return "a string"
        case int():
            return "an integer"
        case Decimal():
            return "a number with a fraction"
        case list():
            return "an array"
        case _:
            return "an object"


def _depth(text: str) -> int:
    """Returns how deep arrays and objects are nested; exact only above `_MAX_DEPTH`."""
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
                raise MalformedJson(f"the key {name!r} is repeated")
            seen.add(name)
    return members


def _integer_or_decimal(number: str) -> int | Decimal:
    """Returns a number with a point or an exponent: an int if it is an integer, as in JSON Schema.

    It is exact. A Decimal keeps the exponent as it is written, so that a huge one takes neither time nor memory.
    """
    try:
        value = Decimal(number)
    except InvalidOperation:
        # The exponent has more digits than Decimal allows, which is more than any mantissa of a body can undo.
        mantissa, _, exponent = number.lower().partition("e")
        if not Decimal(mantissa):
            return 0
        return _TINY if exponent.startswith("-") else _HUGE
    if not value:
        return 0
    if value.adjusted() >= _MAX_DIGITS:
        return _HUGE
    return int(value) if value == value.to_integral_value() else value


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON")
