"""The rules for usernames, scores and image URLs: examples, and properties of all texts."""
# ruff: noqa: RUF001 - the tests use letters that look like others

import time
import unicodedata
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.model import SCORE_MAX, SCORE_MIN
from leaderboard.rules import MAX_NAME, MAX_URL, check_score, clean_image_url, clean_username

ANY_TEXT = st.text(st.characters(codec=None), max_size=300)
# The characters that the rules name. Random text rarely has them.
NASTY = (
    " \t\n\0\x1c\x85\xa0\u2028aZ0é\u0301\u0323ſ\u1100\u1161\u11a8\u200b\u200d\u200e\u202e\u2069\ufe0f"
    "\ufeff\ufffe\ud800\udc80\ue000\u3164\u2800👩\U0001f1e6\U000e0067\U0010ffff"
)
NASTY_TEXT = st.text(st.sampled_from(NASTY), max_size=140)
URL_TEXT = st.text(st.sampled_from("htps:/@.[]?#%0aZ-_~\\ \n|ü19:"), max_size=40).map("http://".__add__)

ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
NAMES = {
    "bob": "bob",
    "Bob Smith": "Bob Smith",
    " \t\u3000bob\n": "bob",
    "x": "x",
    "a" * 128: "a" * 128,
    " " * 500 + "a" * 128 + " " * 500: "a" * 128,
    "𝔘" * 128: "𝔘" * 128,
    "e\u0301" * 128: "é" * 128,
    "\u1100\u1161\u11a8": "각",
    "\u212b": "Å",
    "@types/node": "@types/node",
    "'; DROP TABLE users; --": "'; DROP TABLE users; --",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
    "раураl": "раураl",
    "مرحبا": "مرحبا",
    "می\u200cخواهم": "می\u200cخواهم",
    "👨\u200d👩\u200d👧": "👨\u200d👩\u200d👧",
    "❤\ufe0f": "❤\ufe0f",
    "❤\ufe0e 1\ufe0f\u20e3": "❤\ufe0e 1\ufe0f\u20e3",
    "❤\ufe0f\u200d🔥": "❤\ufe0f\u200d🔥",
    "👩🏽\u200d🚀🏳\ufe0f\u200d🌈": "👩🏽\u200d🚀🏳\ufe0f\u200d🌈",
    "🙂\u200d↔\ufe0f": "🙂\u200d↔\ufe0f",
    "क्\u200dष क्\u200cष": "क्\u200dष क्\u200cष",
    "葛\U000e0100城": "葛\U000e0100城",
    "\u0600\u0661": "\u0600\u0661",
    ENGLAND: ENGLAND,
    "\ue000": "\ue000",
    "Z" + "\u0301" * 127: "Ź" + "\u0301" * 126,
}

