"""The rules of a board: what clients may set, and how its scores become numbers that sort.

A *scaled score* is a score as a whole number of the board's smallest step: with two decimals, 1.10 is 110. A *sort
key* is a scaled score as a number of which more is better on every board. PostgreSQL stores sort keys.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, get_args

import msgspec

from leaderboard import rules
from leaderboard.errors import InvalidField
from leaderboard.model import INT32_MAX, SCORE_MAX
from leaderboard.schedules import Schedule

DEFAULT_BOARD = "default"
"""The name of the board that is the table `users`."""
MAX_DECIMALS = 6

Better = Literal["higher", "lower"]
Keeps = Literal["last", "best", "sum"]
Ties = Literal["id", "first"]
Ranks = Literal["unique", "shared"]
Number = int | Decimal
"""A number in JSON. Not a float, which is not exact."""

_MOST_WITH_DECIMALS: int = 2**52 - 1
"""The largest scaled score of a board with decimals.

A JSON reader that has only doubles, as JavaScript does, would read some larger ones as their neighbours.
"""
_TIE_BITS = 31
_MOST_TENTHS: int = 2**_TIE_BITS - 1
_MAX_UNKNOWN_FIELDS = 20
"""The error lists no more unknown fields than these, so that it is not much longer than the request."""
_MAX_SHOWN = 40
BOARD_NAME_PATTERN = "[a-z0-9][a-z0-9._-]{0,63}"
BOARD_NAME = "1 to 64 of a-z, 0-9, '-', '_' and '.', a letter or digit first"
_NAME = re.compile(BOARD_NAME_PATTERN)
_NAME_ALLOWED = "1 to 64 of a-z, 0-9, '-', '_' and '.' are allowed, a letter or digit first"
FIXED_WITH_ENTRIES = ("better", "ties", "decimals")
"""The rules that cannot change while there are entries, because their sort keys depend on them."""
_SPELLING = {"schedule": "season", "keep_seasons": "keepSeasons"}
# Raises instead of rounding. The precision is more than any score and any sum of two has.
_EXACT = Context(prec=40, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact, InvalidOperation])


class BoardRules(msgspec.Struct, frozen=True, kw_only=True, rename=_SPELLING):
    """The rules of one board. The defaults are the rules of the board `default`.

    `keeps` is "last" by default for that reason: the same calls do the same on a board without rules of its own.
    """

    better: Better = "higher"
    keeps: Keeps = "last"
    ties: Ties = "id"
    """Which of two users with the same score is first: the smaller id, or the one who reached it first."""
    ranks: Ranks = "unique"
    decimals: int = 0
    """How many decimals a score has, 0 to 6."""
    lowest: Number | None = None
    highest: Number | None = None
    """The lowest and highest score, as clients write them: not scaled, with at most `decimals` decimals."""
    schedule: Schedule | None = None
    """When seasons end. None: by hand only."""
    keep_seasons: int | None = None
    """How many ended seasons are kept, 1 or more. None: all."""
    title: str | None = None


def parse_rules(fields: Mapping[str, object]) -> BoardRules:
    """Return the rules that a parsed JSON object describes. Raises InvalidField with every wrong field.

    Numbers with a fraction or an exponent are Decimals (`parse_number`). null is the same as a missing field.
    """
    errors: dict[str, str] = {}
    unknown = [name for name in fields if name not in _PARSERS]
    for name in unknown[:_MAX_UNKNOWN_FIELDS]:
        errors[name] = f"unknown field; there are {', '.join(sorted(_PARSERS))}"
    found: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        value = fields.get(name)
        if value is not None:
            try:
                found[_ATTRIBUTES[name]] = parse(value)
            except ValueError as error:
                errors[name] = str(error)
    if errors.keys().isdisjoint({"decimals", "ties"}):
        _check_bounds(found, errors)
    if errors:
        raise InvalidField(errors)
    return BoardRules(**found)


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What SQL needs of the rules: the bits of a sort key that are the time, and the bounds of the rest."""

    tie_bits: int
    lowest: int
    highest: int


