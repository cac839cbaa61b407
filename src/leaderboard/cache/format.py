"""How users, epochs and deltas are written in Redis.

A member of the sorted set is the user id, padded with zeros to ten digits. Its score is the user's sort key,
negated. So Redis's order, ascending by score and then by bytes, is the order of the board (`ordering.py`). Redis
stores a score as a double, which is exact from SCORE_MIN to SCORE_MAX.

On boards where the first to reach a score is before the others, a sort key has more bits than that. Its low
`tie_bits` are the time, and stand in the member before the id: as their complement, padded with zeros to ten
digits, and a colon. The metadata of such a user begin with the same prefix, because the hash is by id.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN, User
from leaderboard.snapshot import SnapshotPosition

_FORMAT = "5"
"""Stands before the epoch. A program with another layout of the keys does not know such an epoch."""

_MEMBER = re.compile(rb"[0-9]{10}")
_MEMBER_WITH_TIME = re.compile(rb"([0-9]{10}):([0-9]{10})")
_PREFIX_LENGTH = 11

MAX_DELTA_USERS = 1000
MAX_DELTA_BYTES = 16_384
"""A replica is loaded again rather than moved by a longer delta."""


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one `apply` did to the cache: deleted ids, changed users as tuples, and the most users kept."""

    keep: int
    deleted: list[int]
    changed: list[tuple[int, str, str | None, int, str | None]]


_SPELLING = {"user_name": "username", "image_url": "imageUrl", "external_id": "externalId"}


class _Metadata(msgspec.Struct, frozen=True, omit_defaults=True, rename=_SPELLING):
    user_name: str
    image_url: str | None
    external_id: str | None = None


def encode_delta(keep: int, deleted: Sequence[int], changed: Sequence[User]) -> bytes:
    """Return a Delta as MessagePack; empty if it is too long to be kept."""
    if len(deleted) + len(changed) > MAX_DELTA_USERS:
        return b""
    delta = Delta(keep, list(deleted), [msgspec.structs.astuple(user) for user in changed])
    encoded = msgspec.msgpack.encode(delta)
    return encoded if len(encoded) <= MAX_DELTA_BYTES else b""


decode_delta = msgspec.msgpack.Decoder(Delta).decode
"""Return the Delta. Raises ValueError."""


def encode_epoch(position: SnapshotPosition) -> str:
    """Return the field `epoch` of the state: the format and the epoch."""
    return f"{_FORMAT}|{position.epoch}"


def parse_epoch(stored: bytes) -> str:
    """Read the field `epoch` of the state; empty if it has another format."""
    format_, _, epoch = stored.decode().partition("|")
    return epoch if format_ == _FORMAT else ""


def member(user_id: int) -> str:
    """Return the field of the hash for a user. Without `tie_bits` it is also its member."""
    return f"{user_id:010d}"


def prefix_length(tie_bits: int) -> int:
    """Return how many bytes of a member stand before the user id."""
    return _PREFIX_LENGTH if tie_bits else 0


def encode_users(users: Iterable[User], tie_bits: int = 0) -> Iterator[str | int | bytes]:
    """Return member, score and metadata of each user, one after the other."""
    if tie_bits:
        return chain.from_iterable(_row_with_time(user, tie_bits) for user in users)
    return chain.from_iterable(map(_row, users))


def parse_users(scores: Sequence[bytes], metadata: Sequence[bytes], tie_bits: int = 0) -> list[User]:
    """Read members with scores and ids with metadata. Raises ValueError if they do not fit together."""
    named = dict(_pairs(metadata))
    users = []
    for stored_member, stored_score in _pairs(scores):
        user_id, key = parse_member(stored_member, stored_score, tie_bits)
        stored_id = stored_member[-10:]
        if stored_id not in named:
            raise ValueError(f"{stored_id!r} has a score and no metadata")
        stored = named.pop(stored_id)
        if not stored.startswith(stored_member[:-10]):
            raise ValueError(f"the metadata of {stored_id!r} begin with another time than {stored_member!r}")
        try:
            names = _decode_metadata(stored[prefix_length(tie_bits) :])
        except ValueError as error:
            raise ValueError(f"the metadata of {stored_id!r} are malformed: {error}") from error
        users.append(User(user_id, names.user_name, names.image_url, key, names.external_id))
    for stored_id in named:
        raise ValueError(f"{stored_id!r} has metadata and no score")
    return users


def parse_member(stored: bytes, score: bytes, tie_bits: int = 0) -> tuple[int, int]:
    """Return the user id and the sort key of a member of the sorted set. Raises ValueError."""
    key = _parse_score(score)
    stored_id = stored
    if tie_bits:
        match = _MEMBER_WITH_TIME.fullmatch(stored)
        if match is None or int(match[1]) >= 1 << tie_bits:
            raise ValueError(f"the member {stored!r} is no time and user id, of ten digits each")
        key = (key << tie_bits) | ((1 << tie_bits) - 1 - int(match[1]))
        stored_id = match[2]
    if _MEMBER.fullmatch(stored_id) and 1 <= (user_id := int(stored_id)) <= INT32_MAX:
        return user_id, key
    raise ValueError(f"the member {stored!r} is no user id of ten digits")


def _parse_score(stored: bytes) -> int:
    try:
        score = -int(stored)
    except ValueError:
        score = SCORE_MAX + 1
    if not SCORE_MIN <= score <= SCORE_MAX:
        raise ValueError(f"{stored!r} is no score from {SCORE_MIN} to {SCORE_MAX}, negated")
    return score


_decode_metadata = msgspec.json.Decoder(_Metadata).decode


def _row(user: User) -> tuple[str | int | bytes, ...]:
    return member(user.user_id), -user.total_score, _metadata(user)


def _row_with_time(user: User, tie_bits: int) -> tuple[str | int | bytes, ...]:
    mask = (1 << tie_bits) - 1
    prefix = f"{mask - (user.total_score & mask):010d}:"
    return prefix + member(user.user_id), -(user.total_score >> tie_bits), prefix.encode() + _metadata(user)


def _metadata(user: User) -> bytes:
    return msgspec.json.encode(_Metadata(user.user_name, user.image_url, user.external_id))


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
