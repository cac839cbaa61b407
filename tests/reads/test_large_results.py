"""A result with many users delays no small read, and uses one connection to PostgreSQL at most."""

import asyncio

import pytest

from leaderboard.app import App
from leaderboard.model import Page
from leaderboard.queries import PageAroundQuery, PageQuery
from tests.system import until

pytestmark = pytest.mark.anyio

LARGE = 100_000


def cache_reads(app: App, what: str) -> float:
    """Returns how many batches ("count") or queries ("sum") went to the cache."""
    value = app.metrics.registry.get_sample_value(f"leaderboard_batch_items_{what}", {"queue": "cache"})
    return value or 0.0


async def test_a_large_top_is_not_in_a_batch_with_small_reads(leaderboard: App) -> None:
    batches, queries = cache_reads(leaderboard, "count"), cache_reads(leaderboard, "sum")
    await asyncio.gather(
        leaderboard.service.reads.top(1), leaderboard.service.reads.top(LARGE), leaderboard.service.reads.top(2)
    )
    assert cache_reads(leaderboard, "sum") - queries == 3
    assert cache_reads(leaderboard, "count") - batches == 2, "the two small ones share a batch"


async def test_one_large_result_at_a_time_is_read_from_postgres(
    leaderboard: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    release = asyncio.Event()
    page = leaderboard.database.rank_index.page

    async def held(query: PageQuery | PageAroundQuery) -> object:
        started.append(query.limit)
        await release.wait()
        return await page(query)

    monkeypatch.setattr(leaderboard.database.rank_index, "page", held)
    reading = [
        asyncio.create_task(leaderboard.service.reads.page(PageQuery(limit)))
        for limit in (LARGE, LARGE + 1, 10, 11)
    ]

    async def small_reads_have_started() -> bool:
        return {10, 11} <= set(started)

    try:
        await until(small_reads_have_started, "the small ones do not wait for the large ones")
        assert [limit for limit in started if limit >= LARGE] == [LARGE]
    finally:
        release.set()
    for reply in await asyncio.gather(*reading):
        assert reply.result == Page([], 0)
