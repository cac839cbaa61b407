"""Every call to Redis: reading answers, and the steps by which the cache is moved or rebuilt.

Each method is one script, so each is one instant in Redis. Nothing here decides when to do what; `sync.py`
does.
"""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import msgspec
import structlog

from leaderboard.cache import keys
from leaderboard.cache.link import Evaluate, Link
from leaderboard.cache.replica import Copy, Move
from leaderboard.cache.script import load_script
from leaderboard.cache.servers import Servers
from leaderboard.errors import CacheDamaged, CacheHangs, CacheRefused, CacheUnavailable
from leaderboard.model import NEIGHBOURS, Answer, Question, TopQuery, User
from leaderboard.snapshot import Snapshot, SnapshotPosition

_FORMAT = "2"
"""Written before the epoch: a program with another layout of the keys takes them for another database's."""

FRESH_S = 0.8
"""A state older than this is not read: it bounds how stale an answer can be when Redis is cut off."""

LONGEST_CLAIM_MS = 60_000
"""The longest that a process may claim the rebuild for: a claim with more left is not of our making."""

_BULK_TAKES_LONGER = 10
_LOAD_CHUNK = 1000
_LONGEST_MOVE = 16_384
"""In bytes. Whoever has a copy loads it anew rather than having longer moves kept for it."""
_TRIES_TO_COPY = 3


_log = structlog.get_logger(__name__)


class Refuse(Enum):
    """Why the cache does not answer a question."""

    TOO_DEEP = "the cache does not reach so far down"
    NO_SUCH_USER = "the cache holds everyone, and this user is not among them"


class Applied(Enum):
    """What became of a try to move the cache."""

    DONE = "done"
    OVERTAKEN = "somebody else renewed the token"
    TORN = "the cache is not what its state says"


@dataclass(frozen=True, slots=True)
class Floor:
    """The lowest place down to which the cache is complete."""

    total_score: int
    user_id: int

    def admits(self, user: User) -> bool:
        """Whether a user stands here or better."""
        return (-user.total_score, user.user_id) <= (-self.total_score, self.user_id)


@dataclass(frozen=True, slots=True)
class CacheState:
    """What the cache says of itself. Times are Redis's own, in microseconds."""

    now: int
    leased: bool
    whole: bool
    token: bytes
    position: SnapshotPosition
    floor: Floor | None
    count: int
    total: int
    asof: int
    usable: bool
    incarnation: int

    @property
    def age_s(self) -> float:
        """Seconds since the snapshot was taken, at the least."""
        return (self.now - self.asof) / 1e6


@dataclass(frozen=True, slots=True)
class Reading:
    """Answers to a batch of questions, all from one state of the cache."""

    epoch: str
    age_s: float
    answers: list[Answer | Refuse]


@dataclass(frozen=True, slots=True)
class Export:
    """The whole cache: its state, and its users in its order."""

    token: bytes
    position: SnapshotPosition
    floor: Floor | None
    total: int
    usable: bool
    users: list[User]


class _Move(msgspec.Struct, frozen=True, array_like=True):
    keep: int
    gone: list[int]
    changed: list[tuple[int, str, str | None, int]]


class _Metadata(msgspec.Struct, frozen=True, rename={"user_name": "username", "image_url": "imageUrl"}):
    user_name: str
    image_url: str | None


