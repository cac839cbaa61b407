"""The cache store and its reader on the shared Valkey, and helpers that fill and read the cache."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis import Redis

from leaderboard.cache.reader import CacheReader, Reading
from leaderboard.cache.scripts import Scripts
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.state import CacheState, Export, Floor
from leaderboard.cache.store import CacheStore
from leaderboard.dev import EmbeddedValkey
from leaderboard.errors import UserNotFound
from leaderboard.model import EncodedTop, Standing, User, ranked
from leaderboard.queries import RankingQuery, TopQuery
from leaderboard.redis_url import parse_redis_url
from leaderboard.snapshot import Snapshot, SnapshotPosition

EPOCH = "cluster/database/start/reset"

LONG_S = 60.0
"""Longer than a test takes. It is the maximum age of a state, and the TTL of leases and claims."""
LONG_MS = int(1000 * LONG_S)
UNKNOWN = 999
"""An id that no user has."""
FRESH_S = 0.8
NOT_FOUND = "not found"


class Cache(CacheStore):
    """The cache store together with its reader."""

    def __init__(self, servers: Servers, timeout_s: float, size: int = 10) -> None:
        super().__init__(servers, Scripts(), timeout_s, size, FRESH_S)
        self.reader = CacheReader(self)

    async def open(self) -> None:
        await self.reader.open()

    async def read(self, queries: Sequence[RankingQuery[Any]], max_age_s: float | None) -> Reading | None:
        return await self.reader.read(queries, max_age_s)

    def check_replica(self, export: Export) -> bool:
        return self.reader.check_replica(export)

    async def close(self) -> None:
        await self.reader.close()
        await super().close()


def position(xid: int) -> SnapshotPosition:
    return SnapshotPosition(EPOCH, Snapshot(xid, xid))


def users(count: int) -> list[User]:
    """Returns `count` users, best first. Each three of them have the same score."""
    return [User(n, f"user {n}", None, 1000 - n // 3) for n in range(1, count + 1)]


def floor_of(board: Sequence[User]) -> Floor:
    return Floor(board[-1].total_score, board[-1].user_id)


def servers(server: EmbeddedValkey) -> Servers:
    return Servers(parse_redis_url(server.url), Login())


@asynccontextmanager
async def opened(server: EmbeddedValkey, size: int = 10) -> AsyncIterator[Cache]:
    store = Cache(servers(server), LONG_S, size)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def install(
    cache: Cache, board: Sequence[User], floor: Floor | None = None, xid: int = 10, total: int = 0
) -> None:
    asof = await cache.claim("filler", LONG_MS)
    assert asof is not None
    assert await cache.install("filler", LONG_MS, asof, position(xid), board, floor, max(total, len(board)))


async def poll(cache: Cache) -> CacheState:
    state = await cache.poll("poller", 0)
    assert state is not None
    return state


async def catch_up(
    cache: Cache, changed: Sequence[User] = (), deleted: Sequence[int] = (), xid: int = 20, added: int = 0
) -> int:
    """Applies changes up to `xid`; returns the number of cached users."""
    state = await cache.apply("poller", await poll(cache), position(xid), changed, deleted, added)
    assert isinstance(state, CacheState)
    return state.count


async def fill(cache: Cache, board: Sequence[User], floor: Floor | None = None) -> None:
    """Fills the cache with these users and makes it valid."""
    await install(cache, board, floor)
    assert await catch_up(cache) == len(board)


async def results_of(cache: Cache, *queries: RankingQuery[Any]) -> list[Any] | None:
    reading = await cache.read(queries, LONG_S)
    return None if reading is None else [decoded(result) for result in reading.results]


def decoded(result: object) -> object:
    if isinstance(result, UserNotFound):
        return NOT_FOUND
    return result.decode() if isinstance(result, EncodedTop) else result


async def cached_users(cache: Cache) -> list[User] | None:
    """Returns all cached users, best first, or None if the cache cannot be read."""
    export = await cache.export()
    if export is None or await results_of(cache, TopQuery(1)) is None:
        return None
    return export.users


def all_keys(server: Redis) -> dict[Any, Any]:
    """Returns the value of each key, and whether the key expires."""
    dumped = {}
    for key in server.keys("*"):
        dumped[key] = (server.dump(key), server.pttl(key) >= 0)
    return dumped


def standings(board: Sequence[User], first: int = 1) -> list[Standing]:
    return [ranked(rank, user) for rank, user in enumerate(board, first)]


async def cached_ids(cache: Cache) -> list[int] | None:
    answers = await results_of(cache, TopQuery(20))
    return None if answers is None else [standing.user_id for standing in answers[0].users]


def end_connections(server: Redis) -> None:
    """Closes all connections but this one."""
    assert server.client_kill_filter(_type="normal", skipme=True) > 0
