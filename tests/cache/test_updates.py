"""The scripts that catch the cache up, invalidate it and hand out the lease."""

from dataclasses import replace

import pytest
from redis import Redis

from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.cache.state import CacheState, Floor
from leaderboard.cache.store import NotApplied
from leaderboard.errors import CacheRefused
from leaderboard.model import SCORE_MAX, SCORE_MIN, Top, User, ranked
from leaderboard.queries import StandingQuery, TopQuery
from tests.cache.caches import (
    LONG_MS,
    UNKNOWN,
    Cache,
    all_keys,
    cached_ids,
    cached_users,
    catch_up,
    decoded,
    fill,
    floor_of,
    poll,
    position,
    results_of,
    standings,
    users,
)

pytestmark = pytest.mark.anyio

ENDS = [SCORE_MAX, SCORE_MAX - 1, SCORE_MAX - 2, 2**31, -(2**31) - 1, SCORE_MIN + 2, SCORE_MIN + 1, SCORE_MIN]
"""The ends of the range and their neighbours, and just beyond int32, best first."""


async def test_the_highest_id_of_tied_users_is_trimmed_first(cache: Cache) -> None:
    await fill(cache, [User(user_id, f"user {user_id}", None, 5) for user_id in range(2, 22)])
    assert await cached_ids(cache) == list(range(2, 22))
    await catch_up(cache, [User(1, "user 1", None, 5)], added=1)
    export = await cache.export()
    assert export is not None
    assert [user.user_id for user in export.users] == list(range(1, 21))
    assert export.floor == Floor(5, 20)
    assert await cached_ids(cache) == list(range(1, 21))
    assert cache.check_replica(export)


