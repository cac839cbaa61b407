"""Large seasons get a rank index, which is kept up to date; small ones are counted."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.board_rules import parse_rules
from leaderboard.config import Settings
from leaderboard.maintenance.rank_index import RankIndexMaintainer
from leaderboard.queries import SeasonRef
from leaderboard.tuning import RankIndexTuning, Tuning
from tests.system import sql

pytestmark = pytest.mark.anyio

LARGE = 6000
BIG = SeasonRef("big")


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[App]:
    """A process without timers, with a large board and a small one; user 1 is the best on both."""
    sql(settings, "INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, $1) AS n", LARGE)
    app = App(settings, Tuning(ranks=RankIndexTuning(apply_from=1)))
    await app.database.open()
    app.health.note_postgres(await app.database.now())
    try:
        await app.service.boards.configure("big", parse_rules({}))
        await app.service.boards.configure("small", parse_rules({}))
        for board, entries in (("big", LARGE), ("small", 20)):
            season = (await app.service.boards.get(board)).season_id
            sql(settings, f"INSERT INTO scores SELECT n, {season}, -n FROM generate_series(1, $1) AS n", entries)
        yield app
    finally:
        await app.close()


async def indexed(app: App) -> list[str]:
    return [season.board for season in await app.database.rank_index.indexed()]


def maintainer(app: App) -> RankIndexMaintainer:
    return RankIndexMaintainer(app.database.rank_index, app.metrics, 1)


async def assert_right(app: App) -> None:
    (season,) = await app.database.rank_index.indexed()
    assert await app.database.rank_index.recount_all(season.season_id) == []
    reply = await app.service.reads.standing(LARGE, BIG)
    assert reply.result.rank == LARGE


async def test_only_large_seasons_get_an_index(app: App) -> None:
    assert (await app.service.reads.standing(LARGE, BIG)).result.rank == LARGE, "it is counted without an index"
    await maintainer(app).build_missing()
    assert await indexed(app) == ["big"]
    await assert_right(app)
    assert (await app.service.reads.standing(20, SeasonRef("small"))).result.rank == 20


async def test_the_index_follows_the_log(app: App, db: asyncpg.Connection) -> None:
    await maintainer(app).build_missing()
    for score in range(50):
        await app.service.entries.set_score("big", 100 + score, 1_000_000 + score)
    before = await db.fetchval("SELECT snapshot::text FROM rank_index WHERE season_id > 1")
    await maintainer(app).maintain_seasons()
    assert await db.fetchval("SELECT snapshot::text FROM rank_index WHERE season_id > 1") != before
    await assert_right(app)


async def test_an_index_that_is_not_valid_is_built_again_without_new_log_rows(
    app: App, db: asyncpg.Connection
) -> None:
    await maintainer(app).build_missing()
    await db.execute("DELETE FROM changes")
    await db.execute("UPDATE rank_index SET written_by = '3'")
    await maintainer(app).build_missing()
    assert await db.fetchval("SELECT bool_and(written_here(xmin, written_by)) FROM rank_index")
    await assert_right(app)


async def test_an_archive_keeps_its_index(app: App) -> None:
    await maintainer(app).build_missing()
    await app.service.boards.end_season("big", 1)
    await maintainer(app).maintain_seasons()
    assert (await app.service.reads.standing(LARGE, SeasonRef("big", 1))).result.rank == LARGE
    assert (await app.service.reads.top(1, BIG)).result.decode().users == []
