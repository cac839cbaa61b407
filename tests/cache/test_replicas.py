"""The replica of each reader follows the cache by its deltas, or is loaded again."""

import pytest
from redis import Redis

from leaderboard.cache import keys
from leaderboard.cache.format import encode_delta
from leaderboard.cache.state import Export
from leaderboard.model import User
from tests.cache.caches import Cache, cached_ids, catch_up, fill, users

pytestmark = pytest.mark.anyio


@pytest.fixture
def replica_loads(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list with one item for each complete load of a replica."""
    counted: list[str] = []
    export = cache.export

    async def counting() -> Export | None:
        counted.append("loaded")
        return await export()

    monkeypatch.setattr(cache, "export", counting)
    return counted


async def test_a_replica_follows_the_cache(cache: Cache, replica_loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(9, "user 9", None, 5000)], [2], added=0)
    await catch_up(cache, [User(1, "user 1", None, -1)], added=0)
    await cache.invalidate()
    assert await cached_ids(cache) is None
    await catch_up(cache, [User(10, "user 10", None, 6000)], added=1)
    assert await cached_ids(cache) == [10, 9, 3, 4, 5, 1]
    assert replica_loads == ["loaded"]


async def test_the_replica_of_a_replaced_cache_is_loaded_again(cache: Cache, replica_loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    await fill(cache, users(3))
    assert await cached_ids(cache) == [1, 2, 3]
    assert len(replica_loads) == 2


async def test_only_the_latest_deltas_are_kept(cache: Cache, server: Redis, replica_loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    for score in range(250):
        await catch_up(cache, [User(5, "user 5", None, 6000 + score)], added=0)
        assert server.llen(keys.DELTAS) <= 200
    assert await cached_ids(cache) == [5, 1, 2, 3, 4]
    assert len(replica_loads) == 2
    for _ in range(250):
        await cache.invalidate()
    assert server.llen(keys.DELTAS) <= 200


async def test_replicas_are_loaded_again_after_a_delta_that_is_too_long_to_keep(
    cache: Cache, server: Redis, replica_loads: list[str]
) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "n" * 20_000, None, 6000)], added=0)
    assert not server.exists(keys.DELTAS)
    assert await cached_ids(cache) == [5, 1, 2, 3, 4]
    assert len(replica_loads) == 2


async def test_replicas_are_loaded_again_after_missing_or_malformed_deltas(
    cache: Cache, server: Redis, replica_loads: list[str]
) -> None:
    await fill(cache, users(5))
    for score in (6000, 7000, 8000, 9000):
        await catch_up(cache, [User(5, "user 5", None, score)], added=0)
        match score:
            case 6000:
                server.delete(keys.DELTAS)
            case 7000:
                server.lset(keys.DELTAS, -1, "not a delta")
            case 8000:
                server.set(keys.DELTAS, "not a delta")
            case 9000:
                set_last_delta(server, b"not a delta")
        assert await cached_ids(cache) == [5, 1, 2, 3, 4]
    assert len(replica_loads) == 4


async def test_a_missing_delta_is_noticed(cache: Cache, server: Redis, replica_loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 6000)], added=0)
    await catch_up(cache, [User(4, "user 4", None, 7000)], added=0)
    assert server.rpop(keys.DELTAS)
    assert await cached_ids(cache) == [4, 5, 1, 2, 3]
    assert len(replica_loads) == 2


def set_last_delta(server: Redis, delta: bytes) -> None:
    """Replaces the content of the last delta. Its two tokens stay."""
    (last,) = server.lrange(keys.DELTAS, -1, -1)
    assert isinstance(last, bytes)
    server.execute_command("LSET", keys.DELTAS, -1, last[:32] + delta)  # type: ignore[no-untyped-call]


async def test_a_replica_that_differs_from_the_cache_is_found_and_dropped(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 1)])
    set_last_delta(server, encode_delta(20, [], [User(5, "user 5", None, 6000)]))
    assert await cached_ids(cache) == [5, 1, 2, 3, 4]
    export = await cache.export()
    assert export is not None
    assert not cache.check_replica(export)
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    assert cache.check_replica(export)


async def test_a_replica_with_another_number_of_users_is_not_read(
    cache: Cache, server: Redis, replica_loads: list[str]
) -> None:
    await fill(cache, users(5))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 1)])
    set_last_delta(server, encode_delta(20, [3], []))
    assert await cached_ids(cache) == [1, 2, 3, 4, 5]
    assert len(replica_loads) == 2
