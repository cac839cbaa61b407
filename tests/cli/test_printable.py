"""Text from outside is printed on one line and without control characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.printable import printable, printable_lines, shortened

any_text = st.text(st.characters(exclude_categories=()))
"""With control characters and lone surrogates too."""


@pytest.mark.parametrize(
    "text", ["", "ada", "Ada Lovelace", "éric 日本 😀", "back\\slash", "https://example.com/?a=b&c"]
)
def test_printable_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    {
        "a\nb\r\tc": r"a\nb\r\tc",
        "\x1b[2J\0\x7f": r"\x1b[2J\x00\x7f",
        "\x85\x9b31m": r"\x85\x9b31m",
        "\u2028\u2029": r"\u2028\u2029",
        "\u202e\u202a\u2066\u2069\u200f": r"\u202e\u202a\u2066\u2069\u200f",
        "\udcff\ud800": r"\udcff\ud800",
        "a\u200bb\ufeff\u00a0": r"a\u200bb\ufeff\xa0",
        "\U000e0001": r"\U000e0001",
    }.items(),
)
def test_other_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(any_text)
def test_any_text_becomes_printable(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


@given(any_text)
def test_each_line_of_several_is_marked(text: str) -> None:
    lines = printable_lines(text).split("\n")
    assert len(lines) == text.count("\n") + 1
    assert all(line.isprintable() and line.startswith("  | ") for line in lines)


@given(any_text, st.integers(3, 50))
def test_a_text_is_shortened_in_its_middle(text: str, most: int) -> None:
    short = shortened(text, most)
    if len(text) <= most:
        assert short == text
    else:
        assert short.startswith(text[: most // 3])
        assert short.endswith(text[-(most // 2) :])
        assert str(len(text) - most) in short
        assert len(short) < most + 50
