"""The cache and PostgreSQL order the board the same way, at every tie and at both ends of the range."""

import asyncio
from typing import Any

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN, Context, EncodedTop, Standing
from leaderboard.queries import ContextQuery, RankingQuery, StandingQuery, TopQuery
from tests.system import PATIENCE_S, sql

pytestmark = pytest.mark.anyio

IDS_AT = {
    SCORE_MIN: [7, 8, 70, 700, 7000],
    SCORE_MIN + 1: [1, 1_000_000_000],
    -1: [2, 20],
    0: [9, 10, 99, 100, 999, 1000, INT32_MAX - 1, INT32_MAX],
    1: [3, 30],
    SCORE_MAX - 1: [4, 999_999_999],
    SCORE_MAX: [5, 11, 101, 50, 500, 5000],
}
BOARD = sorted(
    ((user_id, score) for score, ids in IDS_AT.items() for user_id in ids), key=lambda place: (-place[1], place[0])
)


async def result_from_cache(leaderboard: App, query: RankingQuery[Any]) -> object:
    """Returns the result from the cache, once the cache is up to date."""
    await leaderboard.sync.visibility.wait_until_visible(await leaderboard.database.now())
    async with asyncio.timeout(PATIENCE_S):
        while (reading := await leaderboard.reader.read([query], PATIENCE_S)) is None:
            await asyncio.sleep(0.01)
    return reading.results[0]


def places(standings: list[Standing]) -> list[tuple[int, int, int]]:
    return [(standing.rank, standing.user_id, standing.total_score) for standing in standings]


async def test_the_cache_and_postgres_order_ties_the_same_way(leaderboard: App) -> None:
    ids, scores = zip(*BOARD, strict=True)
    sql(
        leaderboard.settings,
        "INSERT INTO users (user_id, user_name, total_score)"
        " SELECT id, 'user ' || id, score FROM unnest($1::int[], $2::bigint[]) AS u (id, score) ORDER BY random()",
        ids,
        scores,
    )
    expected = [(rank, user_id, score) for rank, (user_id, score) in enumerate(BOARD, 1)]

    cached = await result_from_cache(leaderboard, TopQuery(100))
    assert isinstance(cached, EncodedTop)
    assert places(cached.decode().users) == expected
    stored = await leaderboard.database.users.top(100)
    assert [(user.user_id, user.total_score) for user in stored.value] == BOARD

    for index, (user_id, _) in enumerate(BOARD):
        around = expected[max(0, index - 5) : index + 6]
        cached = await result_from_cache(leaderboard, ContextQuery(user_id))
        by_postgres = await leaderboard.database.rank_index.standings(
            [ContextQuery(user_id), StandingQuery(user_id)], count=True
        )
        assert by_postgres is not None
        stored_context, stored_standing = by_postgres.value
        for context in (cached, stored_context):
            assert isinstance(context, Context)
            assert places([*context.above, context.user, *context.below]) == around
            assert places([context.user]) == [expected[index]]
        cached = await result_from_cache(leaderboard, StandingQuery(user_id))
        assert cached == stored_standing
        assert isinstance(cached, Standing)
        assert places([cached]) == [expected[index]]


@pytest.mark.parametrize("user_id", [0, -1])
async def test_an_id_is_positive(db: asyncpg.Connection, user_id: int) -> None:
    """The cache pads ids with zeros, which keeps the order of positive ids only."""
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute("INSERT INTO users (user_id, user_name) VALUES ($1, 'a')", user_id)
