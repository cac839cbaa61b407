"""The cache's scripts, each by itself against a real server: what they refuse matters more than what they do."""

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
from leaderboard.cache.replica import Move
from leaderboard.cache.script import Script
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.store import FRESH_S, Applied, CacheState, CacheStore, Floor, Refuse
from leaderboard.dev import EmbeddedValkey
from leaderboard.errors import CacheDamaged, CacheHangs, CacheRefused, CacheUnavailable
from leaderboard.model import (
    INT32_MAX,
    INT32_MIN,
    Answer,
    Context,
    ContextQuery,
    EncodedTop,
    Standing,
    StandingQuery,
    Top,
    TopQuery,
    User,
    ranked,
)
from leaderboard.redis_url import parse_redis_url
from leaderboard.snapshot import Snapshot, SnapshotPosition
from tests.system import until

pytestmark = pytest.mark.anyio

EPOCH = "cluster/database/start/reset"
LONG_S = 60.0
"""How old what is read may be, and how long what runs out lasts: for longer than a test takes."""
LONG_MS = int(1000 * LONG_S)
NOBODY = 999


def moment(xid: int) -> SnapshotPosition:
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
async def cache(server: Redis, valkey: EmbeddedValkey) -> AsyncIterator[CacheStore]:
    async with opened(valkey) as store:
        yield store


def servers(server: EmbeddedValkey) -> Servers:
    return Servers(parse_redis_url(server.url), Login())


@asynccontextmanager
async def opened(server: EmbeddedValkey, size: int = 10) -> AsyncIterator[CacheStore]:
    store = CacheStore(servers(server), LONG_S, size)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def install(
    cache: CacheStore, board: Sequence[User], floor: Floor | None = None, xid: int = 10, total: int = 0
) -> None:
    asof = await cache.claim("filler", LONG_MS)
    assert asof is not None
    assert await cache.install("filler", LONG_MS, asof, moment(xid), board, floor, max(total, len(board)))


async def polled(cache: CacheStore) -> CacheState:
    state = await cache.poll("poller", 0)
    assert state is not None
    return state


async def catch_up(
    cache: CacheStore, changed: Sequence[User] = (), gone: Sequence[int] = (), xid: int = 20, more: int = 0
) -> tuple[Applied, int]:
    applied, state = await cache.apply("poller", await polled(cache), moment(xid), changed, gone, more)
    return applied, state.count


async def fill(cache: CacheStore, board: Sequence[User], floor: Floor | None = None) -> None:
    """Put these in and in use."""
    await install(cache, board, floor)
    assert await catch_up(cache) == (Applied.DONE, len(board))


async def ask(cache: CacheStore, *questions: TopQuery | StandingQuery | ContextQuery) -> list[Any] | None:
    reading = await cache.read(questions, LONG_S)
    return None if reading is None else [decoded(answer) for answer in reading.answers]


def decoded(answer: Answer | Refuse) -> Answer | Top | Refuse:
    return answer.decode() if isinstance(answer, EncodedTop) else answer


async def shown(cache: CacheStore) -> list[User] | None:
    """All that is in the cache if it can be read, best first."""
    export = await cache.export()
    if export is None or await ask(cache, TopQuery(1)) is None:
        return None
    return export.users


def everything(server: Redis) -> dict[Any, Any]:
    """All keys with their values; of those that run out, that they do."""
    dumped = {}
    for key in server.keys("*"):
        dumped[key] = (server.dump(key), server.pttl(key) >= 0)
    return dumped


def standings(board: Sequence[User], first: int = 1) -> list[Standing]:
    return [ranked(rank, user) for rank, user in enumerate(board, first)]


# Reading


async def test_an_empty_server_answers_nothing(cache: CacheStore) -> None:
    assert await cache.read([TopQuery(1)], LONG_S) is None
    assert await cache.read([TopQuery(1)], None) is None
    assert await cache.poll("poller", 50) is None
    assert await cache.export() is None
    await cache.invalidate()
    assert await cache.poll("poller", 50) is None


