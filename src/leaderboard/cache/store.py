"""Every change of the cache, and every look at it that leads to one.

Each method runs one script, so it happens at one instant in Redis. When to call which is decided in `sync/`.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import structlog

from leaderboard.cache.format import encode_delta, encode_epoch, encode_users, member
from leaderboard.cache.link import Link
from leaderboard.cache.scripts import Call, Scripts
from leaderboard.cache.seasons import SeasonMove
from leaderboard.cache.servers import Servers
from leaderboard.cache.state import CacheState, Export, Floor, by_name, staying_and_leaving
from leaderboard.errors import CacheDamaged, CacheHangs, CacheRefused, CacheUnavailable
from leaderboard.model import NEIGHBOURS, User
from leaderboard.snapshot import SnapshotPosition

MAX_CLAIM_MS = 60_000
"""The longest that a process may claim the rebuild for."""

IDLE_MS = 600_000
"""A season that is not read for so long is evicted."""

_BULK_TIMEOUT_FACTOR = 10
"""A script that touches all of the cache may take so many times longer, for each 10,000 users."""
LOAD_CHUNK = 1000

_log = structlog.get_logger(__name__)


class NotApplied(Enum):
    """Why `apply` did nothing."""

    CONFLICT = "another process has changed the token"
    INCONSISTENT = "the keys do not agree with the state"


class CacheStore:
    """Writes the cache, on three connections: for catching up, for long scripts, and for invalidating.

    Invalidating has its own connection because it must not wait behind a call that hangs, nor give up because of
    one: this process may have stood still while others went on reading.
    """

    def __init__(self, servers: Servers, scripts: Scripts, timeout_s: float, size: int, fresh_s: float) -> None:
        self._servers = servers
        self.scripts = scripts
        self._timeout_s = timeout_s
        self.size = size
        self.keep = size + max(size // 10, 2 * NEIGHBOURS)
        """The most users in the cache. The excess over `size` lets scores fall without a rebuild each time."""
        self._bulk_factor = _BULK_TIMEOUT_FACTOR * max(1, size // 10_000)
        self.catch_up_link = Link(servers, timeout_s)
        self.bulk_link = Link(servers, timeout_s * self._bulk_factor)
        # After `fresh_s` without an answer, what is in Redis is too old to be read.
        self._invalidation_link = Link(servers, timeout_s, patience_s=fresh_s)

    def link(self, on_connect: Callable[[Callable[[Call], Awaitable[Any]]], Awaitable[None]]) -> Link:
        """Return another connection to the same servers."""
        return Link(self._servers, self._timeout_s, on_connect=on_connect)

    @property
    def may_switch(self) -> bool:
        """Whether other processes may already use a server that has taken over, and this one not yet."""
        return self._servers.may_switch

    async def eviction_policy(self) -> str:
        """Return the policy by which Redis may evict the cache; empty if it does not. Raises CacheError."""
        return await self._servers.eviction_policy()

    async def close(self) -> None:
        """Close the connections."""
        for link in (self.catch_up_link, self.bulk_link, self._invalidation_link):
            await link.close()
        await self._servers.close()

    # Catching up

    async def poll(self, nonce: str, lease_ms: int) -> CacheState | None:
        """Return the state, None if there is none; tries for the lease as `nonce` unless `lease_ms` is 0.

        Raises CacheError. A state that another program has written is dropped.
        """
        try:
            reply = await self.catch_up_link.run(self.scripts.poll(nonce=nonce, lease_ms=lease_ms))
            return None if len(reply) == 1 else CacheState.parse(reply, self.catch_up_link.connection_number)
        except CacheRefused as error:
            if not is_wrong_type(error):
                raise
            await self.drop_damaged(error)
        except ValueError as error:
            await self.drop_damaged(error)
        return None

    async def apply(
        self,
        nonce: str,
        state: CacheState,
        position: SnapshotPosition,
        changed: Sequence[User],
        deleted: Sequence[int],
        added: int,
        seasons: Sequence[SeasonMove] = (),
    ) -> CacheState | NotApplied:
        """Move the cache from `state` to `position`; returns its new state.

        `changed` and `deleted` are the users that changed in between, as far as the cache may hold them; `added`
        is how many more users there are, in the cache or not; all this is about the board `default`. `seasons` are
        the other seasons that change.

        The snapshot must have been taken after `state` was read, whose time becomes `asof`. The connection must
        still be the same: another server may have the same token and older users. Raises CacheError.
        """
        staying, leaving = staying_and_leaving(state.floor, changed, deleted)
        token = secrets.token_hex(8)
        total = state.total + added
        many = len(changed) + len(deleted) + sum(len(move.changed) + len(move.deleted) for move in seasons)
        reply = await self.catch_up_link.run(
            self.scripts.apply(
                nonce=nonce,
                expected_token=state.token,
                new_token=token,
                epoch=encode_epoch(position),
                snapshot=str(position.snapshot),
                asof=state.now,
                total=total,
                keep=self.keep,
                delta=encode_delta(self.keep, leaving, staying),
                deleted=list(map(member, leaving)),
                rows=list(encode_users(staying)),
                idle_ms=IDLE_MS,
                seasons=[argument for move in seasons for argument in move.arguments(self.keep)],
            ),
            connection_number=state.connection_number,
            timeout_factor=self._bulk_factor if many > LOAD_CHUNK else 1,
        )
        if reply is None:
            return NotApplied.CONFLICT
        if reply == -1:
            return NotApplied.INCONSISTENT
        now, count, new_floor, pending, entries = reply
        return CacheState(
            now=now,
            leased=False,
            consistent=True,
            token=token.encode(),
            position=position,
            floor=Floor.parse(new_floor),
            count=count,
            total=total,
            asof=state.now,
            valid=True,
            connection_number=state.connection_number,
            seasons=_with_changes(state.seasons, by_name(entries)),
            pending=None if pending else {},
        )

    async def invalidate(self) -> bool:
        """Make the cache invalid until a catching up that begins after this call; False if there was none.

        The new token makes every catching up fail that began before. Raises CacheError.
        """
        for may_be_closed in (True, False):
            try:
                return bool(
                    await self._invalidation_link.run(self.scripts.invalidate(new_token=secrets.token_hex(8)))
                )
            except CacheUnavailable as error:
                # The connection is idle nearly always. It may have been closed long ago while Redis is well.
                if not may_be_closed or isinstance(error, CacheHangs):
                    raise
        return False

    # Rebuilding

    async def claim(self, nonce: str, claim_ms: int) -> int | None:
        """Claim the rebuild; returns Redis's time in microseconds, None if another process has the claim."""
        call = self.scripts.claim(nonce=nonce, claim_ms=claim_ms, max_claim_ms=MAX_CLAIM_MS)
        asof: int | None = await self.bulk_link.run(call)
        return asof

    async def install(
        self,
        nonce: str,
        claim_ms: int,
        asof: int,
        position: SnapshotPosition,
        users: Sequence[User],
        floor: Floor | None,
        total: int,
    ) -> bool:
        """Load `users` beside the cache and swap them in, invalid; returns False if the claim has expired."""
        for start in range(0, len(users), LOAD_CHUNK):
            rows = encode_users(users[start : start + LOAD_CHUNK])
            if await self.bulk_link.run(self.scripts.load(nonce=nonce, claim_ms=claim_ms, rows=rows)) is None:
                return False
        reply = await self.bulk_link.run(
            self.scripts.swap(
                nonce=nonce,
                count=len(users),
                new_token=secrets.token_hex(8),
                epoch=encode_epoch(position),
                snapshot=str(position.snapshot),
                asof=asof,
                floor="" if floor is None else str(floor),
                total=total,
            )
        )
        return reply is not None

    # Reading all of it

    async def export(self) -> Export | None:
        """Return the whole cache, None if there is none.

        Raises CacheError, and CacheDamaged after dropping a cache that another program has written.
        """
        try:
            reply = await self.bulk_link.run(self.scripts.export())
        except CacheRefused as error:
            if not is_wrong_type(error):
                raise
            raise await self.drop_damaged(error) from error
        if reply is None:
            return None
        try:
            return Export.parse(reply)
        except ValueError as error:
            raise await self.drop_damaged(error, reply[0]) from error

    async def drop_damaged(self, cause: Exception, token: bytes = b"") -> CacheDamaged:
        """Delete a cache that cannot be read, or only the one of `token`; returns the error to raise.

        It is not repaired: without a cache, reads go to PostgreSQL, and a new one is built.
        """
        _log.warning("dropped a cache that could not be read", reason=str(cause))
        await self.catch_up_link.run(self.scripts.clear(unreadable_token=token))
        return CacheDamaged(f"the cache could not be read and was dropped: {cause}")


def _with_changes(seasons: Mapping[str, bytes] | None, changed: Mapping[str, bytes]) -> Mapping[str, bytes] | None:
    """Return the entries with those that changed; an empty one is of a season that is not cached now."""
    if seasons is None or not changed:
        return seasons
    return {name: entry for name, entry in {**seasons, **changed}.items() if entry}


def is_wrong_type(error: CacheRefused) -> bool:
    """Return whether a script met a key of another type, which another program must have written."""
    return "WRONGTYPE" in str(error)
