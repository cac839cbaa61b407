"""Lost connections, servers that hang, and servers that change their role."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from leaderboard.cache import keys
from leaderboard.dev import EmbeddedValkey
from leaderboard.errors import CacheHangs, CacheRefused, CacheUnavailable
from leaderboard.model import Top
from leaderboard.queries import TopQuery
from tests.cache.caches import (
    FRESH_S,
    LONG_S,
    Cache,
    all_keys,
    catch_up,
    decoded,
    end_connections,
    fill,
    opened,
    poll,
    position,
    results_of,
    servers,
    standings,
    users,
)
from tests.system import until

pytestmark = pytest.mark.anyio


async def test_a_new_reader_does_not_trust_the_state_it_finds(cache: Cache, valkey: EmbeddedValkey) -> None:
    await fill(cache, users(5))
    async with opened(valkey) as new_reader:
        assert await results_of(cache, TopQuery(1)) is not None
        assert await results_of(new_reader, TopQuery(1)) is None
        assert await results_of(new_reader, TopQuery(1)) is None
        stale = await new_reader.read([TopQuery(1)], None)
        assert stale is not None
        assert list(map(decoded, stale.results)) == [Top(standings(users(1)))]
        await catch_up(cache)
        assert await results_of(new_reader, TopQuery(1)) == [Top(standings(users(1)))]


async def test_a_reader_that_lost_its_connection_does_not_trust_the_state_until_it_is_caught_up(
    cache: Cache, server: Redis
) -> None:
    await fill(cache, users(5))
    assert await results_of(cache, TopQuery(1)) is not None
    end_connections(server)
    with pytest.raises(CacheUnavailable):
        await results_of(cache, TopQuery(1))
    assert await results_of(cache, TopQuery(1)) is None
    assert await results_of(cache, TopQuery(1)) is None
    with pytest.raises(CacheUnavailable):
        await cache.poll("poller", 0)
    await catch_up(cache)
    assert await results_of(cache, TopQuery(1)) == [Top(standings(users(1)))]


@pytest.mark.parametrize("meanwhile", ["no poll", "a poll"])
async def test_a_state_polled_on_one_connection_is_not_applied_on_another(
    cache: Cache, server: Redis, meanwhile: str
) -> None:
    await fill(cache, users(5))
    state = await poll(cache)
    keys_before = all_keys(server)
    end_connections(server)
    if meanwhile == "a poll":
        with pytest.raises(CacheUnavailable):
            await cache.poll("poller", 0)
        again = await poll(cache)
        assert again.token == state.token
        assert again.connection_number != state.connection_number
    for _ in range(2):
        with pytest.raises(CacheUnavailable):
            await cache.apply("one", state, position(30), [], [1], -1)
    assert all_keys(server) == keys_before
    await catch_up(cache)


@contextmanager
def hanging(server: EmbeddedValkey) -> Iterator[None]:
    """Pauses the server: it accepts connections and does not answer."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_the_circuit_opens_for_a_server_that_hangs(valkey: EmbeddedValkey) -> None:
    store = Cache(servers(valkey), 0.1, 10)
    try:
        with hanging(valkey):
            with pytest.raises(CacheUnavailable, match="within 100 ms"):
                await store.open()
            for _ in range(3):
                with pytest.raises(CacheUnavailable, match="does not answer"):
                    await store.read([], None)
        await until(lambda: answers(store), "the server is used again")
    finally:
        await store.close()


async def answers(store: Cache) -> bool:
    try:
        await store.read([], None)
    except CacheUnavailable:
        return False
    return True


async def test_the_circuit_for_invalidating_stays_closed_while_the_state_is_fresh(
    valkey: EmbeddedValkey,
) -> None:
    store = Cache(servers(valkey), 0.1, 10)
    tries = 0
    try:
        with hanging(valkey):
            started = time.monotonic()
            error: CacheUnavailable = CacheHangs()
            while isinstance(error, CacheHangs):
                with pytest.raises(CacheUnavailable) as raised:
                    await store.invalidate()
                error = raised.value
                tries += 1
            assert time.monotonic() - started >= FRESH_S
    finally:
        await store.close()
    assert tries > 1


