"""The change log of many seasons: which changes are logged, and which rows pruning keeps for a rank index."""

import asyncio
from collections import Counter

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.maintenance.seasons import SeasonKeeper
from leaderboard.model import Standing
from leaderboard.queries import SeasonRef, StandingQuery
from leaderboard.tuning import LogTuning, RankIndexTuning, Tuning
from tests.boards.boards import add_users, fill, make_board, started
from tests.rank_index.index import is_waited_for, make_writes_of_the_index_wait

pytestmark = pytest.mark.anyio

BARRIER_ABOVE = 20_000
"""A statement that changes more entries of a season is logged as one barrier of it."""
PRUNE_NOW = LogTuning(keep_s=0)
INDEXED = Tuning(ranks=RankIndexTuning(width=10))

Row = tuple[int, int | None, int | None, int | None]


async def logged(db: asyncpg.Connection) -> list[Row]:
    """Deletes all log rows and returns them: season, user, old key, new key."""
    rows = await db.fetch("DELETE FROM changes RETURNING season_id, user_id, old_key, new_key")
    return sorted(map(tuple, rows), key=lambda row: tuple(value or 0 for value in row))


async def prune(app: App, log: LogTuning = PRUNE_NOW) -> None:
    """Prunes the rows of all transactions that have ended."""
    for _ in range(2):  # The first call takes the snapshot up to which the second one prunes.
        await app.database.change_log.prune(log)


async def rows_of(db: asyncpg.Connection) -> dict[int, int]:
    """Returns how many log rows each season has."""
    rows = await db.fetch("SELECT season_id FROM changes")
    return dict(Counter(row["season_id"] for row in rows))


async def is_used(db: asyncpg.Connection, season_id: int) -> bool:
    """Returns whether readers use the rank index of a season."""
    return bool(await db.fetchval("SELECT cardinality(keys) > 1 FROM rank_index_now($1, 50000)", season_id))


async def check_ranks(app: App, db: asyncpg.Connection, name: str, season_id: int) -> None:
    rows = await db.fetch(
        "SELECT user_id, row_number() OVER (ORDER BY sort_key DESC, user_id) AS rank FROM scores"
        " WHERE season_id = $1 AND NOT hidden ORDER BY random() LIMIT 50",
        season_id,
    )
    asked = [StandingQuery(row["user_id"], season=SeasonRef(name)) for row in rows]
    found = (await app.database.rank_index.standings(asked, count=True)).value
    ranks = [standing.rank for standing in found if isinstance(standing, Standing)]
    assert ranks == [row["rank"] for row in rows]


async def test_each_change_is_a_row_of_its_season(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, 3)
    async with started(settings) as app:
        one, two = [(await make_board(app, name)).season_id for name in ("one", "two")]
        await logged(db)
        await db.execute(
            "INSERT INTO scores (season_id, user_id, sort_key) VALUES ($1, 1, 5), ($2, 1, 6), ($2, 2, 7)", one, two
        )
        assert await logged(db) == [(one, 1, None, 5), (two, 1, None, 6), (two, 2, None, 7)]
        await db.execute("UPDATE scores SET sort_key = 6 WHERE user_id = 1")
        assert await logged(db) == [(one, 1, 5, 6)], "an entry that has the same key as before is not logged"
        await db.execute("UPDATE users SET hidden = true WHERE user_id = 1")
        assert await logged(db) == [(1, 1, 0, None), (one, 1, 6, None), (two, 1, 6, None)]
        await db.execute("UPDATE scores SET sort_key = 9 WHERE user_id = 1")
        assert await logged(db) == [], "a change of a hidden entry is not logged"
        await db.execute("UPDATE users SET hidden = false WHERE user_id = 1")
        assert await logged(db) == [(1, 1, None, 0), (one, 1, None, 9), (two, 1, None, 9)]
        await db.execute("DELETE FROM users WHERE user_id = 1")
        assert await logged(db) == [(1, 1, 0, None), (one, 1, 9, None), (two, 1, 9, None)]
        await db.execute("UPDATE users SET user_name = 'new', image_url = 'https://a' WHERE user_id = 2")
        assert await logged(db) == [(0, 2, None, None)], "one row, however many boards there are"
        await db.execute("TRUNCATE scores")
        assert await logged(db) == [(one, None, None, None), (two, None, None, None)]


