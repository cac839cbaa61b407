"""Parses a line of JSON Lines. Numbers stay as they are written, so that none is rounded."""

import json
from typing import Any, NoReturn


class JsonNumber(str):
    """A number as it is written in JSON."""

    __slots__ = ()


def parse_object(line: str) -> dict[str, Any]:
    """Return the members of a JSON object; its numbers are JsonNumber. Raises ValueError."""
    try:
        value = _DECODER.decode(line.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if isinstance(value, dict):
        return value
    raise ValueError("it is not an object")


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("it has a key twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=JsonNumber, parse_float=JsonNumber, parse_constant=_refuse
)
