"""What the cache says about itself, and how it is read from the replies of the scripts."""

from collections.abc import Mapping, Sequence
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

    `seasons` are the entries of the cached seasons by name, and `pending` the loads to be admitted: `CachedSeason`
    and `PendingLoad` read them. Both are None without the lease, and `pending` after an apply if there are any.
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
    seasons: Mapping[str, bytes] | None
    pending: Mapping[str, bytes] | None

    @property
    def age_s(self) -> float:
        """The greatest possible age of the snapshot in seconds: it was taken after the poll at `asof`."""
        return (self.now - self.asof) / 1e6

    @classmethod
    def parse(cls, reply: Sequence[Any], connection_number: int) -> "CacheState":
        """Read the reply of `poll.lua`. Raises ValueError if another program has written the state."""
        now, leased, consistent, token, epoch, snapshot, floor, count, total, asof, valid, seasons, pending = reply
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
            by_name(seasons) if leased else None,
            by_name(pending) if leased else None,
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


def by_name(flat: Sequence[bytes]) -> dict[str, bytes]:
    """Return the values of a hash by field, from a reply that lists both in turn. Raises ValueError."""
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def trimmed(users: list[User], keep: int) -> tuple[list[User], Floor | None]:
    """Return the best `keep` of users in order, and the floor, None if that is all of them."""
    if len(users) <= keep:
        return users, None
    kept = users[:keep]
    return kept, Floor(kept[-1].total_score, kept[-1].user_id)


def staying_and_leaving(
    floor: Floor | None, changed: Sequence[User], deleted: Sequence[int]
) -> tuple[list[User], list[int]]:
    """Return the changed users at the floor or better, and the ids of the others and of the deleted ones."""
    staying = [user for user in changed if floor is None or floor.includes(user)]
    leaving = [user.user_id for user in changed if floor is not None and not floor.includes(user)]
    return staying, [*leaving, *deleted]
