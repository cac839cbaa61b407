"""The scripts of the cache, each by itself on a real server. What they refuse matters more than what they do."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from leaderboard.cache import keys
from leaderboard.cache.format import encode_delta, member
from leaderboard.cache.reader import CacheReader, Reading
from leaderboard.cache.scripts import Call, Scripts
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.state import CacheState, Export, Floor
from leaderboard.cache.store import CacheStore, NotApplied
from leaderboard.dev import EmbeddedValkey
from leaderboard.errors import CacheDamaged, CacheHangs, CacheRefused, CacheUnavailable, UserNotFound
from leaderboard.model import INT32_MAX, INT32_MIN, Context, EncodedTop, Standing, Top, User, ranked
from leaderboard.queries import ContextQuery, RankingQuery, StandingQuery, TopQuery
from leaderboard.redis_url import parse_redis_url
from leaderboard.snapshot import Snapshot, SnapshotPosition
from tests.system import until

pytestmark = pytest.mark.anyio

EPOCH = "cluster/database/start/reset"
LONG_S = 60.0
"""Longer than a test takes: the greatest age of a state, and how long leases and claims last."""
LONG_MS = int(1000 * LONG_S)
UNKNOWN = 999
FRESH_S = 0.8
NOT_FOUND = "not found"


class Cache(CacheStore):
    """The store and its reader."""

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
    """The best `count`, best first, tied in threes."""
    return [User(n, f"user {n}", None, 1000 - n // 3) for n in range(1, count + 1)]


def floor_of(board: Sequence[User]) -> Floor:
    return Floor(board[-1].total_score, board[-1].user_id)


@pytest.fixture
def server(valkey: EmbeddedValkey) -> Iterator[Redis]:
    """The server, by hand; empty."""
    client = Redis.from_url(valkey.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
async def cache(server: Redis, valkey: EmbeddedValkey) -> AsyncIterator[Cache]:
    async with opened(valkey) as store:
        yield store


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


async def polled(cache: Cache) -> CacheState:
    state = await cache.poll("poller", 0)
    assert state is not None
    return state


async def catch_up(
    cache: Cache, changed: Sequence[User] = (), deleted: Sequence[int] = (), xid: int = 20, added: int = 0
) -> int:
    """Move the cache to `xid`; returns how many users it has then."""
    state = await cache.apply("poller", await polled(cache), position(xid), changed, deleted, added)
    assert isinstance(state, CacheState)
    return state.count


async def fill(cache: Cache, board: Sequence[User], floor: Floor | None = None) -> None:
    """Put these users into the cache and make it valid."""
    await install(cache, board, floor)
    assert await catch_up(cache) == len(board)


async def ask(cache: Cache, *queries: RankingQuery[Any]) -> list[Any] | None:
    reading = await cache.read(queries, LONG_S)
    return None if reading is None else [decoded(result) for result in reading.results]


def decoded(result: object) -> object:
    if isinstance(result, UserNotFound):
        return NOT_FOUND
    return result.decode() if isinstance(result, EncodedTop) else result


async def shown(cache: Cache) -> list[User] | None:
    """All cached users, best first, if the cache can be read."""
    export = await cache.export()
    if export is None or await ask(cache, TopQuery(1)) is None:
        return None
    return export.users


def everything(server: Redis) -> dict[Any, Any]:
    """All keys with their values, and whether they expire."""
    dumped = {}
    for key in server.keys("*"):
        dumped[key] = (server.dump(key), server.pttl(key) >= 0)
    return dumped


def standings(board: Sequence[User], first: int = 1) -> list[Standing]:
    return [ranked(rank, user) for rank, user in enumerate(board, first)]


# Reading


async def test_an_empty_server_answers_nothing(cache: Cache) -> None:
    assert await cache.read([TopQuery(1)], LONG_S) is None
    assert await cache.read([TopQuery(1)], None) is None
    assert await cache.poll("poller", 50) is None
    assert await cache.export() is None
    await cache.invalidate()
    assert await cache.poll("poller", 50) is None


async def test_with_a_floor_it_reaches_exactly_to_its_last_rank(cache: Cache) -> None:
    board = users(20)
    await fill(cache, board, floor_of(board))
    contexts = await ask(cache, *(ContextQuery(user.user_id) for user in board))
    assert contexts is not None
    for rank, context in enumerate(contexts, 1):
        if rank + 5 > 20:
            assert context is None, rank
        else:
            assert isinstance(context, Context)
            around = [*context.above, context.user, *context.below]
            assert around == standings(board)[max(0, rank - 6) : rank + 5]
            assert context.user.rank == rank
    assert await ask(cache, *(StandingQuery(user.user_id) for user in board)) == standings(board)
    assert await ask(cache, TopQuery(20), TopQuery(21)) == [Top(standings(board)), None]
    assert await ask(cache, StandingQuery(UNKNOWN), ContextQuery(UNKNOWN)) == [None] * 2


async def test_without_a_floor_it_knows_all_users_and_which_do_not_exist(cache: Cache) -> None:
    board = users(20)
    await fill(cache, board)
    contexts = await ask(cache, *(ContextQuery(user.user_id) for user in board))
    assert contexts is not None
    for rank, context in enumerate(contexts, 1):
        assert isinstance(context, Context)
        assert [*context.above, context.user, *context.below] == standings(board)[max(0, rank - 6) : rank + 5]
    assert await ask(cache, TopQuery(20), TopQuery(21), TopQuery(100_000)) == [Top(standings(board))] * 3
    assert await ask(cache, StandingQuery(UNKNOWN), ContextQuery(UNKNOWN)) == [NOT_FOUND] * 2


async def test_an_empty_board_is_a_result(cache: Cache) -> None:
    await fill(cache, [])
    assert await ask(cache, TopQuery(10), StandingQuery(1)) == [Top([]), NOT_FOUND]


async def test_the_top_10_000_at_both_ends_of_int32(valkey: EmbeddedValkey, server: Redis) -> None:
    best = [User(INT32_MAX - n, f"user {n}", f"https://example.com/{n}", INT32_MAX - n // 7) for n in range(5_500)]
    worst = [User(n + 1, f"user -{n}", None, INT32_MIN + n) for n in range(5_500)]
    board = sorted(best + worst, key=lambda user: (-user.total_score, user.user_id))
    async with opened(valkey, size=10_000) as cache:
        assert cache.keep == len(board)
        await fill(cache, board, floor_of(board))
        assert await ask(cache, TopQuery(10_000)) == [Top(standings(board[:10_000]))]
        assert await ask(cache, TopQuery(11_000), TopQuery(1)) == [
            Top(standings(board)),
            Top(standings(board[:1])),
        ]
        assert await ask(cache, StandingQuery(board[-1].user_id)) == [ranked(11_000, board[-1])]


async def test_a_state_is_as_old_as_the_poll_before_its_snapshot(cache: Cache, server: Redis) -> None:
    await fill(cache, users(3))
    state = await polled(cache)
    reading = await cache.read([TopQuery(1)], LONG_S)
    assert reading is not None
    assert 0 <= state.age_s <= reading.age_s < LONG_S
    too_old, of_the_future = state.now - 1000 * LONG_MS - 1, state.now + 10_000 * LONG_MS
    for asof, readable in ((too_old, False), (of_the_future, False), (state.now, True)):
        server.hset(keys.STATE, "asof", asof)
        assert (await cache.read([TopQuery(1)], LONG_S) is not None) == readable
        anyhow = await cache.read([TopQuery(1)], None)
        assert anyhow is not None
        assert len(anyhow.results) == 1


async def test_a_cache_written_in_another_format_is_not_read(cache: Cache, server: Redis) -> None:
    await fill(cache, users(3))
    reading = await cache.read([TopQuery(1)], LONG_S)
    assert reading is not None
    assert reading.epoch == EPOCH
    server.hset(keys.STATE, "epoch", f"1|{EPOCH}")
    assert await cache.read([TopQuery(1)], LONG_S) is None
    assert (await polled(cache)).position.epoch == ""


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=128)


@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(named=st.lists(st.tuples(NAMES, st.none() | NAMES), max_size=15))
async def test_any_name_survives(cache: Cache, named: list[tuple[str, str | None]]) -> None:
    board = [User(n, name, image, -n) for n, (name, image) in enumerate(named, 1)]
    half = len(board) // 2
    await install(cache, board[:half])
    assert await catch_up(cache, board[half:], added=len(board) - half) == len(board)
    assert await ask(cache, TopQuery(100)) == [Top(standings(board))]
    assert await shown(cache) == board


# Inconsistent keys


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
    before = await polled(cache)
    assert before.consistent
    assert await ask(cache, TopQuery(1)) is not None, "there is a replica, which does not know about the damage"
    damage(server)
    as_it_was = everything(server)
    assert await ask(cache, TopQuery(1)) is None
    assert await cache.read([TopQuery(1)], None) is None
    assert not (await polled(cache)).consistent
    assert (
        await cache.apply("poller", before, position(30), [User(6, "user 6", None, 6)], [1], -1)
        is NotApplied.INCONSISTENT
    )
    assert everything(server) == as_it_was


@pytest.mark.parametrize("field", ["epoch", "snapshot", "floor", "count", "total", "asof"])
async def test_a_malformed_state_is_dropped(cache: Cache, server: Redis, field: str) -> None:
    await fill(cache, users(5), floor_of(users(5)))
    server.hset(keys.STATE, field, b"\xff")
    assert await cache.poll("poller", 0) is None
    assert everything(server) == {}


async def test_equal_counts_of_different_members_are_dropped_when_read(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    name = server.hget(keys.METADATA, member(4))
    assert name is not None
    server.hdel(keys.METADATA, member(4))
    server.hset(keys.METADATA, member(UNKNOWN), name)
    with pytest.raises(CacheDamaged):
        await ask(cache, TopQuery(3))
    assert everything(server) == {}
    assert await ask(cache, StandingQuery(4)) is None


@pytest.mark.parametrize("key", [keys.SCORES, keys.METADATA, keys.STATE])
async def test_a_key_of_another_type_is_dropped(cache: Cache, server: Redis, key: str) -> None:
    await fill(cache, users(5))
    server.set(key, "what is this")
    with pytest.raises(CacheRefused):
        await cache.read([TopQuery(1)], LONG_S)
    assert await cache.poll("poller", 0) is None
    assert not server.exists(key)
    await fill(cache, users(5))
    assert await ask(cache, TopQuery(1)) is None, "the refusal has ended the reader's connection"
    await catch_up(cache)
    assert await ask(cache, TopQuery(1)) == [Top(standings(users(1)))]


@pytest.mark.parametrize("field", ["token", "epoch", "asof", "count", "floor", "total"])
async def test_a_state_that_lacks_a_field_is_not_read(cache: Cache, server: Redis, field: str) -> None:
    await fill(cache, users(5))
    assert await ask(cache, TopQuery(1)) is not None
    server.hdel(keys.STATE, field)
    assert await cache.read([TopQuery(1), StandingQuery(1)], LONG_S) is None
    assert await cache.read([TopQuery(1)], None) is None


@pytest.mark.parametrize("field", ["count", "floor"])
async def test_a_state_that_has_lost_a_field_is_not_changed(cache: Cache, server: Redis, field: str) -> None:
    await fill(cache, users(5))
    before = await polled(cache)
    server.hdel(keys.STATE, field)
    as_it_was = everything(server)
    assert (
        await cache.apply("poller", before, position(30), [User(6, "user 6", None, 6)], [1], -1)
        is NotApplied.INCONSISTENT
    )
    assert everything(server) == as_it_was


async def test_of_tied_users_at_the_end_the_highest_id_is_trimmed(cache: Cache) -> None:
    await fill(cache, [User(user_id, f"user {user_id}", None, 5) for user_id in range(2, 22)])
    assert await board_in(cache) == list(range(2, 22))
    await catch_up(cache, [User(1, "user 1", None, 5)], added=1)
    export = await cache.export()
    assert export is not None
    assert [user.user_id for user in export.users] == list(range(1, 21))
    assert export.floor == Floor(5, 20)
    assert await board_in(cache) == list(range(1, 21))
    assert cache.check_replica(export)


# Replicas


@pytest.fixture
def loads(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An item for each time that a replica is loaded as a whole."""
    counted: list[str] = []
    export = cache.export

    async def counting() -> Export | None:
        counted.append("loaded")
        return await export()

    monkeypatch.setattr(cache, "export", counting)
    return counted