BAD_NAMES = {
    "": "empty",
    " \t\r\n\u2003": "empty",
    "a" * 129: "129 characters",
    "𝔘" * 129: "129 characters",
    "é" * 129: "129 characters",
    "a\u0301" * 10_000: "characters long",
    "a\0": "U+0000",
    "a\nb": "U+000A",
    "a\x7fb": "U+007F",
    "a\x85b": "U+0085",
    "a\u2028b": "U+2028, a line break",
    "a\u2029b": "U+2029, a line break",
    "\ud800": "U+D800, half of a surrogate pair",
    "a\udfff": "U+DFFF",
    "\u0378": "U+0378",
    "\ufdd0": "U+FDD0",
    "a\uffff": "U+FFFF",
    "\U0010ffff": "U+10FFFF",
    **{
        f"a{character}b": f"U+{ord(character):04X}, an invisible character"
        for character in "\xad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2064\u2800"
        "\u3164\ufe00\ufe0e\ufe0f\ufeff\uffa0\ufff9\U0001d159\U0001d173\U000e0001\U000e0067\U000e0100"
    },
    "bob1\ufe0f": "U+FE0F",
    "👩\u200d": "U+200D",
    "\u200d👩": "U+200D",
    "❤\ufe0f\ufe0f": "U+FE0F",
    "👨\u200d\u200d👩": "U+200D",
    "ب\u200c": "U+200C",
    "🏴\U000e0067": "U+E0067",
    f"{ENGLAND}\U000e007f": "U+E007F",
    "葛\U000e0100\U000e0100": "U+E0100",
    "\u200b": "invisible",
    "\u200d \u200d": "invisible",
    "\ufeff\u2060": "invisible",
    "\u3164": "invisible",
    "\u2800": "invisible",
    "\xad": "invisible",
    "\ufe0f": "invisible",
    "\U000e0067": "invisible",
} | {f"a{chr(c)}b": f"U+{c:04X}, which reorders" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

URLS = [
    "https://example.com",
    "http://example.com/",
    "HTTPS://EXAMPLE.COM/A.PNG",
    "https://example.com:8080/a/b.png?size=64&x=1#top",
    "https://example.com?x",
    "https://example.com#x",
    "https://example.com./",
    "https://localhost/x",
    "https://a_b.example/x",
    "https://127.0.0.1:65535/x",
    "https://[::1]/x",
    "https://[2001:db8::ff00:42:8329]:443/x",
    "https://[::ffff:1.2.3.4]/",
    "https://xn--bcher-kva.example/%C3%BC.png",
    "https://unpkg.com/@scope/package@1.0.0/logo.svg",
    "https://example.com//evil.example/../x",
    "https://example.com/" + "a" * (MAX_URL - 20),
]

BAD_URLS = {
    "": "is empty",
    " https://example.com": "U+0020",
    "https://example.com/a b": "U+0020",
    "https://example.com\n": "U+000A",
    "https://example.com/\0": "U+0000",
    "https://exam\tple.com": "U+0009",
    "https://example.com\\@evil.example": "U+005C",
    "https://example.com/\u202e": "U+202E",
    "https://bücher.example/": "U+00FC",
    "https://example.com/\ud800": "U+D800",
    'https://example.com/"><script>': "U+0022",
    "https://example.com/%": "U+0025",
    "https://example.com/%zz": "U+0025",
    "example.com/a.png": "does not start with",
    "//example.com/a.png": "does not start with",
    "/a.png": "does not start with",
    "javascript:alert(1)": "does not start with",
    "data:image/png;base64,AAAA": "does not start with",
    "ftp://example.com/": "does not start with",
    "https:example.com": "does not start with",
    "https:/example.com": "does not start with",
    "https://user:password@example.com/": "credentials",  # pragma: allowlist secret
    "https://user@example.com": "credentials",
    "https://@example.com": "credentials",
    "https://": "no valid host",
    "https:///a.png": "no valid host",
    "https://?x": "no valid host",
    "https://:80/": "no valid host",
    "https://.example.com/": "no valid host",
    "https://example..com/": "no valid host",
    "https://-example.com/": "no valid host",
    f"https://{'a' * 64}.com/": "no valid host",
    "https://" + ".".join(["a" * 63] * 4) + "/": "longer than 253",
    "https://example.com:/": "no valid host and port",
    "https://example.com:x/": "no valid host and port",
    "https://example.com:-1/": "no valid host and port",
    "https://example.com:0/": "the port 0",
    "https://example.com:65536/": "the port 65536",
    "https://[::1": "no valid host",
    "https://[]/": "no valid host",
    "https://[:::]/": "no IPv6 address",
    "https://[1.2.3.4]/": "no IPv6 address",
    "https://[fe80::1%25eth0]/": "no valid host",
    "https://[v1.x]/": "no valid host",
    "https://example.com/#a#b": "stray '#'",
    "https://example.com/[": "stray",
    "https://example.com/" + "a" * (MAX_URL - 19): "2049 characters",
}


@pytest.mark.parametrize(("text", "name"), NAMES.items(), ids=ascii)
def test_a_valid_name_is_cleaned(text: str, name: str) -> None:
    assert clean_username(text) == name


@pytest.mark.parametrize(("text", "reason"), BAD_NAMES.items(), ids=lambda text: ascii(text)[:40])
def test_an_invalid_name_is_rejected_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        clean_username(text)
    assert reason in str(error.value)
    assert str(error.value).isascii()


@given(ANY_TEXT | NASTY_TEXT)
def test_every_text_is_a_clean_name_or_rejected(text: str) -> None:
    try:
        name = clean_username(text)
    except ValueError:
        return
    assert clean_username(name) == name
    assert 1 <= len(name) <= MAX_NAME
    assert name == unicodedata.normalize("NFC", text).strip()
    assert not {unicodedata.category(c) for c in name} & {"Cc", "Cs", "Cn", "Zl", "Zp"}
    assert "\0" not in name.encode().decode()


@given(NASTY_TEXT)
def test_equivalent_spellings_of_a_name_are_cleaned_to_one_name(text: str) -> None:
    try:
        name = clean_username(text)
    except ValueError:
        return
    assert clean_username(unicodedata.normalize("NFD", name)) == name
    assert clean_username(f"\u3000{name}\t") == name


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=MAX_NAME).filter(str.strip))
def test_printable_ascii_is_only_trimmed(text: str) -> None:
    assert clean_username(text) == text.strip()


