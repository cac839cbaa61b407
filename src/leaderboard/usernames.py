"""How usernames are compared: as they are, or without regard to the case and the width of letters.

With `caseless`, two names are one if they have one key. The key is the name mapped by the rules of PRECIS for
nicknames (RFC 8266), because names may have blanks and symbols, which the profiles of RFC 8265 refuse. The name
itself is stored and shown as it was given. `rules.clean_username` decides which characters a name may have.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Literal

from precis_i18n import get_profile

Usernames = Literal["exact", "caseless"]

KeyOf = Callable[[str], str | None]
"""Returns the key of a name, None where names are compared as they are."""

_PROFILE = get_profile("NicknameCaseMapped")
_PASSES = 4
"""RFC 8266 maps until nothing changes, at most so often."""
_BLANKS = re.compile("  +")
# They say how the character before is drawn, and many fonts ignore them.
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_LONGEST = 600
_KEPT = 500
"""A longer key is shortened to so many characters: PostgreSQL's indexes take 2,704 bytes."""


def key_function(usernames: Usernames) -> KeyOf:
    """Return the function that computes the keys by which names are compared."""
    return name_key if usernames == "caseless" else no_key


def no_key(_name: str) -> None:
    """Return None: names are compared as they are."""


def name_key(name: str) -> str:
    """Return the key that a name has with `caseless`. A key is its own key."""
    if name.isascii():
        return _BLANKS.sub(" ", name.strip(" ")).lower()
    key = _VARIATION_SELECTORS.sub("", name)
    for _ in range(_PASSES):
        mapped = _map(key)
        if mapped == key:
            break
        key = mapped
    if len(key) <= _LONGEST:
        return key
    return f"{key[:_KEPT]}#{sha256(key.encode()).hexdigest()}"


def prefix_key(prefix: str) -> str:
    """Return how the keys of the names with this prefix begin."""
    key = name_key(prefix)
    return f"{key} " if key and prefix[-1:].isspace() else key


def _map(name: str) -> str:
    # Whether a sigma is the last letter of a word would depend on what follows a prefix.
    return _PROFILE.apply_five_rules(name).replace("\u03c2", "\u03c3")