async def board_in(cache: Cache) -> list[int] | None:
    answers = await ask(cache, TopQuery(20))
    return None if answers is None else [standing.user_id for standing in answers[0].users]


async def test_a_replica_follows_the_cache(cache: Cache, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(9, "user 9", None, 5000)], [2], added=0)
    await catch_up(cache, [User(1, "user 1", None, -1)], added=0)
    await cache.invalidate()
    assert await board_in(cache) is None
    await catch_up(cache, [User(10, "user 10", None, 6000)], added=1)
    assert await board_in(cache) == [10, 9, 3, 4, 5, 1]
    assert loads == ["loaded"]


async def test_the_replica_of_a_replaced_cache_is_loaded_again(cache: Cache, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await fill(cache, users(3))
    assert await board_in(cache) == [1, 2, 3]
    assert len(loads) == 2


async def test_only_the_latest_deltas_are_kept(cache: Cache, server: Redis, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    for score in range(250):
        await catch_up(cache, [User(5, "user 5", None, 6000 + score)], added=0)
        assert server.llen(keys.DELTAS) <= 200
    assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert len(loads) == 2
    for _ in range(250):
        await cache.invalidate()
    assert server.llen(keys.DELTAS) <= 200


async def test_a_delta_too_long_to_be_kept_has_replicas_loaded_again(
    cache: Cache, server: Redis, loads: list[str]
) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "n" * 20_000, None, 6000)], added=0)
    assert not server.exists(keys.DELTAS)
    assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert len(loads) == 2


