"""What the cache says about itself, and how it is read from the replies of the scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leaderboard.cache.format import parse_epoch, parse_users
from leaderboard.model import User
from leaderboard.ordering import place
from leaderboard.snapshot import Snapshot, SnapshotPosition


@dataclass(frozen=True, slots=True)
class Floor:
    """The lowest place, of this score and user id, down to which the cache is complete."""

    total_score: int
    user_id: int

    def includes(self, user: User) -> bool:
        """Return whether a user is at this place or better."""
        return place(user.total_score, user.user_id) <= place(self.total_score, self.user_id)

    def __str__(self) -> str:
        return f"{self.total_score},{self.user_id}"

    @classmethod
    def parse(cls, stored: bytes) -> "Floor | None":
        """Read the field `floor` of the state; empty means that the cache has all users. Raises ValueError."""
        if stored == b"":
            return None
        total_score, user_id = stored.split(b",")
        return cls(int(total_score), int(user_id))


@dataclass(frozen=True, slots=True)
class CacheState:
    """The state of the cache at the last look. Times are Redis's own, in microseconds.

    `token` changes with every change of the cache and with every invalidation. `asof` is the time of the poll
    before the snapshot was taken. `leased`: this process has the lease. `consistent`: the keys have as many
    members as `count` says. `connection_number` is the number of the connection it was read on.
    """

    now: int
    leased: bool
    consistent: bool
    token: bytes
    position: SnapshotPosition
    floor: Floor | None
    count: int
    total: int
    asof: int
    valid: bool
    connection_number: int

    @property
    def age_s(self) -> float:
        """The greatest possible age of the snapshot in seconds: it was taken after the poll at `asof`."""
        return (self.now - self.asof) / 1e6

    @classmethod
    def parse(cls, reply: Sequence[Any], connection_number: int) -> "CacheState":
        """Read the reply of `poll.lua`. Raises ValueError if another program has written the state."""
        now, leased, consistent, token, epoch, snapshot, floor, count, total, asof, valid = reply
        if None in reply:
            raise ValueError("the state lacks a field")
        is_complete(floor, int(count), int(total))
        return cls(
            now,
            leased == 1,
            consistent == 1,
            token,
            SnapshotPosition(parse_epoch(epoch), Snapshot.parse(snapshot.decode())),
            Floor.parse(floor),
            int(count),
            int(total),
            int(asof),
            valid == b"1",
            connection_number,
        )


@dataclass(frozen=True, slots=True)
class Export:
    """The whole cache: its state, and its users in order."""

    token: bytes
    position: SnapshotPosition
    floor: Floor | None
    total: int
    valid: bool
    users: list[User]

    @classmethod
    def parse(cls, reply: Sequence[Any]) -> "Export":
        """Read the reply of `export.lua`. Raises ValueError if another program has written the cache."""
        token, epoch, snapshot, floor, total, valid, scores, metadata = reply
        if None in reply:
            raise ValueError("the state lacks a field")
        users = parse_users(scores, metadata)
        is_complete(floor, len(users), int(total))
        position = SnapshotPosition(parse_epoch(epoch), Snapshot.parse(snapshot.decode()))
        return cls(token, position, Floor.parse(floor), int(total), valid == b"1", users)


def is_complete(floor: bytes, count: int, total: int) -> bool:
    """Return whether a cache with this floor and count has all users. Raises ValueError if it cannot be."""
    if count > total or (floor == b"" and count != total):
        raise ValueError(f"it has {count} of {total} users, and the floor {floor!r}")
    return floor == b""