MAX_S = 10
"""Linear time takes a thousandth of this, quadratic time takes minutes."""


def test_a_long_name_takes_linear_time() -> None:
    started = time.perf_counter()
    for text in ("a" + "\u0301\u0323" * 500_000, "\u0301" * 1_000_000, " " * 1_000_000 + "\0"):
        with pytest.raises(ValueError, match=r"\w"):
            clean_username(text)
    assert time.perf_counter() - started < MAX_S


@pytest.mark.parametrize("value", [0, 1, -1, -(2**31) - 1, 2**31, SCORE_MIN, SCORE_MAX])
def test_a_valid_score_is_accepted(value: int) -> None:
    assert check_score(value) == value


@pytest.mark.parametrize(
    "value", [-(2**53), 2**53, 2**53 + 1, 2**64, -(10**400), pytest.param(10**5000, id="huge")]
)
def test_an_invalid_score_is_rejected(value: int) -> None:
    with pytest.raises(
        ValueError, match="out of range; whole numbers from -9007199254740991 to 9007199254740991 are"
    ):
        check_score(value)


@pytest.mark.parametrize("text", URLS)
def test_a_valid_url_is_accepted(text: str) -> None:
    assert clean_image_url(text) == text


@pytest.mark.parametrize(("text", "reason"), BAD_URLS.items(), ids=lambda text: ascii(text)[:40])
def test_an_invalid_url_is_rejected_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        clean_image_url(text)
    assert reason in str(error.value)
    assert str(error.value).isascii()


@given(ANY_TEXT | URL_TEXT)
def test_every_text_is_an_unchanged_url_or_rejected(text: str) -> None:
    try:
        url = clean_image_url(text)
    except ValueError:
        return
    assert url == text
    assert url.isascii()
    assert url.lower().startswith(("http://", "https://"))
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.username is None
    assert parts.password is None
    assert parts.port is None or 1 <= parts.port <= 65535


def test_a_hostile_url_takes_linear_time() -> None:
    started = time.perf_counter()
    for text in (
        "https://example.com/" + "a%41" * 500 + "|",
        "https://example.com/" + "a" * 2000 + "[",
        "https://" + "a." * 1000 + "/",
        "https://" + "a-" * 1000 + "/",
        "https://[" + ":" * 2000 + "]",
    ):
        with pytest.raises(ValueError, match=r"\w"):
            clean_image_url(text)
    assert time.perf_counter() - started < MAX_S