async def test_missing_or_malformed_deltas_have_replicas_loaded_again(
    cache: Cache, server: Redis, loads: list[str]
) -> None:
    await fill(cache, users(5))
    for score in (6000, 7000, 8000, 9000):
        await catch_up(cache, [User(5, "user 5", None, score)], added=0)
        match score:
            case 6000:
                server.delete(keys.DELTAS)
            case 7000:
                server.lset(keys.DELTAS, -1, "what is this")
            case 8000:
                server.set(keys.DELTAS, "what is this")
            case 9000:
                set_last_delta(server, b"what is this")
        assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert len(loads) == 4


async def test_a_missing_delta_is_noticed(cache: Cache, server: Redis, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 6000)], added=0)
    await catch_up(cache, [User(4, "user 4", None, 7000)], added=0)
    assert server.rpop(keys.DELTAS)
    assert await board_in(cache) == [4, 5, 1, 2, 3]
    assert len(loads) == 2


def set_last_delta(server: Redis, delta: bytes) -> None:
    """Replace what the last delta does."""
    (last,) = server.lrange(keys.DELTAS, -1, -1)
    assert isinstance(last, bytes)
    server.execute_command("LSET", keys.DELTAS, -1, last[:32] + delta)  # type: ignore[no-untyped-call]


