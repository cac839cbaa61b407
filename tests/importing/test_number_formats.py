"""Numbers as people write them: read exactly, and never in two ways."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.board_rules import BoardRules, unscale
from leaderboard.csv_scores import CsvScores
from leaderboard.number_formats import THOUSANDS, Exact, NumberFormat, NumberOptions

FORMATS = st.sampled_from(NumberOptions().possible())
MARKS = st.lists(st.sampled_from([*"0123456789,.' -e\u00a0"]), max_size=12).map("".join)
CELLS = MARKS | st.from_regex(r"-?[1-9][0-9]{0,2}([,.' ][0-9]{3}){0,3}([,.][0-9]{1,7})?", fullmatch=True)
BOARDS = st.integers(0, 6).map(lambda decimals: BoardRules(decimals=decimals))


def written(number: Decimal, numbers: NumberFormat) -> str:
    text = f"{number:,f}" if numbers.thousands else f"{number:f}"
    marks = {",": numbers.thousands, ".": numbers.decimal}
    return "".join(marks.get(character, character) for character in text)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(2**53), max_value=2**53), FORMATS)
def test_a_number_is_read_exactly_in_the_format_it_was_written_in(number: Decimal, numbers: NumberFormat) -> None:
    read = numbers.read(written(number, numbers))
    assert read is not None
    assert Decimal(read.digits).scaleb(read.exponent) == number == Decimal(str(read))


@given(CELLS, BOARDS)
def test_a_cell_is_a_score_only_if_no_option_would_make_it_another(cell: str, rules: BoardRules) -> None:
    """But for a point and three decimals on a board with as many: this service writes its scores so."""
    scores = CsvScores(rules)
    try:
        value = scores.parse(cell)
    except ValueError:
        return
    assert scores.format(value) == str(unscale(rules, value))
    others = {value_with(rules, cell, NumberOptions(each.decimal, each.thousands)) for each in all_formats()}
    own = rules.decimals >= 3 and re.fullmatch(r" *-?[1-9][0-9]{0,2}\.[0-9]{3} *", cell)
    assert others - {None} == {value} or own


@given(CELLS, BOARDS)
def test_the_options_of_an_error_read_the_cell_as_it_says(cell: str, rules: BoardRules) -> None:
    scores = CsvScores(rules)
    for reading in (scores.needs_option(cell) or "").split(" and "):
        number, _, arguments = reading.partition(" with ")
        words = arguments.split()
        said = dict(zip(words[::2], words[1::2], strict=True))
        options = NumberOptions(said.get("--decimal"), THOUSANDS.get(said.get("--thousands", "")))
        assert not number or CsvScores(rules, options).parse(cell) == scores.parse(number)


def value_with(rules: BoardRules, cell: str, options: NumberOptions) -> int | None:
    try:
        return CsvScores(rules, options).parse(cell)
    except ValueError:
        return None


def all_formats() -> list[NumberFormat]:
    return NumberOptions().possible()


@pytest.mark.parametrize(
    ("cell", "decimals", "needs"),
    [
        ("1,234", 0, "1234 with --thousands ,"),
        ("1,234", 2, "1234 with --thousands ,"),
        ("1,234", 3, "1.234 with --decimal , and 1234 with --thousands ,"),
        ("1.234", 0, "1234 with --thousands ."),
        ("1.000", 0, "1 with --decimal . and 1000 with --thousands ."),
        ("1.000", 2, "1 with --decimal . and 1000 with --thousands ."),
        ("-1,234.5", 1, "-1234.5 with --thousands ,"),
        ("1.234,5", 1, "1234.5 with --thousands ."),
        ("1.234,0", 0, "1234 with --thousands ."),
        ("12,5", 1, "12.5 with --decimal ,"),
        ("12,0", 0, "12 with --decimal ,"),
        ("1 234", 0, "1234 with --thousands space"),
        ("1\u202f234,5", 1, "1234.5 with --decimal , --thousands space"),
        ("1'234", 0, "1234 with --thousands apostrophe"),
        ("1,234,567", 0, "1234567 with --thousands ,"),
        ("1.234", 3, None),
        ("12.0", 0, None),
        ("1234.000", 0, None),
        ("0.000", 0, None),
        ("12,5", 0, None),
        ("1,23,456", 0, None),
        ("1e3", 0, None),
        ("9,007,199,254,740,992", 0, None),
        ("x", 0, None),
    ],
)
def test_an_error_names_the_options(cell: str, decimals: int, needs: str | None) -> None:
    assert CsvScores(BoardRules(decimals=decimals)).needs_option(cell) == needs


@pytest.mark.parametrize(
    ("decimal", "thousands", "cells"),
    [
        (None, ",", {"1,234": "1234.0", "1,234.5": "1234.5", "999": "999.0", "12,5": None, "1.234,5": None}),
        (None, ".", {"1.234": "1234.0", "1.234,5": "1234.5", "0,5": "0.5", "1.23": None, "12.5": None}),
        (",", None, {"1,5": "1.5", "1234,0": "1234.0", "1.5": None, "1,5e1": "15.0"}),
        (",", "space", {"1 234,5": "1234.5", "1\u00a0234": "1234.0", "1  234": None}),
        (".", "none", {"1.000": "1.0", "1,234": None, "1e3": "1000.0"}),
        (None, "apostrophe", {"1'234.5": "1234.5", "1\u2019234": "1234.0"}),
    ],
)
def test_what_the_options_read(decimal: str | None, thousands: str | None, cells: dict[str, str | None]) -> None:
    rules = BoardRules(decimals=1)
    options = NumberOptions(decimal, None if thousands is None else THOUSANDS[thousands])
    values = {cell: value_with(rules, cell, options) for cell in cells}
    assert {cell: None if value is None else str(unscale(rules, value)) for cell, value in values.items()} == cells


@given(st.integers(-(2**52) + 1, 2**52 - 1), st.integers(1, 6), FORMATS)
def test_a_rejected_score_is_written_in_the_format_of_the_file(
    value: int, decimals: int, numbers: NumberFormat
) -> None:
    scores = CsvScores(BoardRules(decimals=decimals), NumberOptions(numbers.decimal, numbers.thousands))
    assert scores.parse(scores.format(value)) == value


def test_equal_numbers_are_equal() -> None:
    assert {Exact.of("1200", -2), Exact.of("12", 0), Exact.of("0012", 0), Exact.of("120", -1)} == {Exact(12, 0)}
    assert {Exact.of("-0", 5), Exact.of("000", -3)} == {Exact(0, 0)}
    assert [str(Exact.of(*parts)) for parts in (("-5", -2), ("15", 2), ("1234", -2))] == ["-0.05", "1500", "12.34"]
    with pytest.raises(ValueError, match="the same mark"):
        NumberOptions(",", ",")