async def test_with_a_floor_it_reaches_exactly_to_its_last_rank(cache: CacheStore) -> None:
    board = users(20)
    await fill(cache, board, floor_of(board))
    contexts = await ask(cache, *(ContextQuery(user.user_id) for user in board))
    assert contexts is not None
    for rank, context in enumerate(contexts, 1):
        if rank + 5 > 20:
            assert context is Refuse.TOO_DEEP, rank
        else:
            assert isinstance(context, Context)
            around = [*context.above, context.user, *context.below]
            assert around == standings(board)[max(0, rank - 6) : rank + 5]
            assert context.user.rank == rank
    assert await ask(cache, *(StandingQuery(user.user_id) for user in board)) == standings(board)
    assert await ask(cache, TopQuery(20), TopQuery(21)) == [Top(standings(board)), Refuse.TOO_DEEP]
    assert await ask(cache, StandingQuery(NOBODY), ContextQuery(NOBODY)) == [Refuse.TOO_DEEP] * 2


async def test_without_a_floor_it_knows_everyone_and_who_is_nobody(cache: CacheStore) -> None:
    board = users(20)
    await fill(cache, board)
    contexts = await ask(cache, *(ContextQuery(user.user_id) for user in board))
    assert contexts is not None
    for rank, context in enumerate(contexts, 1):
        assert isinstance(context, Context)
        assert [*context.above, context.user, *context.below] == standings(board)[max(0, rank - 6) : rank + 5]
    assert await ask(cache, TopQuery(20), TopQuery(21), TopQuery(100_000)) == [Top(standings(board))] * 3
    assert await ask(cache, StandingQuery(NOBODY), ContextQuery(NOBODY)) == [Refuse.NO_SUCH_USER] * 2


async def test_a_board_without_users_is_an_answer(cache: CacheStore) -> None:
    await fill(cache, [])
    assert await ask(cache, TopQuery(10), StandingQuery(1)) == [Top([]), Refuse.NO_SUCH_USER]


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


async def test_age_is_counted_from_before_the_snapshot_and_bounds_what_is_read(
    cache: CacheStore, server: Redis
) -> None:
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
        assert len(anyhow.answers) == 1


async def test_a_cache_written_in_another_format_is_not_read(cache: CacheStore, server: Redis) -> None:
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
async def test_any_name_survives(cache: CacheStore, named: list[tuple[str, str | None]]) -> None:
    board = [User(n, name, image, -n) for n, (name, image) in enumerate(named, 1)]
    half = len(board) // 2
    await install(cache, board[:half])
    assert await catch_up(cache, board[half:], more=len(board) - half) == (Applied.DONE, len(board))
    assert await ask(cache, TopQuery(100)) == [Top(standings(board))]
    assert await shown(cache) == board


# A torn pair


TEARS = {
    "a member less": lambda server: server.zrem(keys.SCORES, keys.member(2)),
    "a member more": lambda server: server.zadd(keys.SCORES, {keys.member(NOBODY): 0}),
    "a name less": lambda server: server.hdel(keys.METADATA, keys.member(2)),
    "a name more": lambda server: server.hset(keys.METADATA, keys.member(NOBODY), b"{}"),
    "both less": lambda server: (
        server.zrem(keys.SCORES, keys.member(2)),
        server.hdel(keys.METADATA, keys.member(2)),
    ),
    "no scores": lambda server: server.delete(keys.SCORES),
    "no names": lambda server: server.delete(keys.METADATA),
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS.keys())
async def test_a_torn_pair_is_noticed_by_whoever_looks(cache: CacheStore, server: Redis, tear: Any) -> None:
    await fill(cache, users(5))
    before = await polled(cache)
    assert before.whole
    assert await ask(cache, TopQuery(1)) is not None, "there is a copy, which knows nothing of what comes now"
    tear(server)
    as_it_was = everything(server)
    assert await ask(cache, TopQuery(1)) is None
    assert await cache.read([TopQuery(1)], None) is None
    assert not (await polled(cache)).whole
    applied, _ = await cache.apply("poller", before, moment(30), [User(6, "user 6", None, 6)], [1], -1)
    assert applied is Applied.TORN
    assert everything(server) == as_it_was


