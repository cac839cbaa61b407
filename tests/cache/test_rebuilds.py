"""The scripts that claim, load and swap in a rebuilt cache."""

from typing import Any

import pytest
from redis import Redis

from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.cache.scripts import Call
from leaderboard.cache.store import NotApplied
from leaderboard.queries import TopQuery
from tests.cache.caches import (
    LONG_MS,
    Cache,
    all_keys,
    cached_users,
    catch_up,
    fill,
    install,
    poll,
    position,
    results_of,
    users,
)
from tests.system import until

pytestmark = pytest.mark.anyio


async def test_a_rebuild_is_invalid_until_caught_up(cache: Cache) -> None:
    await fill(cache, users(5))
    before = await poll(cache)
    await install(cache, users(7), xid=15)
    state = await poll(cache)
    assert (state.valid, state.consistent, state.count, state.position) == (False, True, 7, position(15))
    assert await results_of(cache, TopQuery(1)) is None
    assert await cache.apply("one", before, position(30), [], [], 0) is NotApplied.CONFLICT
    assert await results_of(cache, TopQuery(1)) is None
    assert await catch_up(cache) == 7
    assert await cached_users(cache) == users(7)


async def test_one_process_at_a_time_rebuilds(cache: Cache, server: Redis) -> None:
    before = server.time()
    asof = await cache.claim("one", LONG_MS)
    after = server.time()
    assert asof is not None
    assert before <= divmod(asof, 1_000_000) <= after
    assert await cache.claim("two", LONG_MS) is None
    assert await cache.install("one", LONG_MS, asof, position(10), users(3), None, 3)
    assert await cache.claim("two", LONG_MS) is not None


class ScriptActions:
    """Calls functions of a test before scripts run: `actions` has them by the name of the script."""

    def __init__(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = cache.bulk_link.run
        self.actions: dict[str, Any] = {}
        monkeypatch.setattr(cache.bulk_link, "run", self)

    async def __call__(self, call: Call, **options: Any) -> Any:
        if call.script.name in self.actions:
            self.actions[call.script.name]()
        return await self._run(call, **options)


@pytest.fixture
def script_actions(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> ScriptActions:
    return ScriptActions(cache, monkeypatch)


async def test_keys_of_a_running_rebuild_expire_and_swapped_in_keys_do_not(
    cache: Cache, server: Redis, script_actions: ScriptActions
) -> None:
    loading = keys.loading("one").values()
    ages: list[int] = []
    script_actions.actions["swap"] = lambda: ages.extend(server.pttl(key) for key in (*loading, keys.CLAIM))
    asof = await cache.claim("one", LONG_MS)
    assert asof is not None
    assert await cache.install("one", LONG_MS, asof, position(10), users(2_500), None, 2_500)
    assert len(ages) == 3
    assert all(0 < age <= LONG_MS for age in ages)
    assert [server.pttl(key) for key in (keys.SCORES, keys.METADATA, keys.STATE)] == [-1, -1, -1]
    assert sorted(server.keys("*")) == sorted(key.encode() for key in (keys.SCORES, keys.METADATA, keys.STATE))


async def test_loading_extends_the_claim(cache: Cache, server: Redis, script_actions: ScriptActions) -> None:
    def almost_over() -> None:
        server.pexpire(keys.CLAIM, LONG_MS)

    script_actions.actions["load"] = almost_over
    left: list[int] = []
    script_actions.actions["swap"] = lambda: left.append(server.pttl(keys.CLAIM))
    asof = await cache.claim("one", 3 * LONG_MS)
    assert asof is not None
    assert await cache.install("one", 3 * LONG_MS, asof, position(10), users(1_500), None, 1_500)
    assert left[0] > LONG_MS


@pytest.mark.parametrize("when", ["load", "swap"])
@pytest.mark.parametrize("how", ["expired", "stolen"])
@pytest.mark.parametrize("count", [0, 1_500])
async def test_a_rebuild_that_lost_its_claim_changes_nothing(
    cache: Cache, server: Redis, script_actions: ScriptActions, when: str, how: str, count: int
) -> None:
    await fill(cache, users(5))
    keys_before = all_keys(server)
    asof = await cache.claim("slow", LONG_MS)
    assert asof is not None

    def lose() -> None:
        server.delete(keys.CLAIM)
        if how == "stolen":
            server.set(keys.CLAIM, "other", px=LONG_MS)

    when = when if count else "swap"
    script_actions.actions[when] = lose
    assert not await cache.install("slow", LONG_MS, asof, position(5), users(count), None, count)
    left = all_keys(server)
    assert {key: value for key, value in left.items() if key in keys_before} == keys_before
    assert all(expires for key, (_, expires) in left.items() if key not in keys_before)
    assert len(set(left) - set(keys_before) - {keys.CLAIM.encode()}) == (2 if when == "swap" and count else 0)
    assert server.pttl(keys.CLAIM) <= LONG_MS
    assert server.get(keys.CLAIM) == (b"other" if how == "stolen" else None)
    assert await cached_users(cache) == users(5)


@pytest.mark.parametrize("expires_s", [None, 3600])
async def test_a_lease_or_claim_that_lasts_too_long_is_overwritten(
    cache: Cache, server: Redis, expires_s: int | None
) -> None:
    await fill(cache, users(3))
    server.set(keys.LEASE, "another process", ex=expires_s)
    server.set(keys.CLAIM, "another process", ex=expires_s)
    state = await cache.poll("poller", 50)
    assert state is not None
    assert state.leased
    assert await cache.claim("rebuilder", 1000) is not None


async def test_a_claim_that_is_not_extended_expires(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    asof = await cache.claim("slow", 20)
    assert asof is not None
    await until(lambda: cache.claim("other", LONG_MS), "the claim has expired")
    assert not await cache.install("slow", 20, asof, position(5), users(3), None, 3)
    assert await cached_users(cache) == users(5)
    assert server.get(keys.CLAIM) == b"other"


@pytest.mark.parametrize("lost", ["a score", "a name", "all"])
async def test_a_rebuild_that_lost_a_part_is_not_swapped_in(
    cache: Cache, server: Redis, script_actions: ScriptActions, lost: str
) -> None:
    await fill(cache, users(5))
    before = all_keys(server)
    scores, metadata = keys.loading("one").values()

    def lose() -> None:
        if lost != "a name":
            server.zrem(scores, member(2))
        if lost != "a score":
            server.hdel(metadata, member(2))
        if lost == "all":
            server.delete(scores, metadata)

    script_actions.actions["swap"] = lose
    asof = await cache.claim("one", LONG_MS)
    assert asof is not None
    assert not await cache.install("one", LONG_MS, asof, position(5), users(7), None, 7)
    assert {key: value for key, value in all_keys(server).items() if key in before} == before
    assert await cached_users(cache) == users(5)
