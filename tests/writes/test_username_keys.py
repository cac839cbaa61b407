"""The keys by which usernames are compared with `caseless`: examples, and properties of all names."""
# ruff: noqa: RUF001 - the tests use letters that look like others

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leaderboard.rules import MAX_NAME, clean_username
from leaderboard.usernames import key_function, name_key, prefix_key

SPECIAL = " \u3000\xa0aZßSıIİǅΣσςéÉＢｂﾊﾞパℌﬁ①\u0345\u0301ﷺ👩\u200d❤\ufe0f葛\U000e0100クم\u0640"


@st.composite
def names(draw: st.DrawFn) -> str:
    text = draw(
        st.text(st.characters(codec="utf-8"), max_size=40) | st.text(st.sampled_from(SPECIAL), max_size=40)
    )
    try:
        return clean_username(text)
    except ValueError:
        assume(False)
        raise


@pytest.mark.parametrize(
    "group",
    [
        ["Bob", "bob", "BOB", "Ｂｏｂ", "ＢＯＢ", "𝐁𝐨𝐛"],
        ["Bob Smith", "bob smith", "Bob  Smith", "Bob\u3000Smith", "BOB\xa0SMITH"],
        ["Zoë", "ZOË", "zoe\u0308"],
        ["ΟΔΟΣ", "οδος", "οδοσ"],
        ["ﾊﾟｺ", "パコ"],
        ["❤", "❤\ufe0f", "❤\ufe0e"],
        ["葛城", "葛\U000e0100城"],
        ["ПРИВЕТ", "привет"],
        ["@Types/Node", "@types/node"],
    ],
    ids=lambda group: ascii(group[0]),
)
def test_names_that_are_one(group: list[str]) -> None:
    assert len({name_key(clean_username(name)) for name in group}) == 1


@pytest.mark.parametrize(
    ("name", "other"),
    [("Bob", "B0b"), ("Bob", "Вob"), ("Zoe", "Zoë"), ("bobsmith", "bob smith"), ("a", "a."), ("👩", "👩\u200d🚀")],
    ids=ascii,
)
def test_names_that_are_two(name: str, other: str) -> None:
    assert name_key(name) != name_key(other)


@given(names())
def test_a_key_is_its_own_key_and_fits_into_an_index(name: str) -> None:
    key = name_key(name)
    assert key
    assert name_key(key) == key
    assert len(key.encode()) < 2700


@given(names())
def test_case_and_width_make_no_difference(name: str) -> None:
    key = name_key(name)
    assert name_key(name.lower()) == key
    for other in (name.upper(), name.swapcase()):
        # Some letters have no capital of their own: ß becomes SS, which is another name.
        if other.lower() == name.lower():
            assert name_key(other) == key
    # ! to ~ have fullwidth forms.
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name)
    assert name_key(wide) == key
    assert name_key(unicodedata.normalize("NFD", name)) == key


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=MAX_NAME))
def test_the_short_way_for_ascii_is_the_long_one(text: str) -> None:
    # The first letter is not ASCII, and is its own key.
    assert name_key(f"é{text}") == f"é{name_key('e' + text)[1:]}"


@given(
    st.text(st.sampled_from("aZßΣςőŐЖжＢﬁ中葛😀1@ "), min_size=1, max_size=40).map(str.strip), st.integers(0, 40)
)
def test_a_prefix_finds_its_names(name: str, length: int) -> None:
    assert name_key(name).startswith(prefix_key(name[:length]))


def test_a_blank_at_the_end_of_a_prefix_counts() -> None:
    assert [prefix_key(prefix) for prefix in ("Px", "Px ", "PX\u3000", "", "Px A")] == [
        "px",
        "px ",
        "px ",
        "",
        "px a",
    ]


@given(names())
def test_exact_names_have_no_keys(name: str) -> None:
    assert key_function("exact")(name) is None
    assert key_function("caseless")(name) == name_key(name)
