"""What the cache answers: tops, standings and contexts, down to its floor."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from leaderboard.cache import keys
from leaderboard.dev import EmbeddedValkey
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN, Context, Top, User, ranked
from leaderboard.queries import ContextQuery, StandingQuery, TopQuery
from tests.cache.caches import (
    EPOCH,
    LONG_MS,
    LONG_S,
    NOT_FOUND,
    UNKNOWN,
    Cache,
    cached_users,
    catch_up,
    fill,
    floor_of,
    install,
    opened,
    poll,
    results_of,
    standings,
    users,
)

pytestmark = pytest.mark.anyio


async def test_an_empty_server_has_no_result(cache: Cache) -> None:
    assert await cache.read([TopQuery(1)], LONG_S) is None
    assert await cache.read([TopQuery(1)], None) is None
    assert await cache.poll("poller", 50) is None
    assert await cache.export() is None
    await cache.invalidate()
    assert await cache.poll("poller", 50) is None


async def test_a_cache_with_a_floor_answers_exactly_down_to_its_last_rank(cache: Cache) -> None:
    board = users(20)
    await fill(cache, board, floor_of(board))
    contexts = await results_of(cache, *(ContextQuery(user.user_id) for user in board))
    assert contexts is not None
    for rank, context in enumerate(contexts, 1):
        if rank + 5 > 20:
            assert context is None, rank
        else:
            assert isinstance(context, Context)
            around = [*context.above, context.user, *context.below]
            assert around == standings(board)[max(0, rank - 6) : rank + 5]
            assert context.user.rank == rank
    assert await results_of(cache, *(StandingQuery(user.user_id) for user in board)) == standings(board)
    assert await results_of(cache, TopQuery(20), TopQuery(21)) == [Top(standings(board)), None]
    assert await results_of(cache, StandingQuery(UNKNOWN), ContextQuery(UNKNOWN)) == [None] * 2


async def test_a_cache_without_a_floor_answers_for_all_users_and_for_unknown_ids(cache: Cache) -> None:
    board = users(20)
    await fill(cache, board)
    contexts = await results_of(cache, *(ContextQuery(user.user_id) for user in board))
    assert contexts is not None
    for rank, context in enumerate(contexts, 1):
        assert isinstance(context, Context)
        assert [*context.above, context.user, *context.below] == standings(board)[max(0, rank - 6) : rank + 5]
    assert await results_of(cache, TopQuery(20), TopQuery(21), TopQuery(100_000)) == [Top(standings(board))] * 3
    assert await results_of(cache, StandingQuery(UNKNOWN), ContextQuery(UNKNOWN)) == [NOT_FOUND] * 2


async def test_an_empty_board_is_a_result(cache: Cache) -> None:
    await fill(cache, [])
    assert await results_of(cache, TopQuery(10), StandingQuery(1)) == [Top([]), NOT_FOUND]


async def test_a_top_of_10_000_is_right_at_both_ends_of_the_range(valkey: EmbeddedValkey, server: Redis) -> None:
    best = [User(INT32_MAX - n, f"user {n}", f"https://example.com/{n}", SCORE_MAX - n // 7) for n in range(5_500)]
    worst = [User(n + 1, f"user -{n}", None, SCORE_MIN + n) for n in range(5_500)]
    board = sorted(best + worst, key=lambda user: (-user.total_score, user.user_id))
    async with opened(valkey, size=10_000) as cache:
        assert cache.keep == len(board)
        await fill(cache, board, floor_of(board))
        assert await results_of(cache, TopQuery(10_000)) == [Top(standings(board[:10_000]))]
        assert await results_of(cache, TopQuery(11_000), TopQuery(1)) == [
            Top(standings(board)),
            Top(standings(board[:1])),
        ]
        assert await results_of(cache, StandingQuery(board[-1].user_id)) == [ranked(11_000, board[-1])]


async def test_a_state_is_as_old_as_the_poll_before_its_snapshot(cache: Cache, server: Redis) -> None:
    await fill(cache, users(3))
    state = await poll(cache)
    reading = await cache.read([TopQuery(1)], LONG_S)
    assert reading is not None
    assert 0 <= state.age_s <= reading.age_s < LONG_S
    too_old, of_the_future = state.now - 1000 * LONG_MS - 1, state.now + 10_000 * LONG_MS
    for asof, readable in ((too_old, False), (of_the_future, False), (state.now, True)):
        server.hset(keys.STATE, "asof", asof)
        assert (await cache.read([TopQuery(1)], LONG_S) is not None) == readable
        stale = await cache.read([TopQuery(1)], None)
        assert stale is not None
        assert len(stale.results) == 1


async def test_a_cache_written_in_another_format_is_not_read(cache: Cache, server: Redis) -> None:
    await fill(cache, users(3))
    reading = await cache.read([TopQuery(1)], LONG_S)
    assert reading is not None
    assert reading.epoch == EPOCH
    server.hset(keys.STATE, "epoch", f"1|{EPOCH}")
    assert await cache.read([TopQuery(1)], LONG_S) is None
    assert (await poll(cache)).position.epoch == ""


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=128)


@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(named=st.lists(st.tuples(NAMES, st.none() | NAMES, st.none() | NAMES), max_size=15))
async def test_any_name_is_cached_unchanged(cache: Cache, named: list[tuple[str, str | None, str | None]]) -> None:
    board = [User(n, name, image, -n, external_id) for n, (name, image, external_id) in enumerate(named, 1)]
    half = len(board) // 2
    await install(cache, board[:half])
    assert await catch_up(cache, board[half:], added=len(board) - half) == len(board)
    assert await results_of(cache, TopQuery(100)) == [Top(standings(board))]
    assert await cached_users(cache) == board
