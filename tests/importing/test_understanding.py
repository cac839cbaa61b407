"""What a file is taken for, from its beginning alone."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.importing import ColumnOptions, Options, UnusableFile, understand
from leaderboard.importing.columns import NAMES
from leaderboard.importing.understanding import SEPARATORS

SPELLINGS = st.sampled_from(
    [str.upper, str.title, str.lower, "  {} ".format, lambda name: name.replace("e", "e_")]
)
OTHERS = st.text(st.sampled_from([*SEPARATORS, *'"xyz \n']), max_size=5).map("other {}".format)


def written(header: list[str], separator: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator="\n").writerow(header)
    return text.getvalue()


@given(st.data())
def test_separator_and_columns_are_found_in_any_order_beside_any_others(data: st.DataObject) -> None:
    separator = data.draw(st.sampled_from(list(SEPARATORS)))
    images = data.draw(st.booleans())
    wanted = {
        column: data.draw(SPELLINGS)(data.draw(st.sampled_from(names)))
        for column, names in NAMES.items()
        if images or column != "imageUrl"
    }
    header = data.draw(st.permutations([*wanted.values(), *data.draw(st.lists(OTHERS, max_size=3))]))
    found = understand(written(header, separator) + "more\n", "csv", Options())
    assert found.separator == separator
    assert found.columns.named() == {column: name.strip() for column, name in wanted.items()}
    assert len(found.columns.ignored()) == len(header) - len(wanted)


@given(st.text(), st.sampled_from(["csv", "jsonl"]))
def test_any_text_is_understood_or_refused(text: str, file_format: str) -> None:
    try:
        understood = understand(text, "csv" if file_format == "csv" else "jsonl", Options())
    except UnusableFile:
        return
    assert understood.describe("UTF-8", "1234")


@given(st.lists(st.sampled_from(["a", "b, c", 'd"', "e=f", " g"]), min_size=4, max_size=4, unique=True))
def test_columns_can_be_named(header: list[str]) -> None:
    names = dict(zip(NAMES, header, strict=True))
    options = Options(
        columns=ColumnOptions.parse(written([f"{column}={name}" for column, name in names.items()], ",").strip())
    )
    found = understand(written(header, ","), "csv", options).columns
    assert (found.username_at, found.score_at, found.image_at, found.id_at) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("header", "columns", "error"),
    [
        ("a,b", "username=a,score=c", "no column has the name 'c', which --columns gives for score"),
        ("a,b", "username=a,score=a", "--columns gives one column twice: a, a"),
        (
            "a,a,score",
            "username=a",
            "2 columns may be username, and some have the same name: 'a', 'a'; rename one",
        ),
        (
            "name,user,value",
            "score=value",
            "'name', 'user' may all be username: choose one, as in --columns username=name",
        ),
        ("name,score", "score=name", "--columns gives one column twice: name"),
    ],
)
def test_a_column_that_is_not_clear_is_refused(header: str, columns: str, error: str) -> None:
    with pytest.raises(UnusableFile) as raised:
        understand(f"{header}\n", "csv", Options(columns=ColumnOptions.parse(columns)))
    assert str(raised.value).removeprefix("line 1: ").startswith(error)


def test_an_exact_name_is_preferred_to_another_spelling() -> None:
    options = Options(columns=ColumnOptions.parse("username=name,score=points,imageUrl="))
    found = understand("Name,name,points,image\n", "csv", options).columns
    assert (found.username_at, found.score_at, found.image_at) == (1, 2, None)


def test_a_separator_can_be_said() -> None:
    assert understand("name^score\n", "csv", Options(separator="^")).separator == "^"
    assert understand("name,score,a;user;points\n", "csv", Options(separator=";")).columns.named() == {
        "username": "user", "score": "points"
    }  # fmt: skip
    assert understand("sep=;\nname;score\n", "csv", Options()).before == 1