async def test_a_paused_process_does_not_open_the_circuit(valkey: EmbeddedValkey) -> None:
    """Meanwhile the server answers other processes, which read the cache and catch it up."""
    store = Cache(servers(valkey), 0.1, 10)
    try:
        await until(lambda: can_invalidate(store), "there is a connection")
        started = time.monotonic()
        while time.monotonic() - started < 1.5 * FRESH_S:
            trying = asyncio.create_task(store.invalidate())
            await asyncio.sleep(0)
            time.sleep(0.25)  # noqa: ASYNC251 - pauses the whole process
            (result,) = await asyncio.gather(trying, return_exceptions=True)
            assert isinstance(result, CacheHangs)
        await until(lambda: can_invalidate(store), "the cache can be invalidated")
    finally:
        await store.close()


async def can_invalidate(store: Cache) -> bool:
    try:
        await store.invalidate()
    except CacheHangs:
        return False
    return True


@pytest.fixture
def pair(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[tuple[EmbeddedValkey, EmbeddedValkey]]:
    """Two servers that belong to one test. None replicates the other yet."""
    binary = request.config.getoption("--redis-binary")
    settings = {"repl-diskless-sync-delay": "0"}
    with (
        EmbeddedValkey(data_dir / "a", binary=binary, settings=settings) as one,
        EmbeddedValkey(data_dir / "b", binary=binary, settings=settings) as two,
    ):
        yield one, two


async def test_a_redis_replica_rejects_every_script_and_is_untrusted_after_its_promotion(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, replica = pair
    client = Redis.from_url(replica.url)
    async with opened(primary) as on_primary:
        await fill(on_primary, users(5))
        client.config_set("masterauth", primary.password)
        client.replicaof(primary.host, primary.port)

        async def follows() -> bool:
            return client.hget(keys.STATE, "token") == (await poll(on_primary)).token

        await until(follows, "the replica has the state of the primary")
        store = Cache(servers(replica), LONG_S, 10)
        try:
            with pytest.raises(CacheRefused):
                await store.open()
            with pytest.raises(CacheRefused):
                await store.read([TopQuery(1)], LONG_S)
            with pytest.raises(CacheRefused):
                await store.read([TopQuery(1)], None)
            with pytest.raises(CacheRefused):
                await store.poll("poller", 0)
            with pytest.raises(CacheRefused):
                await store.invalidate()
            with pytest.raises(CacheRefused):
                await store.claim("one", 100)

            client.replicaof("NO", "ONE")
            assert await results_of(store, TopQuery(1)) is None, "the replica may have missed writes"
            await catch_up(store)
            assert await results_of(store, TopQuery(1)) == [Top(standings(users(1)))]
        finally:
            await store.close()
            client.close()


async def test_a_demoted_primary_rejects_clients_that_are_still_connected(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, other = pair
    client = Redis.from_url(primary.url)
    async with opened(primary) as store:
        await fill(store, users(5))
        state = await poll(store)
        assert await results_of(store, TopQuery(1)) is not None
        client.replicaof(other.host, other.port)
        with pytest.raises((CacheRefused, CacheUnavailable)):
            await store.read([TopQuery(1)], LONG_S)
        with pytest.raises((CacheRefused, CacheUnavailable)):
            await store.apply("one", state, position(30), [], [], 0)
    client.close()


async def test_a_cache_with_full_memory_is_read_and_invalidated_but_not_changed(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    client = Redis.from_url(pair[0].url)
    async with opened(pair[0]) as store:
        await fill(store, users(5))
        state = await poll(store)
        client.config_set("maxmemory", 1)
        assert await results_of(store, TopQuery(1)) is not None
        keys_before = all_keys(client)
        with pytest.raises(CacheRefused):
            await store.apply("one", state, position(30), [], [1], -1)
        assert all_keys(client) == keys_before
        with pytest.raises(CacheRefused):
            await store.claim("one", 100)
        await store.invalidate()
        assert await results_of(store, TopQuery(1)) is None
    client.close()
