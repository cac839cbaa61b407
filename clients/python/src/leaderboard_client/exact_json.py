"""JSON with exact numbers: a number with a fraction or an exponent is a Decimal, in both directions."""

import json
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any


def encode(value: object) -> bytes:
    """Returns `value` as JSON in UTF-8.

    Raises ValueError for numbers that JSON does not have, such as NaN, and TypeError for values of other types.
    """
    return _text(value).encode()


def decode(content: bytes) -> Any:
    """Returns what JSON in UTF-8 says. Raises ValueError."""
    try:
        return json.loads(content, parse_float=Decimal, parse_constant=_refuse)
    except (InvalidOperation, RecursionError) as error:
        raise ValueError(f"the JSON cannot be read: {type(error).__name__}") from None


def _text(value: object) -> str:
    match value:
        case Decimal() | float():
            if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
                raise ValueError(f"{value} is no number in JSON")
            # The shortest digits that are this float, so 0.1 is sent as 0.1.
            return str(value)
        case Mapping():
            return "{" + ",".join(f"{json.dumps(name)}:{_text(each)}" for name, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_text, value)) + "]"
        case str() | int() | None:
            return json.dumps(value)
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")