def key_rules(board: BoardRules) -> KeyRules:
    """Return what SQL needs of the rules."""
    low, high = _storable(board)
    bounds = [
        low if board.lowest is None else scale(board, board.lowest),
        high if board.highest is None else scale(board, board.highest),
    ]
    if board.better == "lower":
        bounds = [-bounds[1], -bounds[0]]
    return KeyRules(0 if board.ties == "id" else _TIE_BITS, *bounds)


def to_json(board: BoardRules) -> str:
    """Return the rules as JSON. `parse_stored` makes equal ones of it."""
    members = {
        name: value
        for name, attribute in _ATTRIBUTES.items()
        if (value := getattr(board, attribute)) is not None and name != "season"
    }
    if board.schedule is not None:
        members["season"] = board.schedule.to_json()
    return _encode(members).decode()


@lru_cache(maxsize=1024)
def parse_stored(text: str) -> BoardRules:
    """Return the rules that `to_json` wrote."""
    return parse_rules(json.loads(text, parse_float=parse_number))


_encode = msgspec.json.Encoder(decimal_format="number").encode


def check_board_name(name: str) -> str:
    """Return `name` if a board can have it. Raises ValueError."""
    if _NAME.fullmatch(name):
        return name
    if len(name) > 64:
        raise ValueError(f"is {len(name)} characters long; {_NAME_ALLOWED}")
    if not name:
        raise ValueError(f"is empty; {_NAME_ALLOWED}")
    if _NAME.fullmatch(name.lower()):
        raise ValueError(f"has capital letters; {_NAME_ALLOWED}")
    raise ValueError(f"is {name!a}; {_NAME_ALLOWED}")


def changes_refused(old: BoardRules, new: BoardRules, has_entries: bool) -> list[str]:
    """Return the fields of `new` that the board cannot take, because it has entries in any season.

    The sort keys of the entries depend on them. The other fields apply to what is written or read from then on:
    `keeps` to later scores, `lowest` and `highest` too, so that an older score may be outside.
    """
    return [name for name in FIXED_WITH_ENTRIES if has_entries and getattr(old, name) != getattr(new, name)]


def refused_on_default(board: BoardRules) -> list[str]:
    """Return the fields, as in JSON, that the board `default` cannot take.

    It takes a title. A field with the value that `default` has anyway is not refused, so that the answer of a GET
    can be put.
    """
    own = BoardRules()
    return [
        name
        for name, attribute in _ATTRIBUTES.items()
        if name != "title" and getattr(board, attribute) != getattr(own, attribute)
    ]


def sort_key(board: BoardRules, scaled_score: int, tenths: int = 0) -> int:
    """Return the sort key of a scaled score that `scale` returned. It is an int64, and more is better.

    `tenths` are the tenths of a second since the season began. They count where ties = "first", up to 2**31-1
    (6.8 years): an earlier score has the larger key.
    """
    value: int = scaled_score if board.better == "higher" else -scaled_score
    if board.ties == "id":
        return value
    return (value << _TIE_BITS) | (_MOST_TENTHS - min(max(tenths, 0), _MOST_TENTHS))


def score_of(board: BoardRules, key: int) -> int:
    """Return the scaled score of a sort key."""
    value: int = key if board.ties == "id" else key >> _TIE_BITS
    return value if board.better == "higher" else -value


def scale(board: BoardRules, number: Number) -> int:
    """Return a score, or an increment, as a scaled score, exactly.

    5.0 and 1e3 are the integers 5 and 1000. Raises ValueError if the number has more decimals than the board, or
    is outside of what the board can store. `lowest` and `highest` are not compared.
    """
    low, high = _storable(board)
    scaled = None
    if _is_small(number):
        try:
            fixed = _EXACT.quantize(Decimal(number), Decimal((0, (1,), -board.decimals)))
            scaled = int(fixed.scaleb(board.decimals, _EXACT))
        except Inexact:
            allowed = f"up to {board.decimals} decimals" if board.decimals else "whole numbers"
            raise ValueError(
                f"{_shown(number)} has too many decimals; {allowed} are allowed on this board"
            ) from None
        except InvalidOperation:
            pass  # It has more digits than `_EXACT`, which no board stores.
    if scaled is None or not low <= scaled <= high:
        bounds = f"numbers from {unscale(board, low)} to {unscale(board, high)} are allowed"
        raise ValueError(f"{_shown(number)} is out of range; {bounds}")
    return scaled