async def test_a_statement_that_changes_many_entries_of_a_season_is_logged_as_one_barrier_of_it(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, BARRIER_ABOVE + 1)
    async with started(settings) as app:
        one, two = [(await make_board(app, name)).season_id for name in ("one", "two")]
        barrier: Row = (one, None, None, None)
        await logged(db)
        await db.execute(
            "INSERT INTO scores (season_id, user_id, sort_key)"
            " SELECT $1::int, user_id, 1 FROM users UNION ALL SELECT $2, user_id, 1 FROM users WHERE user_id <= 3",
            one,
            two,
        )
        assert await logged(db) == [barrier, *((two, n, None, 1) for n in (1, 2, 3))]
        await db.execute("UPDATE scores SET sort_key = 2")
        assert await logged(db) == [barrier, *((two, n, 1, 2) for n in (1, 2, 3))]
        # More than that in all, but not of one season.
        await fill_missing(db, two, 9000)
        await logged(db)
        await db.execute(
            "UPDATE scores SET sort_key = 3 WHERE season_id = $1 AND user_id <= 15000 OR season_id = $2", one, two
        )
        assert Counter(row[0] for row in await logged(db)) == {one: 15_000, two: 9000}
        await db.execute("DELETE FROM scores WHERE season_id = $1 OR user_id = 1", one)
        assert await logged(db) == [barrier, (two, 1, 3, None)]


async def fill_missing(db: asyncpg.Connection, season_id: int, count: int) -> None:
    """Adds an entry of each of the users 1 to `count` that has none."""
    await db.execute(
        "INSERT INTO scores (season_id, user_id, sort_key)"
        " SELECT $1, user_id, 1 FROM users WHERE user_id <= $2 ON CONFLICT DO NOTHING",
        season_id,
        count,
    )


async def test_changes_of_a_deleted_board_are_not_logged(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, BARRIER_ABOVE + 3)
    async with started(settings) as app:
        for name, entries in (("large", BARRIER_ABOVE + 3), ("small", 2000)):
            await fill(db, (await make_board(app, name)).season_id, entries)
            await app.service.boards.delete(name)
        await logged(db)
        await db.execute("UPDATE users SET hidden = true WHERE user_id <= 3")
        await db.execute("DELETE FROM users WHERE user_id IN (3, 4)")
        await db.execute("UPDATE users SET hidden = false WHERE user_id = 2")
        assert {row[0] for row in await logged(db)} == {1}
        await db.execute("DELETE FROM scores WHERE season_id = (SELECT min(season_id) FROM scores)")
        await SeasonKeeper(app.service.boards, app.database.boards).delete_orphans()
        assert await db.fetchval("SELECT count(*) FROM scores") == 0
        assert await logged(db) == []


async def test_a_slow_rank_index_keeps_the_rows_of_its_season_only(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 100)
    async with started(settings, INDEXED) as app:
        slow, quick, plain = [(await make_board(app, name)).season_id for name in ("slow", "quick", "plain")]
        for season_id in (slow, quick, plain):
            await fill(db, season_id, 100)
        await app.database.rank_index.build(slow)
        await app.database.rank_index.build(quick)
        for _ in range(3):
            await prune(app)
            await db.execute("UPDATE scores SET sort_key = sort_key + 7 WHERE user_id % 3 = 0")
            await app.database.rank_index.repair(quick)
        await prune(app)
        assert await rows_of(db) == {slow: 99}, "the rows that its index lacks"
        for name, season_id in (("slow", slow), ("quick", quick)):
            assert await is_used(db, season_id)
            await check_ranks(app, db, name, season_id)

        # Its rows are deleted when its index has applied them.
        await app.database.rank_index.repair(slow)
        await prune(app)
        assert await rows_of(db) == {}
        assert await is_used(db, slow)
        await check_ranks(app, db, "slow", slow)


async def test_rows_of_transactions_that_were_running_when_the_index_was_built_are_kept(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 100)
    async with started(settings, INDEXED) as app:
        season_id = (await make_board(app, "one")).season_id
        await fill(db, season_id, 100)
        await prune(app)
        async with session.transaction():
            await session.execute("UPDATE scores SET sort_key = -1 WHERE user_id = 100")
            await db.execute("UPDATE scores SET sort_key = -2 WHERE user_id = 99")
            await app.database.rank_index.build(season_id)
        await prune(app)
        assert await rows_of(db) == {season_id: 1}
        assert await is_used(db, season_id)
        await check_ranks(app, db, "one", season_id)


