"""The rules of a board: what is refused, exact numbers, and sort keys that sort as the board does."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leaderboard.board_rules import (
    MAX_DECIMALS,
    BoardRules,
    changes_refused,
    check_board_name,
    parse_number,
    parse_rules,
    refused_on_default,
    scale,
    score_of,
    sort_key,
    unscale,
)
from leaderboard.errors import InvalidField
from leaderboard.model import INT32_MAX
from leaderboard.schedules import Schedule

SAFE = 2**53 - 1
SAFE_WITH_DECIMALS = 2**52 - 1
INT32_MIN = -(2**31)
MOST_TENTHS = 2**31 - 1

boards = st.builds(
    BoardRules,
    better=st.sampled_from(["higher", "lower"]),
    ties=st.sampled_from(["id", "first"]),
    decimals=st.integers(0, MAX_DECIMALS),
)
any_tenths = st.sampled_from([-1, 0, 1, MOST_TENTHS, MOST_TENTHS + 1, 2**40]) | st.integers(0, MOST_TENTHS)


def ends(board: BoardRules) -> tuple[int, int]:
    """Returns the lowest and the highest scaled score of a board."""
    safe = SAFE_WITH_DECIMALS if board.decimals else SAFE
    return (INT32_MIN, INT32_MAX) if board.ties == "first" else (-safe, safe)


@st.composite
def boards_and_scores(draw: st.DrawFn, scores: int = 1) -> tuple[BoardRules, list[int]]:
    """Draws a board and scaled scores that it can store: its ends, neighbours of zero, and any."""
    board = draw(boards)
    low, high = ends(board)
    score = st.sampled_from([low, low + 1, -1, 0, 1, high - 1, high]) | st.integers(low, high)
    return board, draw(st.lists(score, min_size=scores, max_size=scores))


def errors_of(fields: Mapping[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidField) as error:
        parse_rules(fields)
    return error.value.errors


def from_json(text: str) -> Any:
    return json.loads(text, parse_float=parse_number)


# Rules


def test_a_board_without_rules_has_those_of_default() -> None:
    board = parse_rules({})
    assert (board.better, board.keeps, board.ties, board.ranks) == ("higher", "last", "id", "unique")
    assert board.decimals == 0
    assert (board.lowest, board.highest, board.schedule, board.keep_seasons, board.title) == (None,) * 5
    assert refused_on_default(board) == []


def test_all_fields_are_parsed() -> None:
    text = """{"better": "lower", "keeps": "best", "ties": "first", "ranks": "shared", "decimals": 2, "lowest": 0,
        "highest": 3599.99, "season": {"every": "week", "timezone": "Europe/Berlin"}, "keepSeasons": 1e1,
        "title": " Cafe\u0301 "}"""
    assert parse_rules(from_json(text)) == BoardRules(
        better="lower",
        keeps="best",
        ties="first",
        ranks="shared",
        decimals=2,
        lowest=0,
        highest=Decimal("3599.99"),
        schedule=Schedule(every="week", timezone="Europe/Berlin"),
        keep_seasons=10,
        title="Café",
    )


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("better", "keeps", "ties", "decimals", "lowest", "season", "keepSeasons", "title")),
        {"decimals": 0, "better": "higher"},
        {"decimals": Decimal("0.0")},
    ],
    ids=str,
)
def test_null_and_a_default_are_the_same_as_no_field(fields: Mapping[str, object]) -> None:
    assert parse_rules(fields) == BoardRules()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("better", "best", "higher, lower"),
        ("better", True, "higher, lower"),
        ("keeps", ["last"], "last, best, sum"),
        ("ties", "name", "id, first"),
        ("ranks", {}, "unique, shared"),
        ("decimals", 7, "from 0 to 6"),
        ("decimals", -1, "from 0 to 6"),
        ("decimals", True, "from 0 to 6"),
        ("decimals", "2", "from 0 to 6"),
        ("decimals", Decimal("1.5"), "from 0 to 6"),
        ("decimals", Decimal("1e999999999"), "from 0 to 6"),
        ("decimals", 10**5000, "from 0 to 6"),
        ("lowest", "1", "must be a number"),
        ("highest", False, "must be a number"),
        ("highest", 1.5, "must be a number"),
        ("lowest", Decimal("0.5"), "whole numbers"),
        ("lowest", -SAFE - 1, "from -9007199254740991 to 9007199254740991"),
        ("highest", SAFE + 1, "from -9007199254740991 to 9007199254740991"),
        ("season", "week", "an object"),
        ("season", {}, "needs every or cron"),
        ("season", {"every": "week", "day": "MON"}, "'day'"),
        ("keepSeasons", 0, "from 1"),
        ("keepSeasons", 2**31, "to 2147483647"),
        ("title", 5, "a string"),
        ("title", "  ", "1 to 200"),
        ("title", "a" * 201, "201 characters"),
        ("title", "a\nb", "U+000A"),
        ("scores", 1, "unknown field; there are better"),
        ("keep_seasons", 1, "unknown field"),
    ],
    ids=lambda value: ascii(value)[:40] if not isinstance(value, int) or value < 2**60 else "huge",
)
def test_a_wrong_field_is_named_with_what_is_allowed(field: str, value: object, reason: str) -> None:
    errors = errors_of({field: value})
    assert list(errors) == [field]
    assert reason in errors[field]


def test_every_wrong_field_is_named_at_once() -> None:
    wrong = {"better": 1, "keeps": "", "ties": None, "lowest": "x", "keepSeasons": 0, "title": "", "x": None}
    assert errors_of(wrong).keys() == wrong.keys() - {"ties"}


def test_the_error_is_not_much_longer_than_the_request() -> None:
    assert len(errors_of({f"field{n}": 1 for n in range(1000)})) == 20


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ('{"lowest": 2, "highest": 1}', ["lowest"]),
        ('{"decimals": 2, "lowest": 1.11, "highest": 1.1}', ["lowest"]),
        ('{"decimals": 2, "lowest": 1.105, "highest": 1e14}', ["lowest", "highest"]),
        ('{"ties": "first", "lowest": -2147483649, "highest": 2147483648}', ["lowest", "highest"]),
        ('{"ties": "first", "decimals": 6, "highest": 2147.483648}', ["highest"]),
        ('{"decimals": 6, "lowest": -4503599627.370496}', ["lowest"]),
    ],
)
def test_bounds_that_the_board_cannot_have_are_refused(fields: str, wrong: list[str]) -> None:
    assert list(errors_of(from_json(fields))) == wrong


@pytest.mark.parametrize(
    "fields",
    [
        '{"lowest": 1, "highest": 1.0}',
        '{"ties": "first", "lowest": -2147483648, "highest": 2147483647}',
        '{"ties": "first", "decimals": 6, "highest": 2147.483647}',
        '{"lowest": -9007199254740991, "highest": 9007199254740991}',
        '{"keepSeasons": 1}',
    ],
)
def test_bounds_at_the_ends_are_allowed(fields: str) -> None:
    parse_rules(from_json(fields))


@given(boards_and_scores(2))
def test_bounds_stay_what_the_client_wrote(drawn: tuple[BoardRules, list[int]]) -> None:
    board, scores = drawn
    low, high = (unscale(board, score) for score in sorted(scores))
    fields = {
        "better": board.better,
        "ties": board.ties,
        "decimals": board.decimals,
        "lowest": low,
        "highest": high,
    }
    parsed = parse_rules(fields)
    assert (parsed.lowest, parsed.highest) == (low, high)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"better": "lower"}, ["better"]),
        ({"ties": "first", "decimals": 1}, ["ties", "decimals"]),
        ({"keeps": "sum", "ranks": "shared", "lowest": 1, "highest": 9, "title": "x", "keep_seasons": 1}, []),
        ({"schedule": Schedule(every="day")}, []),
    ],
    ids=str,
)
def test_what_the_entries_depend_on_is_fixed_with_the_first_entry(
    change: dict[str, Any], refused: list[str]
) -> None:
    old = BoardRules()
    new = msgspec.structs.replace(old, **change)
    assert changes_refused(old, new, has_entries=True) == refused
    assert changes_refused(new, old, has_entries=True) == refused
    assert changes_refused(old, new, has_entries=False) == []


def test_default_takes_only_a_title() -> None:
    allowed = {"title": "All time"}
    refused = {
        "better": "lower",
        "keeps": "best",
        "ties": "first",
        "ranks": "shared",
        "decimals": 1,
        "lowest": 0,
        "highest": 10,
        "season": {"every": "day"},
        "keepSeasons": 3,
    }
    assert refused_on_default(parse_rules(allowed)) == []
    assert refused_on_default(parse_rules(allowed | refused)) == list(refused)
    for field, value in refused.items():
        assert refused_on_default(parse_rules({field: value})) == [field]


# Names


@pytest.mark.parametrize("name", ["default", "a", "0", "weekly-2", "a.b_c", "a" * 64])
def test_a_valid_name_is_accepted(name: str) -> None:
    assert check_board_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("a" * 65, "65 characters"),
        ("Weekly", "capital letters"),
        ("-a", "first"),
        (".", "first"),
        ("..", "first"),
        ("_a", "first"),
        ("a b", "allowed"),
        ("a\n", "allowed"),
        ("a/b", "allowed"),
        ("ä", "allowed"),
        ("٣", "allowed"),
    ],
)
def test_an_invalid_name_is_refused_with_a_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 of a-z") as error:
        check_board_name(name)
    assert reason in str(error.value)
    assert str(error.value).isascii()


# Numbers


@pytest.mark.parametrize(
    ("decimals", "text", "scaled"),
    [
        (2, "1.10", 110),
        (2, "-0.05", -5),
        (2, "7", 700),
        (2, "1.100000", 110),
        (2, "1." + "0" * 5000, 100),
        (0, "5.0", 5),
        (0, "1e3", 1000),
        (0, "1.5e1", 15),
        (0, "-0.0", 0),
        (0, "0e999999999", 0),
        (0, "9007199254740991", SAFE),
        (0, "-9007199254740991.0", -SAFE),
        (2, "45035996273704.95", SAFE_WITH_DECIMALS),
        (6, "-4503599627.370495", -SAFE_WITH_DECIMALS),
        (6, "1e-6", 1),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_number_is_scaled_exactly(decimals: int, text: str, scaled: int) -> None:
    result = scale(BoardRules(decimals=decimals), from_json(text))
    assert result == scaled
    assert type(result) is int


@pytest.mark.parametrize(
    ("decimals", "text", "reason"),
    [
        (2, "1.105", "1.105 has too many decimals; up to 2 decimals are allowed"),
        (2, "1.10" + "0" * 5000 + "1", "too many decimals"),
        (0, "5.5", "whole numbers are allowed"),
        (6, "1e-7", "up to 6 decimals"),
        (0, "1e-999999999", "whole numbers"),
        (0, "1e-9999999999999999999999", "out of range"),
        (0, "9007199254740992", "from -9007199254740991 to 9007199254740991"),
        (2, "45035996273704.96", "from -45035996273704.95 to 45035996273704.95"),
        (0, "1e999999999", "out of range"),
        (0, "-1e9999999999999999999999", "out of range"),
        (0, "9" * 4000, "out of range"),
        (0, "NaN", "out of range"),
        (0, "Infinity", "out of range"),
        (6, "-Infinity", "out of range"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_number_that_the_board_cannot_store_is_refused(decimals: int, text: str, reason: str) -> None:
    whole = text.isdigit()
    with pytest.raises(ValueError, match="allowed") as error:
        scale(BoardRules(decimals=decimals), int(text) if whole else parse_number(text))
    assert reason in str(error.value)
    assert len(str(error.value)) < 200


def test_huge_integers_and_signalling_nans_are_refused() -> None:
    for number in (10**100_000, -(10**100_000), Decimal("sNaN"), Decimal("NaN")):
        with pytest.raises(ValueError, match="out of range"):
            scale(BoardRules(), number)


def test_a_first_tie_leaves_room_for_32_bits() -> None:
    board = BoardRules(ties="first", decimals=1)
    assert scale(board, Decimal("214748364.7")) == INT32_MAX
    assert scale(board, Decimal("-214748364.8")) == INT32_MIN
    for number in (Decimal("214748364.8"), Decimal("-214748364.9")):
        with pytest.raises(ValueError, match=r"from -214748364\.8 to 214748364\.7"):
            scale(board, number)


numbers = st.decimals(allow_nan=False, allow_infinity=False) | st.integers().map(Decimal)


@given(
    boards,
    numbers | st.builds(lambda n, e: Decimal(n).scaleb(-e), st.integers(-(10**17), 10**17), st.integers(0, 8)),
)
def test_scaling_agrees_with_fractions(board: BoardRules, number: Decimal) -> None:
    assume(abs(number.adjusted()) < 1000)
    exact = Fraction(number) * 10**board.decimals
    low, high = ends(board)
    if exact.denominator == 1 and low <= exact <= high:
        assert scale(board, number) == exact
    else:
        with pytest.raises(ValueError, match="allowed"):
            scale(board, number)


@given(boards_and_scores())
def test_a_score_goes_through_json_unchanged(drawn: tuple[BoardRules, list[int]]) -> None:
    board, (score,) = drawn
    number = unscale(board, score)
    assert isinstance(number, int if board.decimals == 0 else Decimal)
    text = msgspec.json.Encoder(decimal_format="number").encode(number).decode()
    assert "e" not in text.lower()
    assert len(text.partition(".")[2]) == board.decimals
    assert scale(board, number) == scale(board, from_json(text)) == score
    # Also by a reader that has only doubles.
    assert scale(board, Decimal(f"{float(text):.{board.decimals}f}")) == score


# Sort keys


def test_the_extreme_sort_keys() -> None:
    first, lower = BoardRules(ties="first"), BoardRules(better="lower")
    assert sort_key(first, 1) == (1 << 31) + MOST_TENTHS
    assert sort_key(first, 1, MOST_TENTHS) == sort_key(first, 1, MOST_TENTHS + 1) == 1 << 31
    assert sort_key(first, 1, -5) == sort_key(first, 1, 0)
    assert sort_key(lower, SAFE) == -SAFE
    assert sort_key(BoardRules(better="lower", ties="first"), INT32_MIN, 0) == (2**31 << 31) + MOST_TENTHS


@given(boards_and_scores(), any_tenths)
def test_a_sort_key_is_an_int64_and_contains_its_score(drawn: tuple[BoardRules, list[int]], tenths: int) -> None:
    board, (score,) = drawn
    key = sort_key(board, score, tenths)
    assert -(2**63) < key < 2**63
    assert score_of(board, key) == score


def place(board: BoardRules) -> Callable[[tuple[int, int]], tuple[int, int]]:
    """Returns what sorts scores and tenths as the board does, the best first."""

    def key(entry: tuple[int, int]) -> tuple[int, int]:
        score, tenths = entry
        worse = -score if board.better == "higher" else score
        return worse, min(max(tenths, 0), MOST_TENTHS) if board.ties == "first" else 0

    return key


@given(boards_and_scores(2), any_tenths, any_tenths, st.booleans())
def test_sort_keys_are_in_the_order_of_the_board(
    drawn: tuple[BoardRules, list[int]], tenths: int, other_tenths: int, tie: bool
) -> None:
    board, (score, other) = drawn
    entry, other_entry = (score, tenths), (score if tie else other, other_tenths)
    rank = place(board)
    assert (sort_key(board, *entry) > sort_key(board, *other_entry)) == (rank(entry) < rank(other_entry))
    assert (sort_key(board, *entry) == sort_key(board, *other_entry)) == (rank(entry) == rank(other_entry))