def unscale(board: BoardRules, scaled_score: int) -> Number:
    """Return the score that clients see: an int, or a Decimal with all decimals of the board.

    With two decimals, 110 is 1.10. msgspec writes a Decimal as a number with `decimal_format="number"`.
    """
    return Decimal(scaled_score).scaleb(-board.decimals, _EXACT) if board.decimals else scaled_score


def parse_number(text: str) -> Decimal:
    """Return a JSON number exactly: for `json.loads(…, parse_float=parse_number)`.

    A number with a larger exponent than a Decimal can have is infinite, which `scale` refuses.
    """
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def _is_small(number: Number) -> bool:
    """Return whether a number may be in range. Converting an int of thousands of digits takes long."""
    return number.is_finite() if isinstance(number, Decimal) else abs(number) <= SCORE_MAX


def _storable(board: BoardRules) -> tuple[int, int]:
    """Return the lowest and the highest scaled score that a sort key has room for and JSON keeps exactly."""
    if board.ties == "first":
        return -INT32_MAX - 1, INT32_MAX
    most = _MOST_WITH_DECIMALS if board.decimals else SCORE_MAX
    return -most, most


def _check_bounds(found: dict[str, Any], errors: dict[str, str]) -> None:
    """Check `lowest` and `highest` of `found`, and put what is wrong with them in `errors`."""
    board = BoardRules(ties=found.get("ties", "id"), decimals=found.get("decimals", 0))
    scaled: dict[str, int] = {}
    for name in ("lowest", "highest"):
        if name in found:
            try:
                scaled[name] = scale(board, found[name])
                found[name] = unscale(board, scaled[name])
            except ValueError as error:
                errors[name] = str(error)
    if len(scaled) == 2 and scaled["lowest"] > scaled["highest"]:
        errors["lowest"] = (
            f"{found['lowest']} is above highest, which is {found['highest']}; at most that is allowed"
        )


def _one_of(choices: object) -> Callable[[object], str]:
    allowed = get_args(choices)

    def parse(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise ValueError(f"must be one of {', '.join(allowed)}")

    return parse


def _whole(lowest: int, highest: int, allowed: str) -> Callable[[object], int]:
    def parse(value: object) -> int:
        try:
            whole = scale(BoardRules(), _number(value))
        except ValueError:
            whole = lowest - 1
        if not lowest <= whole <= highest:
            raise ValueError(f"must be an integer {allowed}")
        return whole

    return parse


def _number(value: object) -> Number:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return value
    raise ValueError("must be a number")


def _schedule(value: object) -> Schedule:
    if isinstance(value, Mapping):
        return Schedule.from_json(value)
    raise ValueError("must be an object with every or cron, and timezone")


def _title(value: object) -> str:
    if isinstance(value, str):
        return rules.clean_title(value)
    raise ValueError("must be a string")


def _shown(number: Number) -> str:
    # Python raises ValueError when it prints an int of thousands of digits.
    if isinstance(number, int) and abs(number) >= 10**_MAX_SHOWN:
        return "the number"
    text = str(number)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


_ATTRIBUTES = MappingProxyType({f.encode_name: f.name for f in msgspec.structs.fields(BoardRules)})
"""The attribute of each field, by the field's name in JSON."""
_PARSERS: Mapping[str, Callable[[object], object]] = MappingProxyType(
    {
        "better": _one_of(Better),
        "keeps": _one_of(Keeps),
        "ties": _one_of(Ties),
        "ranks": _one_of(Ranks),
        "decimals": _whole(0, MAX_DECIMALS, f"from 0 to {MAX_DECIMALS}"),
        "lowest": _number,
        "highest": _number,
        "season": _schedule,
        "keepSeasons": _whole(1, INT32_MAX, f"from 1 to {INT32_MAX}"),
        "title": _title,
    }
)
"""What checks each field, by its name in JSON."""