class CacheStore:
    """Redis, by four connections: for reads, for catching up, for what takes longer, and for the last resort.

    To put the cache out of use must not wait behind a call that hangs, nor be given up because one has: it may
    be this process that stood still, while others go on reading.
    """

    def __init__(self, servers: Servers, timeout_s: float, size: int) -> None:
        self._servers = servers
        self.size = size
        self.keep = size + max(size // 10, 2 * NEIGHBOURS)
        """The most users the cache holds: the slack lets scores fall without a rebuild each time."""
        self._reads = Link(servers, timeout_s, greet=self._doubt_what_is_there)
        self._sync = Link(servers, timeout_s)
        self._longer = _BULK_TAKES_LONGER * max(1, size // 10_000)
        """What touches all of the cache takes as many times longer than a read."""
        self._bulk = Link(servers, timeout_s * self._longer)
        # After so long without an answer, what is there is too old to be read.
        self._last_resort = Link(servers, timeout_s, patience_s=FRESH_S)
        self._doubted: bytes | None = None
        self._copy = Copy(b"", ())
        self._copying = asyncio.Lock()
        self._decode_move = msgspec.msgpack.Decoder(_Move).decode
        self._decode = msgspec.json.Decoder(_Metadata).decode
        self._poll = load_script("poll")
        self._read = load_script("read")
        self._apply = load_script("apply")
        self._invalidate = load_script("invalidate")
        self._claim = load_script("claim")
        self._load = load_script("load")
        self._swap = load_script("swap")
        self._export = load_script("export")
        self._clear = load_script("clear")

    async def open(self) -> None:
        """Connect for reading, so that what is there now is doubted before anybody asks. Raises CacheError."""
        await self.read((), None)

    @property
    def may_switch(self) -> bool:
        """Whether other processes may already use a server that has taken over, and this one not yet."""
        return self._servers.may_switch

    async def eviction_policy(self) -> str:
        """The policy by which Redis may evict the cache; empty if it does not. Raises CacheError."""
        return await self._servers.eviction_policy()

    async def close(self) -> None:
        """Close the connections."""
        for link in (self._reads, self._sync, self._bulk, self._last_resort):
            await link.close()
        await self._servers.close()

    # Reading

    async def read(self, questions: Sequence[Question], max_age_s: float | None) -> Reading | None:
        """Answer what the cache can answer; None if its state is in any doubt.

        `max_age_s` None accepts any age, and a state that was put out of use: for when there is no truth to ask.
        """
        async with self._copying:
            for _ in range(_TRIES_TO_COPY):
                reply = await self._reads.run(
                    self._read,
                    (keys.SCORES, keys.METADATA, keys.STATE, keys.MOVES),
                    -1 if max_age_s is None else int(max_age_s * 1e6),
                    self._copy.token,
                )
                if len(reply) < 8:
                    return None
                now, token, epoch, asof, total, floor, count, known, *moves = reply
                if max_age_s is not None and token == self._doubted:
                    return None
                try:
                    written_in, age_s = _epoch(epoch), (now - int(asof)) / 1e6
                    everyone = _is_everyone(floor, count, int(total))
                except ValueError as error:
                    raise await self._damaged(error, token) from error
                if not written_in:
                    return None
                if known and self._follow(token, moves):
                    if len(self._copy) == count:
                        break
                    _log.error("the copy of the cache was wrong", users=len(self._copy), instead_of=count)
                if not await self._load_copy():
                    return None
            else:
                return None
            copy = self._copy
            copy.everyone, copy.total = everyone, int(total)
            answers = [copy.answer(question) or self._refuse(question) for question in questions]
        return Reading(written_in, age_s, answers)

    def _follow(self, token: bytes, moves: Sequence[bytes]) -> bool:
        """Do the same to the copy; False if these are no moves."""
        try:
            for move in map(self._decode_move, filter(None, moves)):
                users = [User(*user) for user in move.changed]
                self._copy.move(Move(move.keep, move.gone, users))
        except ValueError:
            return False
        self._copy.token = token
        return True

    async def _load_copy(self) -> bool:
        """Copy the whole cache, whatever state it is in; False if there is none. Raises CacheDamaged."""
        export = await self.export()
        if export is None:
            return False
        self._copy = Copy(export.token, export.users)
        return True

    def _refuse(self, question: Question) -> Refuse:
        if isinstance(question, TopQuery) or not self._copy.everyone:
            return Refuse.TOO_DEEP
        return Refuse.NO_SUCH_USER

    async def _doubt_what_is_there(self, evaluate: Evaluate) -> None:
        reply = await evaluate(self._poll, (keys.SCORES, keys.METADATA, keys.STATE, keys.LEASE), "", 0)
        self._doubted = reply[3] if len(reply) > 1 else None

    # Catching up

    async def poll(self, nonce: str, lease_ms: int) -> CacheState | None:
        """The state, None if there is none; tries for the lease under `nonce` unless `lease_ms` is 0."""
        try:
            reply = await self._sync.run(
                self._poll, (keys.SCORES, keys.METADATA, keys.STATE, keys.LEASE), nonce, lease_ms
            )
            return None if len(reply) == 1 else self._state(reply)
        except CacheRefused as error:
            if not _is_wrong_type(error):
                raise
            await self._damaged(error)
        except ValueError as error:
            await self._damaged(error)
        return None

    async def _damaged(self, cause: Exception, token: bytes = b"") -> CacheDamaged:
        """Drop the cache, or only that of `token`, because it cannot be read; returns the error to raise.

        What is not of our making is not mended: without a cache reads go to PostgreSQL, and one is built anew.
        """
        _log.warning("dropped a cache that could not be read", reason=str(cause))
        await self._sync.run(self._clear, (keys.STATE, keys.SCORES, keys.METADATA, keys.LEASE, keys.MOVES), token)
        return CacheDamaged(f"the cache could not be read and was dropped: {cause}")

    def _state(self, reply: Sequence[Any]) -> CacheState:
        now, leased, whole, token, epoch, snapshot, floor, count, total, asof, usable = reply
        if None in reply:
            raise ValueError("its state lacks a field")
        _is_everyone(floor, int(count), int(total))
        return CacheState(
            now,
            leased == 1,
            whole == 1,
            token,
            SnapshotPosition(_epoch(epoch), Snapshot.parse(snapshot.decode())),
            _floor(floor),
            int(count),
            int(total),
            int(asof),
            usable == b"1",
            self._sync.incarnation,
        )

    async def apply(
        self,
        nonce: str,
        state: CacheState,
        moment: SnapshotPosition,
        changed: Sequence[User],
        gone: Sequence[int],
        more: int,
    ) -> tuple[Applied, CacheState]:
        """Move the cache from `state` to `moment`; returns the state it is in then, if that was done.

        `changed` and `gone` are what happened in between to those it may hold, and `more` is by how many users
        there are more now, in it or not. The snapshot must have been taken after `state` was looked at, by polling
        or by the move that made it, whose time becomes `asof`; and the connection must still be the one of then:
        another server may hold the same token and an older truth.
        """
        floor = state.floor
        staying = [user for user in changed if floor is None or floor.admits(user)]
        removed = [user.user_id for user in changed if floor is not None and not floor.admits(user)]
        removed.extend(gone)
        token = secrets.token_hex(8)
        total = state.total + more
        reply = await self._sync.run(
            self._apply,
            (keys.SCORES, keys.METADATA, keys.STATE, keys.LEASE, keys.MOVES),
            nonce,
            state.token,
            token,
            _stored_epoch(moment),
            str(moment.snapshot),
            state.now,
            total,
            self.keep,
            self._spell_move(removed, staying),
            len(removed),
            *map(keys.member, removed),
            *chain.from_iterable(map(_row, staying)),
            incarnation=state.incarnation,
            longer=self._longer if len(changed) + len(gone) > _LOAD_CHUNK else 1,
        )
        if reply is None:
            return Applied.OVERTAKEN, state
        if reply == -1:
            return Applied.TORN, state
        now, count, new_floor = reply
        return Applied.DONE, CacheState(
            now=now,
            leased=False,
            whole=True,
            token=token.encode(),
            position=moment,
            floor=_floor(new_floor),
            count=count,
            total=total,
            asof=state.now,
            usable=True,
            incarnation=state.incarnation,
        )

    def _spell_move(self, gone: Sequence[int], changed: Sequence[User]) -> bytes:
        if len(gone) + len(changed) > _LOAD_CHUNK:
            return b""
        move = msgspec.msgpack.encode(
            _Move(self.keep, list(gone), [msgspec.structs.astuple(user) for user in changed])
        )
        return move if len(move) <= _LONGEST_MOVE else b""

    async def invalidate(self) -> bool:
        """Mark the cache as unusable until a catch-up that begins after this call. False if there was no cache.

        The new token makes every catch-up fail that has begun before.
        """
        for closed_when_idle in (True, False):
            try:
                reply = await self._last_resort.run(
                    self._invalidate, (keys.STATE, keys.MOVES), secrets.token_hex(8)
                )
                return bool(reply)
            except CacheUnavailable as error:
                # Nearly always idle, it may have been closed long ago, and Redis be there all the same.
                if not closed_when_idle or isinstance(error, CacheHangs):
                    raise
        return False

    # Rebuilding

    async def claim(self, nonce: str, ms: int) -> int | None:
        """Claim the rebuild for `ms` milliseconds; Redis's time in microseconds, None if someone has it."""
        reply: int | None = await self._bulk.run(self._claim, (keys.CLAIM,), nonce, ms, LONGEST_CLAIM_MS)
        return reply

    async def install(
        self,
        nonce: str,
        ms: int,
        asof: int,
        moment: SnapshotPosition,
        users: Sequence[User],
        floor: Floor | None,
        total: int,
    ) -> bool:
        """Load `users` beside the cache and swap them in, not yet in use; False if the claim `nonce` ran out."""
        loading = keys.loading(nonce)
        for start in range(0, len(users), _LOAD_CHUNK):
            rows = chain.from_iterable(map(_row, users[start : start + _LOAD_CHUNK]))
            if await self._bulk.run(self._load, (*loading, keys.CLAIM), nonce, ms, *rows) is None:
                return False
        reply = await self._bulk.run(
            self._swap,
            (keys.SCORES, keys.METADATA, keys.STATE, *loading, keys.CLAIM, keys.MOVES),
            nonce,
            len(users),
            secrets.token_hex(8),
            _stored_epoch(moment),
            str(moment.snapshot),
            asof,
            "" if floor is None else f"{floor.total_score},{floor.user_id}",
            total,
        )
        return reply is not None

    # Auditing

    def check_copy(self, export: Export) -> bool:
        """Whether this process's copy, if it is of that state, is it; one that is not is thrown away."""
        if self._copy.token != export.token or self._copy.users() == export.users:
            return True
        self._copy = Copy(b"", ())
        return False

    async def export(self) -> Export | None:
        """The whole cache, None if there is none. One that cannot be read is dropped: raises CacheDamaged."""
        try:
            reply = await self._bulk.run(self._export, (keys.SCORES, keys.METADATA, keys.STATE))
        except CacheRefused as error:
            if not _is_wrong_type(error):
                raise
            raise await self._damaged(error) from error
        if reply is None:
            return None
        try:
            return self._parse_export(reply)
        except ValueError as error:
            raise await self._damaged(error, reply[0]) from error

    def _parse_export(self, reply: Sequence[Any]) -> Export:
        token, epoch, snapshot, floor, total, usable, ranked, described = reply
        if None in reply:
            raise ValueError("its state lacks a field")
        metadata = dict(_groups(described, 2))
        users = []
        for member, score in _groups(ranked, 2):
            user_id, total_score = keys.user_id(member), keys.total_score(score)
            if member not in metadata:
                raise ValueError(f"{member!r} has a score and no metadata")
            try:
                names = self._decode(metadata.pop(member))
            except ValueError as error:
                raise ValueError(f"the metadata of {member!r} are malformed: {error}") from error
            users.append(User(user_id, names.user_name, names.image_url, total_score))
        for member in metadata:
            raise ValueError(f"{member!r} has metadata and no score")
        _is_everyone(floor, len(users), int(total))
        moment = SnapshotPosition(_epoch(epoch), Snapshot.parse(snapshot.decode()))
        return Export(token, moment, _floor(floor), int(total), usable == b"1", users)


def _is_wrong_type(error: CacheRefused) -> bool:
    return "WRONGTYPE" in str(error)


def _is_everyone(floor: bytes, count: int, total: int) -> bool:
    """Whether a cache with this floor and count holds all `total` users. Raises ValueError if it cannot be."""
    if count > total or (floor == b"" and count != total):
        raise ValueError(f"it has {count} of {total} users, and the floor {floor!r}")
    return floor == b""


def _groups(flat: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(flat)] * size, strict=True)


def _row(user: User) -> tuple[str | int | bytes, ...]:
    described = msgspec.json.encode(_Metadata(user.user_name, user.image_url))
    return keys.member(user.user_id), -user.total_score, described


def _stored_epoch(moment: SnapshotPosition) -> str:
    return f"{_FORMAT}|{moment.epoch}"


def _epoch(stored: bytes) -> str:
    written_by, _, epoch = stored.decode().partition("|")
    return epoch if written_by == _FORMAT else ""


def _floor(stored: bytes) -> Floor | None:
    if stored == b"":
        return None
    total_score, user_id = stored.split(b",")
    return Floor(int(total_score), int(user_id))
