"""The cached seasons of boards other than `default`: what Redis keeps of each, how it is changed.

All seasons in the hash `seasons` are at the snapshot of the state, like the board `default`. The keys of a
season's users carry the id of the load that they came from, so what is written for one load never reaches another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from leaderboard.cache.format import (
    encode_delta,
    encode_epoch,
    encode_users,
    member,
    parse_epoch,
    parse_member,
    parse_users,
    prefix_length,
)
from leaderboard.cache.scripts import Argument
from leaderboard.cache.state import Floor, is_complete, staying_and_leaving
from leaderboard.model import User
from leaderboard.queries import SeasonRef
from leaderboard.snapshot import Snapshot, SnapshotPosition

LEAST_WEIGHT = 100
"""A season counts as so many users at least, in the cache and in a process: so their number is bounded, too."""


def season_name(season: SeasonRef) -> str:
    """Return the name of a season in the cache: the board, and `/number` unless it is the current season.

    The number 0 stands for the last ended season, so that name and season change together (see `log_boards`).
    """
    return season.board if season.number is None else f"{season.board}/{season.number}"


def season_of(name: str) -> SeasonRef:
    """Return the season of a name that `season_name` made."""
    board, _, number = name.partition("/")
    return SeasonRef(board, int(number) if number else None)


@dataclass(frozen=True, slots=True)
class CachedSeason:
    """The entry of a cached season.

    `load` is the id of the load that it came from, `version` the token of the state that changed it last. The
    scores of users are sort keys. `rules` are those of the board, as PostgreSQL stores them.
    """

    load: str
    version: bytes
    count: int
    total: int
    floor: Floor | None
    season_id: int
    board_id: int
    tie_bits: int
    rules: str

    @property
    def complete(self) -> bool:
        """Whether all users of the season are cached."""
        return self.floor is None

    @classmethod
    def parse(cls, stored: bytes) -> "CachedSeason":
        """Read an entry. Raises ValueError if another program has written it."""
        return _parse_entry(stored)

    @classmethod
    def unreadable(cls, stored: bytes) -> "CachedSeason":
        """Return what is needed to drop an entry that cannot be read: its load."""
        load = stored.partition(b"|")[0].decode("utf-8", "replace")
        return cls(load, b"", 0, 0, None, 0, 0, 0, "")

    def __bytes__(self) -> bytes:
        """Return the entry as it is admitted: it has no deltas yet."""
        floor = b"" if self.floor is None else _encode_floor(self.floor, self.tie_bits)
        begin = f"{self.load}|{self.version.decode()}|{self.count}|{self.total}|"
        rest = f"|0|{self.season_id}|{self.board_id}|{self.tie_bits}|{self.rules}"
        return begin.encode() + floor + rest.encode()


@lru_cache(maxsize=4096)
def _parse_entry(stored: bytes) -> CachedSeason:
    load, version, count, total, floor, _, season_id, board_id, tie_bits, rules = stored.split(b"|", 9)
    bits = int(tie_bits)
    is_complete(floor, int(count), int(total))
    return CachedSeason(
        load.decode(),
        version,
        int(count),
        int(total),
        _parse_floor(floor, bits),
        int(season_id),
        int(board_id),
        bits,
        rules.decode(),
    )


def _parse_floor(stored: bytes, tie_bits: int) -> Floor | None:
    if stored == b"":
        return None
    score, _, stored_member = stored.partition(b",")
    user_id, key = parse_member(stored_member, str(-int(score)).encode(), tie_bits)
    return Floor(key, user_id)


def _encode_floor(floor: Floor, tie_bits: int) -> bytes:
    stored_member, score, _ = encode_users([User(floor.user_id, "", None, floor.total_score)], tie_bits)
    return f"{-int(score)},{stored_member!s}".encode()


@dataclass(frozen=True, slots=True)
class PendingLoad:
    """A season that was loaded beside the cache at `position`, and waits to be admitted by a catching up."""

    season: CachedSeason
    position: SnapshotPosition

    @classmethod
    def parse(cls, stored: bytes) -> "PendingLoad":
        """Read what is pending. Raises ValueError if another program has written it."""
        entry, epoch, snapshot = stored.split(b"\n")
        position = SnapshotPosition(parse_epoch(epoch), Snapshot.parse(snapshot.decode()))
        return cls(CachedSeason.parse(entry), position)

    def __bytes__(self) -> bytes:
        position = f"\n{encode_epoch(self.position)}\n{self.position.snapshot}"
        return bytes(self.season) + position.encode()


class Action(StrEnum):
    """What `apply` does to a season."""

    SET = "set"
    DROP = "drop"
    ADMIT = "admit"
    REJECT = "reject"
    """Throw a pending load away."""


@dataclass(frozen=True, slots=True)
class SeasonMove:
    """One season's part of `apply`: what changed, and what to do. `pending` is the stored load."""

    name: str
    action: Action
    season: CachedSeason
    pending: bytes = b""
    changed: Sequence[User] = ()
    deleted: Sequence[int] = ()
    added: int = 0

    def arguments(self, keep: int) -> Iterator[Argument]:
        """Yield the arguments of `apply.lua` for this season; `keep` is the most users that it keeps."""
        season = self.season
        staying, leaving = staying_and_leaving(season.floor, self.changed, self.deleted)
        yield from (self.name, season.load, self.action, self.pending)
        yield bytes(season) if self.action is Action.ADMIT else b""
        yield self.added
        yield encode_delta(keep, leaving, staying) if self.action is Action.SET else b""
        yield from (prefix_length(season.tie_bits), len(leaving), len(staying))
        yield from map(member, leaving)
        yield from encode_users(staying, season.tie_bits)


@dataclass(frozen=True, slots=True)
class SeasonExport:
    """A whole cached season, its users in order, and token and position of the state at that time."""

    token: bytes
    position: SnapshotPosition
    season: CachedSeason
    users: list[User]

    @classmethod
    def parse(cls, reply: Sequence[Any]) -> "SeasonExport":
        """Read the reply of `export_season.lua`. Raises ValueError if another program has written it."""
        token, epoch, snapshot, entry, scores, metadata = reply
        if None in reply:
            raise ValueError("the state lacks a field")
        season = CachedSeason.parse(entry)
        users = parse_users(scores, metadata, season.tie_bits)
        if len(users) != season.count:
            raise ValueError(f"{len(users)} users are cached instead of {season.count}")
        position = SnapshotPosition(parse_epoch(epoch), Snapshot.parse(snapshot.decode()))
        return cls(token, position, season, users)
