"""How users, epochs and deltas are written in Redis.

A member of the sorted set is the user id, padded with zeros to ten digits. Its score is the user's score, negated.
So Redis's order, ascending by score and then by bytes, is the order of the board (`ordering.py`). Redis stores a
score as a double, which is exact from SCORE_MIN to SCORE_MAX.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN, User
from leaderboard.snapshot import SnapshotPosition

_FORMAT = "3"
"""Stands before the epoch. A program with another layout of the keys does not know such an epoch."""

_MEMBER = re.compile(rb"[0-9]{10}")

MAX_DELTA_USERS = 1000
MAX_DELTA_BYTES = 16_384
"""A replica is loaded again rather than moved by a longer delta."""


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one `apply` did to the cache: deleted ids, changed users as tuples, and the most users kept."""

    keep: int
    deleted: list[int]
    changed: list[tuple[int, str, str | None, int]]


class _Metadata(msgspec.Struct, frozen=True, rename={"user_name": "username", "image_url": "imageUrl"}):
    user_name: str
    image_url: str | None


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
    """Return the member of the sorted set, and field of the hash, for a user."""
    return f"{user_id:010d}"


def encode_users(users: Iterable[User]) -> Iterator[str | int | bytes]:
    """Return member, score and metadata of each user, one after the other."""
    return chain.from_iterable(map(_row, users))


def parse_users(scores: Sequence[bytes], metadata: Sequence[bytes]) -> list[User]:
    """Read members with scores and members with metadata. Raises ValueError if they do not fit together."""
    named = dict(_pairs(metadata))
    users = []
    for stored_id, stored_score in _pairs(scores):
        user_id, total_score = parse_member(stored_id), parse_score(stored_score)
        if stored_id not in named:
            raise ValueError(f"{stored_id!r} has a score and no metadata")
        try:
            names = _decode_metadata(named.pop(stored_id))
        except ValueError as error:
            raise ValueError(f"the metadata of {stored_id!r} are malformed: {error}") from error
        users.append(User(user_id, names.user_name, names.image_url, total_score))
    for stored_id in named:
        raise ValueError(f"{stored_id!r} has metadata and no score")
    return users


def parse_member(stored: bytes) -> int:
    """Read a user id from a member. Raises ValueError."""
    if _MEMBER.fullmatch(stored) and 1 <= (user_id := int(stored)) <= INT32_MAX:
        return user_id
    raise ValueError(f"the member {stored!r} is no user id of ten digits")


def parse_score(stored: bytes) -> int:
    """Read a user's score from the score of a member, which is negated. Raises ValueError."""
    try:
        score = -int(stored)
    except ValueError:
        score = SCORE_MAX + 1
    if not SCORE_MIN <= score <= SCORE_MAX:
        raise ValueError(f"{stored!r} is no score from {SCORE_MIN} to {SCORE_MAX}, negated")
    return score


_decode_metadata = msgspec.json.Decoder(_Metadata).decode


def _row(user: User) -> tuple[str | int | bytes, ...]:
    metadata = msgspec.json.encode(_Metadata(user.user_name, user.image_url))
    return member(user.user_id), -user.total_score, metadata


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