@pytest.mark.parametrize("field", ["epoch", "snapshot", "floor", "count", "total", "asof"])
async def test_a_state_that_makes_no_sense_is_dropped(cache: CacheStore, server: Redis, field: str) -> None:
    await fill(cache, users(5), floor_of(users(5)))
    server.hset(keys.STATE, field, b"\xff")
    assert await cache.poll("poller", 0) is None
    assert everything(server) == {}


async def test_equal_counts_of_different_members_are_dropped_when_read(cache: CacheStore, server: Redis) -> None:
    await fill(cache, users(5))
    name = server.hget(keys.METADATA, keys.member(4))
    assert name is not None
    server.hdel(keys.METADATA, keys.member(4))
    server.hset(keys.METADATA, keys.member(NOBODY), name)
    with pytest.raises(CacheDamaged):
        await ask(cache, TopQuery(3))
    assert everything(server) == {}
    assert await ask(cache, StandingQuery(4)) is None


@pytest.mark.parametrize("key", [keys.SCORES, keys.METADATA, keys.STATE])
async def test_a_key_of_another_type_is_dropped(cache: CacheStore, server: Redis, key: str) -> None:
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
async def test_a_state_that_lacks_a_field_is_not_read(cache: CacheStore, server: Redis, field: str) -> None:
    await fill(cache, users(5))
    assert await ask(cache, TopQuery(1)) is not None
    server.hdel(keys.STATE, field)
    assert await cache.read([TopQuery(1), StandingQuery(1)], LONG_S) is None
    assert await cache.read([TopQuery(1)], None) is None


@pytest.mark.parametrize("field", ["count", "floor"])
async def test_a_state_that_has_lost_a_field_is_not_moved(cache: CacheStore, server: Redis, field: str) -> None:
    await fill(cache, users(5))
    before = await polled(cache)
    server.hdel(keys.STATE, field)
    as_it_was = everything(server)
    applied, _ = await cache.apply("poller", before, moment(30), [User(6, "user 6", None, 6)], [1], -1)
    assert applied is Applied.TORN
    assert everything(server) == as_it_was


async def test_of_those_tied_at_the_end_the_highest_id_is_trimmed(cache: CacheStore) -> None:
    await fill(cache, [User(user_id, f"user {user_id}", None, 5) for user_id in range(2, 22)])
    assert await board_in(cache) == list(range(2, 22))
    await catch_up(cache, [User(1, "user 1", None, 5)], more=1)
    export = await cache.export()
    assert export is not None
    assert [user.user_id for user in export.users] == list(range(1, 21))
    assert export.floor == Floor(5, 20)
    assert await board_in(cache) == list(range(1, 21))
    assert cache.check_copy(export)


# Copies