async def test_a_replica_that_differs_from_the_cache_is_found_and_dropped(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 1)])
    set_last_delta(server, encode_delta(20, [], [User(5, "user 5", None, 6000)]))
    assert await board_in(cache) == [5, 1, 2, 3, 4]
    export = await cache.export()
    assert export is not None
    assert not cache.check_replica(export)
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    assert cache.check_replica(export)


async def test_a_replica_with_another_number_of_users_is_not_read(
    cache: Cache, server: Redis, loads: list[str]
) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 1)])
    set_last_delta(server, encode_delta(20, [3], []))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    assert len(loads) == 2


# Catching up


async def test_of_two_that_change_one_state_the_second_does_nothing(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    one, two = await polled(cache), await polled(cache)
    assert one.token == two.token
    made = await cache.apply("one", one, position(30), [User(1, "user 1", None, 7)], [2], -1)
    assert isinstance(made, CacheState)
    assert made.count == 4
    as_it_was = everything(server)
    second = await cache.apply("two", two, position(29), [User(1, "user 1", None, 6)], [3], -1)
    assert second is NotApplied.CONFLICT
    assert everything(server) == as_it_was
    state = await polled(cache)
    assert (state.position, state.count, state.asof) == (position(30), 4, one.now)
    assert state.token != one.token


async def test_apply_returns_the_state_that_it_made(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    state = await polled(cache)
    for number in (6, 7, 8):
        seconds, microseconds = server.time()
        new = [User(number, f"user {number}", None, 2000)]
        made = await cache.apply("one", state, position(30 + number), new, [], 1)
        found = await polled(cache)
        assert isinstance(made, CacheState)
        assert replace(made, now=found.now) == found
        assert state.now <= 1_000_000 * seconds + microseconds <= made.now <= found.now
        assert made.asof == state.now
        state = made
    assert state.count == 8


async def test_the_same_snapshot_has_a_new_token_each_time(cache: Cache) -> None:
    await fill(cache, users(5))
    first = await polled(cache)
    assert isinstance(await cache.apply("one", first, first.position, [], [], 0), CacheState)
    second = await polled(cache)
    assert second.position == first.position
    assert second.token != first.token
    assert await cache.apply("two", first, first.position, [], [], 0) is NotApplied.CONFLICT


async def test_apply_sets_users_to_their_present_state(cache: Cache) -> None:
    board = users(20)
    await fill(cache, board, floor_of(board))
    worse, renamed, new = User(1, "user 1", None, 995), User(2, "Two", "image", 1000), User(50, "new", None, 2000)
    on_the_floor, below = User(21, "on it", None, 994), User(3, "user 3", None, 993)
    assert floor_of(board) == Floor(994, 20)
    applied = await catch_up(cache, [worse, renamed, new, on_the_floor, below], [4, UNKNOWN])
    expected = [new, renamed, *board[4:14], worse, *board[14:]]
    expected.sort(key=lambda user: (-user.total_score, user.user_id))
    assert applied == len(expected)
    assert await shown(cache) == expected
    assert (await polled(cache)).floor == Floor(994, 20)


async def test_users_in_excess_are_trimmed_and_raise_the_floor(cache: Cache) -> None:
    assert cache.keep == 20
    board = users(20)
    await fill(cache, board)
    assert (await polled(cache)).floor is None
    new = [User(n, f"user {n}", None, 996) for n in (100, 101, 102)]
    assert await catch_up(cache, new) == 20
    kept = sorted(board + new, key=lambda user: (-user.total_score, user.user_id))[:20]
    assert await shown(cache) == kept
    assert (await polled(cache)).floor == floor_of(kept)
    assert await ask(cache, StandingQuery(20)) == [None]
    # No user below that floor comes in any more, though there is room again.
    assert await catch_up(cache, [User(20, "user 20", None, 994)], [100, 101]) == 18
    assert (await polled(cache)).floor == floor_of(kept)
    assert await ask(cache, StandingQuery(20)) == [None]


async def test_a_malformed_change_writes_nothing(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    state = await polled(cache)
    as_it_was = everything(server)
    good = (member(2), -5, b"{}")
    for bad in (good[:2], ("7", -5, b"{}"), (member(3), "many", b"{}"), (member(10**10), -5, b"{}")):
        with pytest.raises(CacheRefused):
            await cache.catch_up_link.run(
                cache.scripts.apply(
                    nonce="one",
                    expected_token=state.token,
                    new_token="new token",
                    epoch="3|e",
                    snapshot="9:9:",
                    asof=state.now,
                    total=5,
                    keep=20,
                    delta=b"",
                    deleted=[member(1)],
                    rows=(*good, *bad),
                )
            )
        assert everything(server) == as_it_was


async def test_an_invalidation_fails_what_is_under_way_and_ends_with_a_later_poll(
    cache: Cache,
) -> None:
    await fill(cache, users(5))
    under_way = await polled(cache)
    await cache.invalidate()
    assert await ask(cache, TopQuery(1)) is None
    assert await cache.apply("one", under_way, position(30), [], [], 0) is NotApplied.CONFLICT
    assert await ask(cache, TopQuery(1)) is None
    invalid = await polled(cache)
    assert (invalid.valid, invalid.position, invalid.consistent) == (False, position(20), True)
    stale = await cache.read([TopQuery(1)], None)
    assert stale is not None
    assert list(map(decoded, stale.results)) == [Top(standings(users(1)))]
    assert isinstance(await cache.apply("one", invalid, position(30), [], [], 0), CacheState)
    assert await ask(cache, TopQuery(1)) == [Top(standings(users(1)))]


async def test_one_process_has_the_lease_until_it_has_applied_or_the_lease_expires(
    cache: Cache, server: Redis
) -> None:
    await fill(cache, users(5))
    mine = await cache.poll("one", LONG_MS)
    assert mine is not None
    assert mine.leased
    assert 0 < server.pttl(keys.LEASE) <= LONG_MS
    for nonce, lease_ms, leased in (("two", LONG_MS, False), ("one", LONG_MS, True), ("one", 0, False)):
        state = await cache.poll(nonce, lease_ms)
        assert state is not None
        assert state.leased == leased
    # Applying without the lease works: the lease is for speed only. It leaves the other's lease alone.
    assert isinstance(await cache.apply("two", mine, position(30), [], [], 0), CacheState)
    assert server.get(keys.LEASE) == b"one"
    assert isinstance(await cache.apply("one", await polled(cache), position(31), [], [], 0), CacheState)
    assert server.get(keys.LEASE) is None


# Rebuilding


async def test_a_rebuild_is_invalid_until_caught_up(cache: Cache) -> None:
    await fill(cache, users(5))
    before = await polled(cache)
    await install(cache, users(7), xid=15)
    state = await polled(cache)
    assert (state.valid, state.consistent, state.count, state.position) == (False, True, 7, position(15))
    assert await ask(cache, TopQuery(1)) is None
    assert await cache.apply("one", before, position(30), [], [], 0) is NotApplied.CONFLICT
    assert await ask(cache, TopQuery(1)) is None
    assert await catch_up(cache) == 7
    assert await shown(cache) == users(7)


async def test_one_process_at_a_time_rebuilds(cache: Cache, server: Redis) -> None:
    before = server.time()
    asof = await cache.claim("one", LONG_MS)
    after = server.time()
    assert asof is not None
    assert before <= divmod(asof, 1_000_000) <= after
    assert await cache.claim("two", LONG_MS) is None
    assert await cache.install("one", LONG_MS, asof, position(10), users(3), None, 3)
    assert await cache.claim("two", LONG_MS) is not None


class Meddling:
    """Does something by hand before a script of some name runs."""

    def __init__(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = cache.bulk_link.run
        self.before: dict[str, Any] = {}
        monkeypatch.setattr(cache.bulk_link, "run", self)

    async def __call__(self, call: Call, **options: Any) -> Any:
        if call.script.name in self.before:
            self.before[call.script.name]()
        return await self._run(call, **options)


@pytest.fixture
def meddling(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Meddling:
    return Meddling(cache, monkeypatch)


async def test_what_is_being_loaded_expires_and_what_is_swapped_in_does_not(
    cache: Cache, server: Redis, meddling: Meddling
) -> None:
    loading = keys.loading("one").values()
    ages: list[int] = []
    meddling.before["swap"] = lambda: ages.extend(server.pttl(key) for key in (*loading, keys.CLAIM))
    asof = await cache.claim("one", LONG_MS)
    assert asof is not None
    assert await cache.install("one", LONG_MS, asof, position(10), users(2_500), None, 2_500)
    assert len(ages) == 3
    assert all(0 < age <= LONG_MS for age in ages)
    assert [server.pttl(key) for key in (keys.SCORES, keys.METADATA, keys.STATE)] == [-1, -1, -1]
    assert sorted(server.keys("*")) == sorted(key.encode() for key in (keys.SCORES, keys.METADATA, keys.STATE))


async def test_a_claim_lasts_as_long_as_loading_goes_on(cache: Cache, server: Redis, meddling: Meddling) -> None:
    def almost_over() -> None:
        server.pexpire(keys.CLAIM, LONG_MS)

    meddling.before["load"] = almost_over
    left: list[int] = []
    meddling.before["swap"] = lambda: left.append(server.pttl(keys.CLAIM))
    asof = await cache.claim("one", 3 * LONG_MS)
    assert asof is not None
    assert await cache.install("one", 3 * LONG_MS, asof, position(10), users(1_500), None, 1_500)
    assert left[0] > LONG_MS


@pytest.mark.parametrize("when", ["load", "swap"])
@pytest.mark.parametrize("how", ["expired", "stolen"])
@pytest.mark.parametrize("count", [0, 1_500])
async def test_without_its_claim_a_rebuild_does_nothing(
    cache: Cache, server: Redis, meddling: Meddling, when: str, how: str, count: int
) -> None:
    await fill(cache, users(5))
    as_it_was = everything(server)
    asof = await cache.claim("slow", LONG_MS)
    assert asof is not None

    def lose() -> None:
        server.delete(keys.CLAIM)
        if how == "stolen":
            server.set(keys.CLAIM, "other", px=LONG_MS)

    when = when if count else "swap"
    meddling.before[when] = lose
    assert not await cache.install("slow", LONG_MS, asof, position(5), users(count), None, count)
    left = everything(server)
    assert {key: value for key, value in left.items() if key in as_it_was} == as_it_was
    assert all(runs_out for key, (_, runs_out) in left.items() if key not in as_it_was)
    assert len(set(left) - set(as_it_was) - {keys.CLAIM.encode()}) == (2 if when == "swap" and count else 0)
    assert server.pttl(keys.CLAIM) <= LONG_MS
    assert server.get(keys.CLAIM) == (b"other" if how == "stolen" else None)
    assert await shown(cache) == users(5)


@pytest.mark.parametrize("expires_s", [None, 3600])
async def test_a_lease_or_claim_that_lasts_too_long_is_overwritten(
    cache: Cache, server: Redis, expires_s: int | None
) -> None:
    await fill(cache, users(3))
    server.set(keys.LEASE, "somebody", ex=expires_s)
    server.set(keys.CLAIM, "somebody", ex=expires_s)
    state = await cache.poll("poller", 50)
    assert state is not None
    assert state.leased
    assert await cache.claim("rebuilder", 1000) is not None


async def test_a_claim_that_is_not_extended_expires(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    asof = await cache.claim("slow", 20)
    assert asof is not None
    await until(lambda: cache.claim("other", LONG_MS), "the claim has run out")
    assert not await cache.install("slow", 20, asof, position(5), users(3), None, 3)
    assert await shown(cache) == users(5)
    assert server.get(keys.CLAIM) == b"other"


@pytest.mark.parametrize("lost", ["a score", "a name", "all"])
async def test_a_rebuild_that_lost_a_part_is_not_swapped_in(
    cache: Cache, server: Redis, meddling: Meddling, lost: str
) -> None:
    await fill(cache, users(5))
    before = everything(server)
    scores, metadata = keys.loading("one").values()

    def lose() -> None:
        if lost != "a name":
            server.zrem(scores, member(2))
        if lost != "a score":
            server.hdel(metadata, member(2))
        if lost == "all":
            server.delete(scores, metadata)

    meddling.before["swap"] = lose
    asof = await cache.claim("one", LONG_MS)
    assert asof is not None
    assert not await cache.install("one", LONG_MS, asof, position(5), users(7), None, 7)
    assert {key: value for key, value in everything(server).items() if key in before} == before
    assert await shown(cache) == users(5)


# Connections and servers


async def test_a_new_reader_does_not_trust_the_state_it_finds(cache: Cache, valkey: EmbeddedValkey) -> None:
    await fill(cache, users(5))
    async with opened(valkey) as newcomer:
        assert await ask(cache, TopQuery(1)) is not None
        assert await ask(newcomer, TopQuery(1)) is None
        assert await ask(newcomer, TopQuery(1)) is None
        anyhow = await newcomer.read([TopQuery(1)], None)
        assert anyhow is not None
        assert list(map(decoded, anyhow.results)) == [Top(standings(users(1)))]
        await catch_up(cache)
        assert await ask(newcomer, TopQuery(1)) == [Top(standings(users(1)))]


async def test_a_reader_that_lost_its_connection_does_not_trust_the_state_until_it_is_caught_up(
    cache: Cache, server: Redis
) -> None:
    await fill(cache, users(5))
    assert await ask(cache, TopQuery(1)) is not None
    end_connections(server)
    with pytest.raises(CacheUnavailable):
        await ask(cache, TopQuery(1))
    assert await ask(cache, TopQuery(1)) is None
    assert await ask(cache, TopQuery(1)) is None
    with pytest.raises(CacheUnavailable):
        await cache.poll("poller", 0)
    await catch_up(cache)
    assert await ask(cache, TopQuery(1)) == [Top(standings(users(1)))]


def end_connections(server: Redis) -> None:
    """End all connections but this one."""
    assert server.client_kill_filter(_type="normal", skipme=True) > 0


@pytest.mark.parametrize("meanwhile", ["no poll", "a poll"])
async def test_what_was_polled_on_one_connection_is_not_applied_on_another(
    cache: Cache, server: Redis, meanwhile: str
) -> None:
    await fill(cache, users(5))
    state = await polled(cache)
    as_it_was = everything(server)
    end_connections(server)
    if meanwhile == "a poll":
        with pytest.raises(CacheUnavailable):
            await cache.poll("poller", 0)
        again = await polled(cache)
        assert again.token == state.token
        assert again.incarnation != state.incarnation
    for _ in range(2):
        with pytest.raises(CacheUnavailable):
            await cache.apply("one", state, position(30), [], [1], -1)
    assert everything(server) == as_it_was
    await catch_up(cache)


@contextmanager
def hanging(server: EmbeddedValkey) -> Iterator[None]:
    """The server accepts connections and answers nothing."""
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
        await until(lambda: answers(store), "it is used again")
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


async def test_a_process_that_stood_still_does_not_open_the_circuit(valkey: EmbeddedValkey) -> None:
    """The server answers other processes all the while, and they read what they have caught up there."""
    store = Cache(servers(valkey), 0.1, 10)
    try:
        await until(lambda: can_invalidate(store), "there is a connection")
        started = time.monotonic()
        while time.monotonic() - started < 1.5 * FRESH_S:
            trying = asyncio.create_task(store.invalidate())
            await asyncio.sleep(0)
            time.sleep(0.25)  # noqa: ASYNC251 - the process stands still
            (result,) = await asyncio.gather(trying, return_exceptions=True)
            assert isinstance(result, CacheHangs)
        await until(lambda: can_invalidate(store), "it can be invalidated")
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
    """Two servers of the test's own, not yet related."""
    binary = request.config.getoption("--redis-binary")
    settings = {"repl-diskless-sync-delay": "0"}
    with (
        EmbeddedValkey(data_dir / "a", binary=binary, settings=settings) as one,
        EmbeddedValkey(data_dir / "b", binary=binary, settings=settings) as two,
    ):
        yield one, two


async def test_a_replica_of_redis_refuses_everything_and_is_not_trusted_when_promoted(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, replica = pair
    by_hand = Redis.from_url(replica.url)
    async with opened(primary) as of_primary:
        await fill(of_primary, users(5))
        by_hand.config_set("masterauth", primary.password)
        by_hand.replicaof(primary.host, primary.port)

        async def follows() -> bool:
            return by_hand.hget(keys.STATE, "token") == (await polled(of_primary)).token

        await until(follows, "the replica follows")
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

            by_hand.replicaof("NO", "ONE")
            assert await ask(store, TopQuery(1)) is None, "it may be behind"
            await catch_up(store)
            assert await ask(store, TopQuery(1)) == [Top(standings(users(1)))]
        finally:
            await store.close()
            by_hand.close()


async def test_a_demoted_primary_refuses_clients_that_are_still_connected(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    primary, other = pair
    by_hand = Redis.from_url(primary.url)
    async with opened(primary) as store:
        await fill(store, users(5))
        state = await polled(store)
        assert await ask(store, TopQuery(1)) is not None
        by_hand.replicaof(other.host, other.port)
        with pytest.raises((CacheRefused, CacheUnavailable)):
            await store.read([TopQuery(1)], LONG_S)
        with pytest.raises((CacheRefused, CacheUnavailable)):
            await store.apply("one", state, position(30), [], [], 0)
    by_hand.close()


async def test_with_full_memory_it_is_read_and_invalidated_and_not_changed(
    pair: tuple[EmbeddedValkey, EmbeddedValkey],
) -> None:
    by_hand = Redis.from_url(pair[0].url)
    async with opened(pair[0]) as store:
        await fill(store, users(5))
        state = await polled(store)
        by_hand.config_set("maxmemory", 1)
        assert await ask(store, TopQuery(1)) is not None
        as_it_was = everything(by_hand)
        with pytest.raises(CacheRefused):
            await store.apply("one", state, position(30), [], [1], -1)
        assert everything(by_hand) == as_it_was
        with pytest.raises(CacheRefused):
            await store.claim("one", 100)
        await store.invalidate()
        assert await ask(store, TopQuery(1)) is None
    by_hand.close()