async def test_the_second_of_two_updates_to_one_state_changes_nothing(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    one, two = await poll(cache), await poll(cache)
    assert one.token == two.token
    made = await cache.apply("one", one, position(30), [User(1, "user 1", None, 7)], [2], -1)
    assert isinstance(made, CacheState)
    assert made.count == 4
    keys_before = all_keys(server)
    second = await cache.apply("two", two, position(29), [User(1, "user 1", None, 6)], [3], -1)
    assert second is NotApplied.CONFLICT
    assert all_keys(server) == keys_before
    state = await poll(cache)
    assert (state.position, state.count, state.asof) == (position(30), 4, one.now)
    assert state.token != one.token


async def test_apply_returns_the_state_that_it_made(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    state = await poll(cache)
    for number in (6, 7, 8):
        seconds, microseconds = server.time()
        new = [User(number, f"user {number}", None, 2000)]
        made = await cache.apply("one", state, position(30 + number), new, [], 1)
        found = await poll(cache)
        assert isinstance(made, CacheState)
        assert replace(made, now=found.now, seasons=found.seasons, pending=found.pending) == found
        assert state.now <= 1_000_000 * seconds + microseconds <= made.now <= found.now
        assert made.asof == state.now
        state = made
    assert state.count == 8


async def test_the_same_snapshot_has_a_new_token_each_time(cache: Cache) -> None:
    await fill(cache, users(5))
    first = await poll(cache)
    assert isinstance(await cache.apply("one", first, first.position, [], [], 0), CacheState)
    second = await poll(cache)
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
    assert await cached_users(cache) == expected
    assert (await poll(cache)).floor == Floor(994, 20)


async def test_users_in_excess_are_trimmed_and_raise_the_floor(cache: Cache) -> None:
    assert cache.keep == 20
    board = users(20)
    await fill(cache, board)
    assert (await poll(cache)).floor is None
    new = [User(n, f"user {n}", None, 996) for n in (100, 101, 102)]
    assert await catch_up(cache, new) == 20
    kept = sorted(board + new, key=lambda user: (-user.total_score, user.user_id))[:20]
    assert await cached_users(cache) == kept
    assert (await poll(cache)).floor == floor_of(kept)
    assert await results_of(cache, StandingQuery(20)) == [None]
    # The floor stays, so that a user below it is not cached even when there is room.
    assert await catch_up(cache, [User(20, "user 20", None, 994)], [100, 101]) == 18
    assert (await poll(cache)).floor == floor_of(kept)
    assert await results_of(cache, StandingQuery(20)) == [None]


@pytest.mark.parametrize("score", [*ENDS, 10**15 + 1, 10**14, 0, -(10**14), -(10**15) - 1])
async def test_a_floor_that_was_raised_is_exact(cache: Cache, server: Redis, score: int) -> None:
    await fill(cache, [User(user_id, f"user {user_id}", None, score) for user_id in range(2, 22)])
    assert await catch_up(cache, [User(1, "user 1", None, score)], added=1) == 20
    assert server.hget(keys.STATE, "floor") == f"{score},20".encode()
    assert (await poll(cache)).floor == Floor(score, 20)
    assert await results_of(cache, StandingQuery(20)) == [ranked(20, User(20, "user 20", None, score))]


async def test_neighbouring_scores_at_both_ends_stay_apart(cache: Cache) -> None:
    board = [User(100 - place, f"user {place}", None, score) for place, score in enumerate(ENDS)]
    await fill(cache, board[::2])
    assert await results_of(cache, TopQuery(20)) == [Top(standings(board[::2]))]
    # The replica is moved by the delta.
    await catch_up(cache, board[1::2], added=len(board[1::2]))
    assert await results_of(cache, TopQuery(20)) == [Top(standings(board))]
    swapped = [User(user.user_id, user.user_name, None, -user.total_score) for user in board]
    await catch_up(cache, swapped)
    swapped.reverse()
    assert await results_of(cache, TopQuery(20)) == [Top(standings(swapped))]
    export = await cache.export()
    assert export is not None
    assert export.users == swapped
    assert cache.check_replica(export)


async def test_a_malformed_change_writes_nothing(cache: Cache, server: Redis) -> None:
    await fill(cache, users(5))
    state = await poll(cache)
    keys_before = all_keys(server)
    good = (member(2), -5, b"{}")
    for bad in (good[:2], ("7", -5, b"{}"), (member(3), "many", b"{}"), (member(10**10), -5, b"{}")):
        with pytest.raises(CacheRefused):
            await cache.catch_up_link.run(
                cache.scripts.apply(
                    nonce="one",
                    expected_token=state.token,
                    new_token="new token",
                    epoch="5|e",
                    snapshot="9:9:",
                    asof=state.now,
                    total=5,
                    keep=20,
                    delta=b"",
                    deleted=[member(1)],
                    rows=[*good, *bad],
                    idle_ms=1000,
                    seasons=[],
                )
            )
        assert all_keys(server) == keys_before


async def test_an_invalidation_rejects_running_updates_and_ends_with_an_update_polled_later(
    cache: Cache,
) -> None:
    await fill(cache, users(5))
    running_update = await poll(cache)
    await cache.invalidate()
    assert await results_of(cache, TopQuery(1)) is None
    assert await cache.apply("one", running_update, position(30), [], [], 0) is NotApplied.CONFLICT
    assert await results_of(cache, TopQuery(1)) is None
    invalid = await poll(cache)
    assert (invalid.valid, invalid.position, invalid.consistent) == (False, position(20), True)
    stale = await cache.read([TopQuery(1)], None)
    assert stale is not None
    assert list(map(decoded, stale.results)) == [Top(standings(users(1)))]
    assert isinstance(await cache.apply("one", invalid, position(30), [], [], 0), CacheState)
    assert await results_of(cache, TopQuery(1)) == [Top(standings(users(1)))]


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
    # Applying without the lease works, because the lease only saves work. It does not end the other lease.
    assert isinstance(await cache.apply("two", mine, position(30), [], [], 0), CacheState)
    assert server.get(keys.LEASE) == b"one"
    assert isinstance(await cache.apply("one", await poll(cache), position(31), [], [], 0), CacheState)
    assert server.get(keys.LEASE) is None