async def test_an_index_that_lacks_nothing_stays_valid_however_long_ago_it_was_updated(
    settings: Settings, db: asyncpg.Connection
) -> None:
    """For example, that of a season in which nothing was written for longer than pruning waits for an index."""
    without_waiting = LogTuning(keep_s=0, max_index_wait_s=0)
    await add_users(db, 100)
    async with started(settings, INDEXED) as app:
        season_id = (await make_board(app, "idle")).season_id
        await fill(db, season_id, 100)
        await app.database.rank_index.build(season_id)
        for _ in range(2):
            await prune(app, without_waiting)
            assert await rows_of(db) == {}
            assert await is_used(db, season_id)
        await db.execute("UPDATE scores SET sort_key = -1 WHERE user_id = 100")
        # This prunes up to a snapshot from before that change.
        await app.database.change_log.prune(without_waiting)
        assert await rows_of(db) == {season_id: 1}
        assert await is_used(db, season_id)
        await check_ranks(app, db, "idle", season_id)


async def test_an_index_that_lacks_pruned_rows_never_becomes_valid_again(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 100)
    async with started(settings, INDEXED) as app:
        season_id = (await make_board(app, "slow")).season_id
        await fill(db, season_id, 100)
        await app.database.rank_index.build(season_id)
        await prune(app)
        await db.execute("UPDATE scores SET sort_key = -1 WHERE user_id = 100")
        await prune(app)
        assert await is_used(db, season_id)
        await prune(app, LogTuning(keep_s=0, max_index_wait_s=0))
        assert await rows_of(db) == {}
        await db.execute("UPDATE scores SET sort_key = -2 WHERE user_id = 99")
        for _ in range(2):
            await prune(app)
            assert not await is_used(db, season_id)
            await check_ranks(app, db, "slow", season_id)


async def test_nothing_of_a_season_is_pruned_while_its_index_is_built(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 100)
    async with started(settings, INDEXED) as app:
        built, other = [(await make_board(app, name)).season_id for name in ("built", "other")]
        for season_id in (built, other):
            await fill(db, season_id, 100)
        await db.execute("DELETE FROM changes")
        await make_writes_of_the_index_wait(db)
        building = asyncio.create_task(app.database.rank_index.build(built))
        while not await is_waited_for(db):
            await asyncio.sleep(0.005)
        await db.execute("UPDATE scores SET sort_key = -sort_key WHERE user_id > 50")
        await prune(app)
        await prune(app)
        assert await rows_of(db) == {built: 50}
        await db.execute("SELECT pg_advisory_unlock(77)")
        assert await building
        assert await is_used(db, built)
        await check_ranks(app, db, "built", built)
        await prune(app)
        assert await is_used(db, built)
        await check_ranks(app, db, "built", built)


async def test_an_index_that_lacks_pruned_rows_is_built_again_without_a_write(
    settings: Settings, db: asyncpg.Connection
) -> None:
    """For example, that of an ended season."""
    await add_users(db, 6000)
    async with started(settings) as app:
        season_id = (await make_board(app, "large")).season_id
        await fill(db, season_id, 6000)
        assert await app.database.rank_index.build(season_id)
        await prune(app)
        await db.execute("UPDATE scores SET sort_key = 0 WHERE user_id = 1")
        await prune(app, LogTuning(keep_s=0, max_index_wait_s=0))
        assert await rows_of(db) == {}
        assert not await is_used(db, season_id)
        assert list(await app.database.rank_index.unindexed_seasons()) == [season_id]
        assert await app.database.rank_index.repair(season_id) == "built"
        assert list(await app.database.rank_index.unindexed_seasons()) == []


async def test_the_log_is_not_applied_to_an_invalid_index_of_a_small_season(
    settings: Settings, db: asyncpg.Connection
) -> None:
    """Ranks in a small season are counted, so the season counts as valid while its index is not."""
    await add_users(db, 100)
    async with started(settings, INDEXED) as app:
        season_id = (await make_board(app, "small")).season_id
        await fill(db, season_id, 100)
        assert await app.database.rank_index.build(season_id)
        await prune(app)
        await db.execute("UPDATE scores SET sort_key = -1 WHERE user_id = 100")
        await prune(app, LogTuning(keep_s=0, max_index_wait_s=0))
        assert not await is_used(db, season_id)
        assert await app.database.rank_index.repair(season_id) == "built"
        await check_ranks(app, db, "small", season_id)
