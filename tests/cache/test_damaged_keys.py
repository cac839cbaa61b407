"""Keys that are inconsistent, malformed or of another type are not read, and are dropped."""

from typing import Any

import pytest
from redis import Redis

from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.cache.store import NotApplied
from leaderboard.errors import CacheDamaged, CacheRefused
from leaderboard.model import Top, User
from leaderboard.queries import StandingQuery, TopQuery
from tests.cache.caches import (
    LONG_S,
    UNKNOWN,
    Cache,
    all_keys,
    catch_up,
    fill,
    floor_of,
    poll,
    position,
    results_of,
    standings,
    users,
)

pytestmark = pytest.mark.anyio


DAMAGES = {
    "a member less": lambda server: server.zrem(keys.SCORES, member(2)),
    "a member more": lambda server: server.zadd(keys.SCORES, {member(UNKNOWN): 0}),
    "a name less": lambda server: server.hdel(keys.METADATA, member(2)),
    "a name more": lambda server: server.hset(keys.METADATA, member(UNKNOWN), b"{}"),
    "both less": lambda server: (
        server.zrem(keys.SCORES, member(2)),
        server.hdel(keys.METADATA, member(2)),
    ),
    "no scores": lambda server: server.delete(keys.SCORES),
    "no names": lambda server: server.delete(keys.METADATA),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_inconsistent_keys_are_noticed_by_every_script(cache: Cache, server: Redis, damage: Any) -> None:
    await fill(cache, users(5))
    before = await poll(cache)
    assert before.consistent
    assert await results_of(cache, TopQuery(1)) is not None, "the reader has a replica from before the damage"
    damage(server)
    keys_before = all_keys(server)
    assert await results_of(cache, TopQuery(1)) is None
    assert await cache.read([TopQuery(1)], None) is None
    assert not (await poll(cache)).consistent
    assert (
        await cache.apply("poller", before, position(30), [User(6, "user 6", None, 6)], [1], -1)
        is NotApplied.INCONSISTENT
    )
    assert all_keys(server) == keys_before


@pytest.mark.parametrize("field", ["epoch", "snapshot", "floor", "count", "total", "asof"])
async def test_a_malformed_state_is_dropped(cache: Cache, server: Redis, field: str) -> None:
    await fill(cache, users(5), floor_of(users(5)))
    server.hset(keys.STATE, field, b"\xff")
    assert await cache.poll("poller", 0) is None
    assert all_keys(server) == {}


async def test_keys_with_equal_counts_but_different_members_are_dropped_when_read(
    cache: Cache, server: Redis
) -> None:
    await fill(cache, users(5))
    name = server.hget(keys.METADATA, member(4))
    assert name is not None
    server.hdel(keys.METADATA, member(4))
    server.hset(keys.METADATA, member(UNKNOWN), name)
    with pytest.raises(CacheDamaged):
        await results_of(cache, TopQuery(3))
    assert all_keys(server) == {}
    assert await results_of(cache, StandingQuery(4)) is None


@pytest.mark.parametrize("stored", [2.0**53, -(2.0**53), 2.0**63, 1e300, float("inf"), 5.5])
async def test_a_score_out_of_range_is_dropped_when_read(cache: Cache, server: Redis, stored: float) -> None:
    await fill(cache, users(5))
    server.zadd(keys.SCORES, {member(4): stored})
    with pytest.raises(CacheDamaged):
        await results_of(cache, TopQuery(3))
    assert all_keys(server) == {}


@pytest.mark.parametrize("key", [keys.SCORES, keys.METADATA, keys.STATE])
async def test_a_key_of_another_type_is_dropped(cache: Cache, server: Redis, key: str) -> None:
    await fill(cache, users(5))
    server.set(key, "a string")
    with pytest.raises(CacheRefused):
        await cache.read([TopQuery(1)], LONG_S)
    assert await cache.poll("poller", 0) is None
    assert not server.exists(key)
    await fill(cache, users(5))
    assert await results_of(cache, TopQuery(1)) is None, "the error has closed the reader's connection"
    await catch_up(cache)
    assert await results_of(cache, TopQuery(1)) == [Top(standings(users(1)))]


@pytest.mark.parametrize("field", ["token", "epoch", "asof", "count", "floor", "total"])
async def test_a_state_that_lacks_a_field_is_not_read(cache: Cache, server: Redis, field: str) -> None:
    await fill(cache, users(5))
    assert await results_of(cache, TopQuery(1)) is not None
    server.hdel(keys.STATE, field)
    assert await cache.read([TopQuery(1), StandingQuery(1)], LONG_S) is None
    assert await cache.read([TopQuery(1)], None) is None


@pytest.mark.parametrize("field", ["count", "floor"])
async def test_a_state_that_has_lost_a_field_is_not_changed(cache: Cache, server: Redis, field: str) -> None:
    await fill(cache, users(5))
    before = await poll(cache)
    server.hdel(keys.STATE, field)
    keys_before = all_keys(server)
    assert (
        await cache.apply("poller", before, position(30), [User(6, "user 6", None, 6)], [1], -1)
        is NotApplied.INCONSISTENT
    )
    assert all_keys(server) == keys_before
