"""Cells that a spreadsheet would run are written as text, and are read back as they were."""
# ruff: noqa: RUF001 - fullwidth characters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.spreadsheet import neutral, original

CELLS = st.lists(st.sampled_from([*"=+-@'a5 \t\r\n", "＝", "\u00a0"])).map("".join) | st.text()


@given(CELLS)
def test_every_cell_is_read_as_it_was_written(cell: str) -> None:
    assert original(neutral(cell)) == cell


@given(CELLS)
def test_no_cell_begins_as_a_formula_does(cell: str) -> None:
    assert not neutral(cell).lstrip(" \u00a0").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))


@pytest.mark.parametrize(
    ("cell", "written"),
    {
        "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(1)": "'@SUM(1)", "\t=1": "'\t=1", "\rx": "'\rx",
        "＝1": "'＝1", " =1": "' =1", "'=1": "''=1", "''-": "'''-", "'tis": "'tis", "''": "''",
        "amy": "amy", "a=1": "a=1", "": "",
    }.items(),
)  # fmt: skip
def test_only_formulas_get_an_apostrophe(cell: str, written: str) -> None:
    assert neutral(cell) == written
    assert original(written) == cell
