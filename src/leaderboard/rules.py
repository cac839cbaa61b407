"""The rules for usernames, titles, external ids, scores and image URLs, for HTTP and for imports.

Each function returns the value to store, or raises ValueError whose message says what is wrong and what is
allowed. A username or title is rejected if it would damage the text around it or in storage, or if it has an
invisible character that neither its script nor an emoji needs: two different names would look the same.
Look-alikes and private-use characters are allowed.
"""

import re
from ipaddress import IPv6Address
from unicodedata import category, combining, name, normalize

from precis_i18n.unicode import UnicodeData

from leaderboard.model import SCORE_MAX, SCORE_MIN, ExternalId

MAX_NAME = 128
"""Most characters (code points) of a username."""
MAX_TITLE = 200
"""Most characters (code points) of the title of a board."""
MAX_EXTERNAL_ID = 128
"""Most bytes of an external id in UTF-8."""
EXTERNAL_ID_PATTERN = rf"[^\u0000-\u001f\u007f-\u009f]{{1,{MAX_EXTERNAL_ID}}}"
"""What an external id matches in JSON Schema, which counts characters and not bytes."""
MAX_URL = 2048
"""Most characters of an image URL."""

SCORE_ALLOWED = f"whole numbers from {SCORE_MIN} to {SCORE_MAX} are allowed"
URL_ALLOWED = "an absolute http or https URL is allowed"

# A fast path: nearly all names match, and an import checks hundreds of thousands in a second.
_PLAIN_NAME = re.compile(rf"[!-~](?:[ -~]{{0,{MAX_NAME - 2}}}[!-~])?")

