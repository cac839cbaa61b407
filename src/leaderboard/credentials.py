"""API keys: the entries of `API_KEYS`, their scopes and boards, and new keys.

A key is hashed with plain SHA-256. A slow hash protects passwords, because people choose passwords that can be
guessed. A key of 256 random bits cannot be guessed, and a slow hash would slow down every call.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from leaderboard.board_rules import BOARD_NAME_PATTERN

Scope = Literal["read", "write", "admin"]

_DEFAULT_SCOPES: frozenset[Scope] = frozenset({"read", "write"})
_SCOPES: dict[str, Scope] = {"read": "read", "write": "write", "admin": "admin"}
_ENTRY = re.compile(
    r"(?:(?P<name>[a-z0-9_-]{1,32}):(?P<scopes>[a-z]+(?:\+[a-z]+)*)"
    rf"(?:@(?P<boards>{BOARD_NAME_PATTERN}(?:\+{BOARD_NAME_PATTERN})*))?:)?"
    r"(?:sha256:(?P<hash>[0-9a-f]{64})|(?P<key>[A-Za-z0-9._~+/=-]{16,200}))"
)
_EMPTY_DIGEST = hashlib.sha256(b"").digest()
"""SHA-256 of the empty string. Rejected: an unset shell variable would otherwise become a valid key."""
ALLOWED = (
    "KEY, NAME:SCOPES:KEY or NAME:SCOPES@BOARDS:KEY, where KEY is 16 to 200 of A-Z a-z 0-9 . _ ~ + / = - or"
    " sha256: and 64 hex digits, SCOPES are read, write and admin, joined by +, BOARDS are names of boards, joined"
    " by +, and NAME is 1 to 32 of a-z 0-9 _ -"
)


class BadEntry(ValueError):
    """An entry of `API_KEYS` that is not valid: its `number`, from 1, and as message what is allowed."""

    def __init__(self, number: int, allowed: str) -> None:
        super().__init__(allowed)
        self.number = number


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, by the SHA-256 of its bytes, and what it may do."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    boards: frozenset[str] | None = None
    """The boards that it is limited to; None: no limit."""


class KeyRing:
    """The keys of `API_KEYS`."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, credential: bytes) -> ApiKey | None:
        """Return the key that `credential` is, or None. Compares all keys, so that its time reveals nothing."""
        digest = hashlib.sha256(credential).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """Return the keys of `API_KEYS`, whose entries are separated by commas or spaces.

    A key without a name is named by the beginning of its hash, and may read and write. Raises BadEntry, whose
    message does not contain the entry.
    """
    keys: list[ApiKey] = []
    for number, entry in enumerate((part for part in re.split(r"[,\s]+", text) if part), 1):
        match = _ENTRY.fullmatch(entry)
        scopes = _DEFAULT_SCOPES
        if match and match["scopes"]:
            words = match["scopes"].split("+")
            scopes = frozenset(_SCOPES[word] for word in words if word in _SCOPES)
            match = match if len(scopes) == len(words) else None
        if match is None:
            raise BadEntry(number, ALLOWED)
        digest = bytes.fromhex(match["hash"]) if match["hash"] else hashlib.sha256(match["key"].encode()).digest()
        if digest == _EMPTY_DIGEST:
            raise BadEntry(number, "the hash of a key, and not of an empty text")
        boards = frozenset(match["boards"].split("+")) if match["boards"] else None
        key = ApiKey(match["name"] or f"sha256 {digest.hex()[:8]}", scopes, digest, boards)
        if any(key.name == other.name or key.digest == other.digest for other in keys):
            raise BadEntry(number, "a key and a name that no entry before it has")
        keys.append(key)
    return tuple(keys)


def new_key() -> tuple[str, str]:
    """Return a new random key of 256 bits, and its hash as `API_KEYS` has it."""
    key = "lb_" + secrets.token_urlsafe(32)
    return key, "sha256:" + hashlib.sha256(key.encode()).hexdigest()