@pytest.fixture
def loads(cache: CacheStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Something for each time that the cache is copied as a whole."""
    counted: list[str] = []
    load = cache._load_copy

    async def counting() -> bool:
        counted.append("loaded")
        return await load()

    monkeypatch.setattr(cache, "_load_copy", counting)
    return counted


async def board_in(cache: CacheStore) -> list[int] | None:
    answers = await ask(cache, TopQuery(20))
    return None if answers is None else [standing.user_id for standing in answers[0].users]


async def test_a_copy_follows_what_is_done_to_the_cache(cache: CacheStore, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(9, "user 9", None, 5000)], [2], more=0)
    await catch_up(cache, [User(1, "user 1", None, -1)], more=0)
    await cache.invalidate()
    assert await board_in(cache) is None
    await catch_up(cache, [User(10, "user 10", None, 6000)], more=1)
    assert await board_in(cache) == [10, 9, 3, 4, 5, 1]
    assert loads == ["loaded"]


async def test_a_copy_of_what_has_been_replaced_is_loaded_anew(cache: CacheStore, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await fill(cache, users(3))
    assert await board_in(cache) == [1, 2, 3]
    assert len(loads) == 2


async def test_moves_are_kept_for_a_while_only(cache: CacheStore, server: Redis, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    for score in range(250):
        await catch_up(cache, [User(5, "user 5", None, 6000 + score)], more=0)
        assert server.llen(keys.MOVES) <= 200
    assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert len(loads) == 2
    for _ in range(250):
        await cache.invalidate()
    assert server.llen(keys.MOVES) <= 200


async def test_a_move_too_long_to_be_kept_has_copies_loaded_anew(
    cache: CacheStore, server: Redis, loads: list[str]
) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "n" * 20_000, None, 6000)], more=0)
    assert not server.exists(keys.MOVES)
    assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert len(loads) == 2


async def test_moves_that_are_not_there_or_no_moves_have_copies_loaded_anew(
    cache: CacheStore, server: Redis, loads: list[str]
) -> None:
    await fill(cache, users(5))
    for score in (6000, 7000, 8000, 9000):
        await catch_up(cache, [User(5, "user 5", None, score)], more=0)
        match score:
            case 6000:
                server.delete(keys.MOVES)
            case 7000:
                server.lset(keys.MOVES, -1, "what is this")
            case 8000:
                server.set(keys.MOVES, "what is this")
            case 9000:
                (move,) = server.lrange(keys.MOVES, -1, -1)
                assert isinstance(move, bytes)
                server.execute_command("LSET", keys.MOVES, -1, move[:32] + b"what is this")  # type: ignore[no-untyped-call]
        assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert len(loads) == 4


async def test_a_move_that_is_missing_is_noticed(cache: CacheStore, server: Redis, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    await catch_up(cache, [User(5, "user 5", None, 6000)], more=0)
    await catch_up(cache, [User(4, "user 4", None, 7000)], more=0)
    assert server.rpop(keys.MOVES)
    assert await board_in(cache) == [4, 5, 1, 2, 3]
    assert len(loads) == 2


async def test_a_copy_that_is_not_what_it_is_of_is_found_and_thrown_away(cache: CacheStore) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    export = await cache.export()
    assert export is not None
    assert cache.check_copy(export)
    cache._copy.move(Move(20, [], [User(5, "user 5", None, 6000)]))
    assert await board_in(cache) == [5, 1, 2, 3, 4]
    assert not cache.check_copy(export)
    assert await board_in(cache) == [1, 2, 3, 4, 5]


async def test_a_copy_that_has_not_as_many_as_there_are_is_not_read(cache: CacheStore, loads: list[str]) -> None:
    await fill(cache, users(5))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    cache._copy.move(Move(20, [3], []))
    assert await board_in(cache) == [1, 2, 3, 4, 5]
    assert len(loads) == 2


# Moving


async def test_of_two_who_move_one_state_the_second_does_nothing(cache: CacheStore, server: Redis) -> None:
    await fill(cache, users(5))
    one, two = await polled(cache), await polled(cache)
    assert one.token == two.token
    applied, made = await cache.apply("one", one, moment(30), [User(1, "user 1", None, 7)], [2], -1)
    assert (applied, made.count) == (Applied.DONE, 4)
    as_it_was = everything(server)
    overtaken = await cache.apply("two", two, moment(29), [User(1, "user 1", None, 6)], [3], -1)
    assert overtaken[0] is Applied.OVERTAKEN
    assert everything(server) == as_it_was
    state = await polled(cache)
    assert (state.position, state.count, state.asof) == (moment(30), 4, one.now)
    assert state.token != one.token


async def test_a_move_returns_the_state_that_it_made(cache: CacheStore, server: Redis) -> None:
    await fill(cache, users(5))
    state = await polled(cache)
    for number in (6, 7, 8):
        seconds, microseconds = server.time()
        new = [User(number, f"user {number}", None, 2000)]
        applied, made = await cache.apply("one", state, moment(30 + number), new, [], 1)
        found = await polled(cache)
        assert applied is Applied.DONE
        assert replace(made, now=found.now) == found
        assert state.now <= 1_000_000 * seconds + microseconds <= made.now <= found.now
        assert made.asof == state.now
        state = made
    assert state.count == 8


async def test_the_same_snapshot_has_a_new_token_each_time(cache: CacheStore) -> None:
    await fill(cache, users(5))
    first = await polled(cache)
    assert (await cache.apply("one", first, first.position, [], [], 0))[0] is Applied.DONE
    second = await polled(cache)
    assert second.position == first.position
    assert second.token != first.token
    assert (await cache.apply("two", first, first.position, [], [], 0))[0] is Applied.OVERTAKEN


async def test_moving_sets_users_to_what_they_are_now(cache: CacheStore) -> None:
    board = users(20)
    await fill(cache, board, floor_of(board))
    worse, renamed, new = User(1, "user 1", None, 995), User(2, "Two", "image", 1000), User(50, "new", None, 2000)
    on_the_floor, below = User(21, "on it", None, 994), User(3, "user 3", None, 993)
    assert floor_of(board) == Floor(994, 20)
    applied = await catch_up(cache, [worse, renamed, new, on_the_floor, below], [4, NOBODY])
    expected = [new, renamed, *board[4:14], worse, *board[14:]]
    expected.sort(key=lambda user: (-user.total_score, user.user_id))
    assert applied == (Applied.DONE, len(expected))
    assert await shown(cache) == expected
    assert (await polled(cache)).floor == Floor(994, 20)


async def test_too_many_are_trimmed_and_raise_the_floor(cache: CacheStore) -> None:
    assert cache.keep == 20
    board = users(20)
    await fill(cache, board)
    assert (await polled(cache)).floor is None
    new = [User(n, f"user {n}", None, 996) for n in (100, 101, 102)]
    assert await catch_up(cache, new) == (Applied.DONE, 20)
    kept = sorted(board + new, key=lambda user: (-user.total_score, user.user_id))[:20]
    assert await shown(cache) == kept
    assert (await polled(cache)).floor == floor_of(kept)
    assert await ask(cache, StandingQuery(20)) == [Refuse.TOO_DEEP]
    # Below that floor nobody comes in any more, though there is room again.
    assert await catch_up(cache, [User(20, "user 20", None, 994)], [100, 101]) == (Applied.DONE, 18)
    assert (await polled(cache)).floor == floor_of(kept)
    assert await ask(cache, StandingQuery(20)) == [Refuse.TOO_DEEP]


async def test_a_malformed_change_writes_nothing(cache: CacheStore, server: Redis) -> None:
    await fill(cache, users(5))
    state = await polled(cache)
    as_it_was = everything(server)
    all_keys = (keys.SCORES, keys.METADATA, keys.STATE, keys.LEASE, keys.MOVES)
    head = ("one", state.token, "new token", "2|e", "9:9:", state.now, 5, 20, "", 1, keys.member(1))
    good = (keys.member(2), -5, b"{}")
    for bad in (good[:2], ("7", -5, b"{}"), (keys.member(3), "many", b"{}"), (keys.member(10**10), -5, b"{}")):
        with pytest.raises(CacheRefused):
            await cache._sync.run(cache._apply, all_keys, *head, *good, *bad)
        assert everything(server) == as_it_was


async def test_an_invalidation_kills_what_is_under_way_and_only_a_later_look_brings_it_back(
    cache: CacheStore,
) -> None:
    await fill(cache, users(5))
    under_way = await polled(cache)
    await cache.invalidate()
    assert await ask(cache, TopQuery(1)) is None
    assert (await cache.apply("one", under_way, moment(30), [], [], 0))[0] is Applied.OVERTAKEN
    assert await ask(cache, TopQuery(1)) is None
    out_of_use = await polled(cache)
    assert (out_of_use.usable, out_of_use.position, out_of_use.whole) == (False, moment(20), True)
    stale = await cache.read([TopQuery(1)], None)
    assert stale is not None
    assert list(map(decoded, stale.answers)) == [Top(standings(users(1)))]
    assert (await cache.apply("one", out_of_use, moment(30), [], [], 0))[0] is Applied.DONE
    assert await ask(cache, TopQuery(1)) == [Top(standings(users(1)))]


async def test_one_at_a_time_has_the_lease_until_it_has_moved_the_cache_or_time_is_up(
    cache: CacheStore, server: Redis
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
    # Who moves the cache without it, does: it is for speed only. And it leaves the other's lease alone.
    assert (await cache.apply("two", mine, moment(30), [], [], 0))[0] is Applied.DONE
    assert server.get(keys.LEASE) == b"one"
    assert (await cache.apply("one", await polled(cache), moment(31), [], [], 0))[0] is Applied.DONE
    assert server.get(keys.LEASE) is None


# Rebuilding


async def test_what_is_swapped_in_is_out_of_use_until_caught_up(cache: CacheStore) -> None:
    await fill(cache, users(5))
    before = await polled(cache)
    await install(cache, users(7), xid=15)
    state = await polled(cache)
    assert (state.usable, state.whole, state.count, state.position) == (False, True, 7, moment(15))
    assert await ask(cache, TopQuery(1)) is None
    assert (await cache.apply("one", before, moment(30), [], [], 0))[0] is Applied.OVERTAKEN
    assert await ask(cache, TopQuery(1)) is None
    assert await catch_up(cache) == (Applied.DONE, 7)
    assert await shown(cache) == users(7)


async def test_one_at_a_time_rebuilds(cache: CacheStore, server: Redis) -> None:
    before = server.time()
    asof = await cache.claim("one", LONG_MS)
    after = server.time()
    assert asof is not None
    assert before <= divmod(asof, 1_000_000) <= after
    assert await cache.claim("two", LONG_MS) is None
    assert await cache.install("one", LONG_MS, asof, moment(10), users(3), None, 3)
    assert await cache.claim("two", LONG_MS) is not None


class Meddling:
    """Does something by hand whenever a script of some name is about to run."""

    def __init__(self, cache: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = cache._bulk.run
        self.before: dict[str, Any] = {}
        monkeypatch.setattr(cache._bulk, "run", self)

    async def __call__(self, script: Script, *arguments: Any, **options: Any) -> Any:
        if script.name in self.before:
            self.before[script.name]()
        return await self._run(script, *arguments, **options)


@pytest.fixture
def meddling(cache: CacheStore, monkeypatch: pytest.MonkeyPatch) -> Meddling:
    return Meddling(cache, monkeypatch)


async def test_what_is_being_loaded_goes_away_by_itself_and_what_is_swapped_in_stays(
    cache: CacheStore, server: Redis, meddling: Meddling
) -> None:
    loading = keys.loading("one")
    ages: list[int] = []
    meddling.before["swap"] = lambda: ages.extend(server.pttl(key) for key in (*loading, keys.CLAIM))
    asof = await cache.claim("one", LONG_MS)
    assert asof is not None
    assert await cache.install("one", LONG_MS, asof, moment(10), users(2_500), None, 2_500)
    assert len(ages) == 3
    assert all(0 < age <= LONG_MS for age in ages)
    assert [server.pttl(key) for key in (keys.SCORES, keys.METADATA, keys.STATE)] == [-1, -1, -1]
    assert sorted(server.keys("*")) == sorted(key.encode() for key in (keys.SCORES, keys.METADATA, keys.STATE))


async def test_a_claim_lasts_as_long_as_loading_goes_on(
    cache: CacheStore, server: Redis, meddling: Meddling
) -> None:
    def almost_over() -> None:
        server.pexpire(keys.CLAIM, LONG_MS)

    meddling.before["load"] = almost_over
    left: list[int] = []
    meddling.before["swap"] = lambda: left.append(server.pttl(keys.CLAIM))
    asof = await cache.claim("one", 3 * LONG_MS)
    assert asof is not None
    assert await cache.install("one", 3 * LONG_MS, asof, moment(10), users(1_500), None, 1_500)
    assert left[0] > LONG_MS


@pytest.mark.parametrize("when", ["load", "swap"])
@pytest.mark.parametrize("how", ["expired", "stolen"])
@pytest.mark.parametrize("count", [0, 1_500])
async def test_without_its_claim_a_rebuild_does_nothing(
    cache: CacheStore, server: Redis, meddling: Meddling, when: str, how: str, count: int
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
    assert not await cache.install("slow", LONG_MS, asof, moment(5), users(count), None, count)
    left = everything(server)
    assert {key: value for key, value in left.items() if key in as_it_was} == as_it_was
    assert all(runs_out for key, (_, runs_out) in left.items() if key not in as_it_was)
    assert len(set(left) - set(as_it_was) - {keys.CLAIM.encode()}) == (2 if when == "swap" and count else 0)
    assert server.pttl(keys.CLAIM) <= LONG_MS
    assert server.get(keys.CLAIM) == (b"other" if how == "stolen" else None)
    assert await shown(cache) == users(5)


@pytest.mark.parametrize("expires_s", [None, 3600])
async def test_a_lease_or_a_claim_that_lasts_too_long_counts_as_free(
    cache: CacheStore, server: Redis, expires_s: int | None
) -> None:
    await fill(cache, users(3))
    server.set(keys.LEASE, "somebody", ex=expires_s)
    server.set(keys.CLAIM, "somebody", ex=expires_s)
    state = await cache.poll("poller", 50)
    assert state is not None
    assert state.leased
    assert await cache.claim("rebuilder", 1000) is not None


async def test_a_claim_that_nobody_extends_runs_out(cache: CacheStore, server: Redis) -> None:
    await fill(cache, users(5))
    asof = await cache.claim("slow", 20)
    assert asof is not None
    await until(lambda: cache.claim("other", LONG_MS), "the claim has run out")
    assert not await cache.install("slow", 20, asof, moment(5), users(3), None, 3)
    assert await shown(cache) == users(5)
    assert server.get(keys.CLAIM) == b"other"


@pytest.mark.parametrize("lost", ["a score", "a name", "all"])
async def test_a_rebuild_that_lost_a_part_is_not_swapped_in(
    cache: CacheStore, server: Redis, meddling: Meddling, lost: str
) -> None:
    await fill(cache, users(5))
    before = everything(server)
    scores, metadata = keys.loading("one")

    def lose() -> None:
        if lost != "a name":
            server.zrem(scores, keys.member(2))
        if lost != "a score":
            server.hdel(metadata, keys.member(2))
        if lost == "all":
            server.delete(scores, metadata)

    meddling.before["swap"] = lose
    asof = await cache.claim("one", LONG_MS)
    assert asof is not None
    assert not await cache.install("one", LONG_MS, asof, moment(5), users(7), None, 7)
    assert {key: value for key, value in everything(server).items() if key in before} == before
    assert await shown(cache) == users(5)


# Connections and servers


async def test_a_reader_that_has_just_connected_doubts_what_is_there(
    cache: CacheStore, valkey: EmbeddedValkey
) -> None:
    await fill(cache, users(5))
    async with opened(valkey) as newcomer:
        assert await ask(cache, TopQuery(1)) is not None
        assert await ask(newcomer, TopQuery(1)) is None
        assert await ask(newcomer, TopQuery(1)) is None
        anyhow = await newcomer.read([TopQuery(1)], None)
        assert anyhow is not None
        assert list(map(decoded, anyhow.answers)) == [Top(standings(users(1)))]
        await catch_up(cache)
        assert await ask(newcomer, TopQuery(1)) == [Top(standings(users(1)))]


async def test_a_reader_that_has_lost_its_connection_doubts_until_somebody_has_caught_up(
    cache: CacheStore, server: Redis
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


@pytest.mark.parametrize("meanwhile", ["nobody asks", "somebody asks"])
async def test_what_was_polled_on_one_connection_is_not_applied_on_another(
    cache: CacheStore, server: Redis, meanwhile: str
) -> None:
    await fill(cache, users(5))
    state = await polled(cache)
    as_it_was = everything(server)
    end_connections(server)
    if meanwhile == "somebody asks":
        with pytest.raises(CacheUnavailable):
            await cache.poll("poller", 0)
        again = await polled(cache)
        assert again.token == state.token
        assert again.incarnation != state.incarnation
    for _ in range(2):
        with pytest.raises(CacheUnavailable):
            await cache.apply("one", state, moment(30), [], [1], -1)
    assert everything(server) == as_it_was
    assert (await catch_up(cache))[0] is Applied.DONE


@contextmanager
def hanging(server: EmbeddedValkey) -> Iterator[None]:
    """It takes connections and answers nothing."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_server_that_hangs_is_given_up_and_left_alone(valkey: EmbeddedValkey) -> None:
    store = CacheStore(servers(valkey), 0.1, 10)
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


async def answers(store: CacheStore) -> bool:
    try:
        await store.read([], None)
    except CacheUnavailable:
        return False
    return True


async def test_a_server_that_hangs_is_not_given_up_as_long_as_it_may_go_on_with_what_is_read(
    valkey: EmbeddedValkey,
) -> None:
    store = CacheStore(servers(valkey), 0.1, 10)
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


async def test_a_process_that_stood_still_does_not_take_the_server_for_given_up(valkey: EmbeddedValkey) -> None:
    """The server would have answered all the while, and others read from it what they have caught up there."""
    store = CacheStore(servers(valkey), 0.1, 10)
    try:
        await until(lambda: is_put_out_of_use(store), "there is a connection")
        started = time.monotonic()
        while time.monotonic() - started < 1.5 * FRESH_S:
            trying = asyncio.create_task(store.invalidate())
            await asyncio.sleep(0)
            time.sleep(0.25)  # noqa: ASYNC251 - nothing of this process runs now
            (result,) = await asyncio.gather(trying, return_exceptions=True)
            assert isinstance(result, CacheHangs)
        await until(lambda: is_put_out_of_use(store), "it is put out of use")
    finally:
        await store.close()


async def is_put_out_of_use(store: CacheStore) -> bool:
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


async def test_a_replica_refuses_everything_and_is_doubted_when_promoted(
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
        store = CacheStore(servers(replica), LONG_S, 10)
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
            assert (await catch_up(store))[0] is Applied.DONE
            assert await ask(store, TopQuery(1)) == [Top(standings(users(1)))]
        finally:
            await store.close()
            by_hand.close()


async def test_a_demoted_primary_refuses_who_is_still_connected(
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
            await store.apply("one", state, moment(30), [], [], 0)
    by_hand.close()


async def test_with_memory_full_it_is_read_and_invalidated_and_not_moved(
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
            await store.apply("one", state, moment(30), [], [1], -1)
        assert everything(by_hand) == as_it_was
        with pytest.raises(CacheRefused):
            await store.claim("one", 100)
        await store.invalidate()
        assert await ask(store, TopQuery(1)) is None
    by_hand.close()