_REJECTED = {
    "Cc": "a control character",
    "Cs": "half of a surrogate pair",
    # A later Unicode may give it another normal form, and two different names could become the same.
    "Cn": "not a character of Unicode, or too new for this server",
    "Zl": "a line break",
    "Zp": "a line break",
}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
# What is drawn as nothing or as a blank: Unicode's Default_Ignorable_Code_Point, the marks of annotations, the
# empty Braille cell, the musical null notehead.
_INVISIBLE = re.compile(
    "[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_TEXT_STYLE, _EMOJI_STYLE = "\ufe0e", "\ufe0f"
_KEYCAP = "\u20e3"
_SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
# The flag of a region: a black flag, and its code in characters that are not shown.
_REGION = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f")
# Invisible characters that `_is_needed` allows at some places.
_SOMETIMES_NEEDED = re.compile(
    "[\u200c\u200d\ufe0e\ufe0f\U000e0030-\U000e0039\U000e0061-\U000e007a\U000e007f\U000e0100-\U000e01ef]"
)
_VIRAMA = 9
"""The canonical combining class of viramas, with which Indic scripts join letters."""
_UNICODE = UnicodeData()

# RFC 3986, with a host name as in DNS. The possessive `++` and `*+` keep the time linear.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = rf"(?P<name>{_LABEL}(?:\.{_LABEL})*\.?)|\[(?P<ipv6>[0-9a-f:.]+)\]"
_CHARACTERS = r"(?:[a-z0-9\-._~!$&'()*+,;=:@/?]++|%[0-9a-f]{2})*+"
_URL = re.compile(
    rf"https?://(?:{_HOST})(?::(?P<port>[0-9]{{1,5}}))?(?:[/?]{_CHARACTERS})?(?:\#{_CHARACTERS})?",
    re.IGNORECASE | re.ASCII,
)
_NOT_IN_A_URL = re.compile(r"[^a-z0-9\-._~!$&'()*+,;=:@/?#\[\]%]|%(?![0-9a-f]{2})", re.IGNORECASE | re.ASCII)


def clean_username(text: str) -> str:
    """Return `text` trimmed and in Unicode's normal form C. Raises ValueError if that is no username."""
    if _PLAIN_NAME.fullmatch(text):
        return text
    return _clean(text, MAX_NAME, "a username")


def clean_prefix(text: str) -> str:
    """Return the beginning of usernames as they are stored: without blanks before it, in normal form C.

    It may be empty, or end within an emoji. Raises ValueError if no username can begin like this.
    """
    prefix = _normal(text.lstrip(), MAX_NAME)
    if len(prefix) > MAX_NAME:
        raise ValueError(f"is {len(prefix)} characters long; up to {MAX_NAME} characters are allowed")
    _check_characters(prefix, "a username")
    for found in _INVISIBLE.finditer(prefix):
        if not _SOMETIMES_NEEDED.match(found[0]):
            raise ValueError(_invisible(found[0], "a username"))
    return prefix


def clean_title(text: str) -> str:
    """Return the title of a board, trimmed and in Unicode's normal form C. Raises ValueError."""
    return _clean(text, MAX_TITLE, "a title")


def check_external_id(text: str) -> ExternalId:
    """Return `text`, unchanged, if it can be an external id. Raises ValueError."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair; none is allowed") from None
    if not 1 <= size <= MAX_EXTERNAL_ID:
        problem = f"is {size} bytes long in UTF-8" if size else "is empty"
        raise ValueError(f"{problem}; 1 to {MAX_EXTERNAL_ID} bytes are allowed")
    if control := _CONTROL.search(text):
        raise ValueError(f"contains {_code(control[0])}, a control character; none is allowed")
    return ExternalId(text)


def check_score(value: int) -> int:
    """Return `value` if it is in the range of scores. Raises ValueError."""
    if not SCORE_MIN <= value <= SCORE_MAX:
        # Python raises ValueError when it prints a number of thousands of digits.
        shown = str(value) if abs(value) < 10**20 else "the number"
        raise ValueError(f"{shown} is out of range; {SCORE_ALLOWED}")
    return value


def clean_image_url(text: str) -> str:
    """Return `text` if it is an absolute http or https URL, in ASCII, without credentials.

    Raises ValueError. The URL is never fetched, so its host need not exist.
    """
    if len(text) > MAX_URL:
        raise ValueError(f"is {len(text)} characters long; up to {MAX_URL} are allowed")
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(_url_problem(text))
    if match["port"] is not None and not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"has the port {match['port']}; 1 to 65535 are allowed")
    if match["ipv6"] is not None:
        try:
            IPv6Address(match["ipv6"])
        except ValueError:
            raise ValueError(f"has no IPv6 address between its brackets; {URL_ALLOWED}") from None
    elif len(match["name"].rstrip(".")) > 253:
        raise ValueError("has a host longer than 253 characters, more than DNS allows")
    return text


def _clean(text: str, most: int, what: str) -> str:
    """Return `text` trimmed and in normal form C. Raises ValueError, which calls the text `what`."""
    cleaned = _normal(text.strip(), most)
    if not cleaned:
        raise ValueError(f"is empty; 1 to {most} characters are allowed")
    if len(cleaned) > most:
        raise ValueError(f"is {len(cleaned)} characters long; 1 to {most} characters are allowed")
    _check_characters(cleaned, what)
    for found in _INVISIBLE.finditer(cleaned):
        if not _is_needed(cleaned, found.start()):
            raise ValueError(_invisible(found[0], what))
    return cleaned


def _normal(text: str, most: int) -> str:
    """Return `text` in normal form C, or unchanged if it is longer than `most` in any form."""
    # Normalising can take quadratic time. It makes one character of four at most.
    return normalize("NFC", text) if len(text) <= 4 * most else text


def _check_characters(text: str, what: str) -> None:
    """Raise ValueError, which calls the text `what`, if it has a character that is rejected."""
    for character in text:
        rejected = _REJECTED.get(category(character))
        if rejected is not None:
            raise ValueError(f"contains {_code(character)}, {rejected}; none is allowed in {what}")
    if override := _BIDI.search(text):
        raise ValueError(f"contains {_code(override[0])}, which reorders the text around it; none is allowed")


def _is_needed(text: str, at: int) -> bool:
    """Return whether the invisible character at this place is a part of an emoji, or its script needs it.

    Joiners in scripts follow RFC 5892, appendix A: after a virama, and a non-joiner between letters that would
    otherwise be joined.
    """
    character, before, after = text[at], text[:at], text[at + 1 :]
    last = before[-1:]
    if character in {_TEXT_STYLE, _EMOJI_STYLE}:
        return _is_symbol(last) or (last != "" and last in "0123456789#*" and after.startswith(_KEYCAP))
    if character in {_JOINER, _NON_JOINER} and last and combining(last) == _VIRAMA:
        return True
    if character == _JOINER:
        return _is_symbol(before.rstrip(_EMOJI_STYLE + _SKIN_TONES)[-1:]) and _is_symbol(after[:1])
    if character == _NON_JOINER:
        return _UNICODE.valid_jointype(text, at)
    if character >= "\U000e0100":  # a variant of an ideograph, as in names of Japan
        return last != "" and name(last, "").startswith("CJK UNIFIED IDEOGRAPH")
    return any(flag.start() < at < flag.end() for flag in _REGION.finditer(text))


def _is_symbol(character: str) -> bool:
    """Return whether this can be an emoji, or a part of one. The empty text cannot."""
    if not character or character in _SKIN_TONES:
        return character != ""
    if character in "\u203c\u2049\u2139\u3030\u303d":
        return True
    kind = category(character)
    return kind == "So" or (kind == "Sm" and character >= "\u2190")


def _invisible(character: str, what: str) -> str:
    where = " where neither its script nor an emoji needs it" if _SOMETIMES_NEEDED.match(character) else ""
    return f"contains {_code(character)}, an invisible character{where}; none is allowed in {what}"


def _url_problem(url: str) -> str:
    """Return what is wrong with a URL that `_URL` does not match."""
    if not url:
        return f"is empty; {URL_ALLOWED}, or none"
    if character := _NOT_IN_A_URL.search(url):
        return f"contains {_code(character[0])}, which a URL writes percent-encoded, as %20 for a space"
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in {"http", "https"}:
        return f"does not start with http:// or https://; {URL_ALLOWED}"
    if "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
        return f"carries credentials before its host; {URL_ALLOWED} without"
    return f"has no valid host and port after {scheme}://, or a stray '#', '[' or ']'; {URL_ALLOWED}"


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
