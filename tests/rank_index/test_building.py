"""Building the rank index: during writes, after a barrier, and beside a log of any length."""

import asyncio
import itertools
import random
from dataclasses import replace
from typing import Any, cast

import asyncpg
import pytest
from pydantic import SecretStr

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.rank_index import WRITER_LOCK, RankIndex, RankIndexInvalid
from leaderboard.errors import DatabaseUnavailable
from leaderboard.queries import ContextQuery, StandingQuery
from leaderboard.tuning import LogTuning, Tuning
from tests.rank_index.index import (
    PRUNE_NOW,
    TUNING,
    USERS,
    add,
    assert_right,
    is_valid,
    is_waited_for,
    maintain,
    make_writes_of_the_index_wait,
    rank,
    set_score,
)
from tests.system import PATIENCE_S, OneConnection, free_port, sql, until

pytestmark = pytest.mark.anyio


# Building


async def test_an_index_is_built_during_writes(
    settings: Settings, database: Database, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add(db, [random.randint(0, 1000) for _ in range(15_000)])
    ranks = RankIndex(database.connections, TUNING)
    done = asyncio.Event()

    async def keep_writing() -> int:
        for number in itertools.count():
            await set_score(session, random.randint(1, 15_000), random.randint(0, 1000))
            if done.is_set():
                return number
        return 0

    writing = asyncio.create_task(keep_writing())
    for _ in range(10):
        assert await ranks.build()
    done.set()
    assert await writing > 0
    await assert_right(ranks, db)


async def test_writers_do_not_wait_for_a_build(
    database: Database, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add(db, range(100))
    ranks = RankIndex(database.connections, TUNING)
    await make_writes_of_the_index_wait(db)
    building = asyncio.create_task(maintain(ranks))
    await until(lambda: is_waited_for(session), "the build waits")
    async with asyncio.timeout(PATIENCE_S):
        await set_score(session, 1, 7)
        await add(session, [8])
        await session.execute("DELETE FROM users WHERE user_id = 2")
    await db.execute("SELECT pg_advisory_unlock(77)")
    assert await building == "built"
    await assert_right(ranks, session)


async def test_with_an_invalid_index_users_are_counted_only_on_demand(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    """Otherwise every query of a batch would count all users, in one statement."""
    await ranks.discard()
    ranks_here = RankIndex(cast("Any", OneConnection(db)), TUNING)
    before = await entries_read(db)
    with pytest.raises(RankIndexInvalid):
        await ranks_here.standings([ContextQuery(user_id) for user_id in range(1, 101)], count=False)
    assert await entries_read(db) - before < USERS
    await ranks_here.standings([StandingQuery(USERS)], count=True)
    assert await entries_read(db) - before >= USERS - 1, "the entries that are read are counted"


async def test_statistics_of_a_board_of_one_score_do_not_lead_to_the_primary_key(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    """Otherwise the planner uses the primary key, and reads all users of a score."""
    await db.execute("TRUNCATE users RESTART IDENTITY CASCADE")
    await add(db, [0] * 20_000)
    await db.execute("ANALYZE users")
    await db.execute("UPDATE users SET total_score = user_id")
    await maintain(ranks)
    ranks_here = RankIndex(cast("Any", OneConnection(db)), TUNING)
    before = await entries_read(db, "users_pkey")
    assert await ranks_here.standings([ContextQuery(user_id) for user_id in range(100, 20_000, 500)], count=False)
    assert 0 < await entries_read(db, "users_pkey") - before < 40 * 2 * 15, "the two versions of fifteen users"


async def entries_read(db: asyncpg.Connection, index: str = "idx_users_score_desc") -> int:
    """Returns how many entries of an index this session and others, if they have reported it, have read."""
    await db.execute("SELECT pg_stat_force_next_flush()")
    number: int = await db.fetchval(
        "SELECT pg_stat_get_tuples_returned(indexrelid) FROM pg_index WHERE indexrelid = $1::text::regclass", index
    )
    return number


async def test_only_one_process_builds_at_a_time(ranks: RankIndex, session: asyncpg.Connection) -> None:
    await ranks.discard()
    await session.execute("SELECT pg_advisory_lock($1, 1)", WRITER_LOCK)
    assert await maintain(ranks) == "left"
    assert not await ranks.build()
    await session.execute("SELECT pg_advisory_unlock($1, 1)", WRITER_LOCK)
    assert await maintain(ranks) == "built"


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE users CASCADE",
        "UPDATE users SET total_score = total_score / 2",
        "INSERT INTO users (user_name, total_score) SELECT 'n' || n, n FROM generate_series(1, 20001) AS n",
    ],
    ids=["truncate", "all scores halved", "many more"],
)
async def test_after_a_barrier_the_index_is_built_again(
    ranks: RankIndex, db: asyncpg.Connection, statement: str
) -> None:
    if statement.startswith("UPDATE"):
        await add(db, [random.randint(0, 100_000) for _ in range(20_001)])
        await ranks.build()
    await db.execute(statement)
    await db.execute("INSERT INTO users (user_id, user_name, total_score) VALUES (2000000, 'Ann', -5)")
    assert not await is_valid(ranks)
    total = await db.fetchval("SELECT count(*) FROM users")
    assert await rank(ranks, 2_000_000, count=True) == total
    assert await maintain(ranks) == "built"
    assert await rank(ranks, 2_000_000) == total
    await assert_right(ranks, db)


@pytest.mark.usefixtures("ranks")
async def test_a_log_too_long_for_readers_is_applied_without_a_build(
    database: Database, db: asyncpg.Connection
) -> None:
    """A build during which many rows were logged leaves such a log. Another build would leave it, too."""
    ranks = RankIndex(database.connections, replace(TUNING, max_pending=100))
    await db.execute("UPDATE users SET total_score = total_score - 1 WHERE user_id <= 100")
    assert not await is_valid(ranks)
    assert await maintain(ranks) == "log applied"
    await assert_right(ranks, db)


@pytest.mark.usefixtures("ranks")
async def test_after_a_log_too_long_to_apply_the_index_is_built_again(
    database: Database, db: asyncpg.Connection
) -> None:
    ranks = RankIndex(database.connections, replace(TUNING, max_pending=100, max_applied=200))
    await db.execute("UPDATE users SET total_score = total_score - 1 WHERE user_id <= 200")
    assert not await is_valid(ranks)
    assert await maintain(ranks) == "built"
    await assert_right(ranks, db)


# The log


async def test_the_log_is_kept_until_it_is_applied(
    ranks: RankIndex, database: Database, db: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    await database.change_log.prune(PRUNE_NOW)
    await database.change_log.prune(PRUNE_NOW)
    assert await db.fetchval("SELECT count(*) FROM changes WHERE user_id = 900 AND new_key = 1000000") == 1
    assert await rank(ranks, 500) == 501
    assert await maintain(ranks) == "log applied"
    await database.change_log.prune(PRUNE_NOW)
    assert await db.fetchval("SELECT count(*) FROM changes") == 0
    assert await rank(ranks, 500) == 501


async def test_an_index_that_lacks_pruned_rows_is_not_valid(
    ranks: RankIndex, database: Database, db: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    for _ in range(2):
        await database.change_log.prune(replace(PRUNE_NOW, max_index_wait_s=0))
    assert await db.fetchval("SELECT count(*) FROM changes") == 0
    assert not await is_valid(ranks)
    assert await rank(ranks, 500, count=True) == 501

    await database.change_log.prune(PRUNE_NOW)
    assert not await is_valid(ranks), "the snapshot of the last pruning never gets older"
    await maintain(ranks)
    await assert_right(ranks, db)


async def test_nothing_is_pruned_while_the_index_is_built(
    database: Database, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add(db, [1, 2, 3])
    async with session.transaction(isolation="repeatable_read"):
        await session.execute("SELECT pg_try_advisory_xact_lock($1, 1)", WRITER_LOCK)
        for _ in range(2):
            assert await database.change_log.prune(PRUNE_NOW) == 0
    assert await database.change_log.prune(PRUNE_NOW) == 3


async def test_an_index_beside_a_restored_log_is_not_valid(ranks: RankIndex, db: asyncpg.Connection) -> None:
    assert await is_valid(ranks)
    await db.execute("UPDATE log_state SET written_by = '3'")
    assert not await is_valid(ranks)


async def test_nothing_is_built_beside_a_restored_log(
    ranks: RankIndex, database: Database, db: asyncpg.Connection
) -> None:
    """The log must be reset first."""
    await db.execute("UPDATE log_state SET written_by = '3'")
    assert await maintain(ranks) == "left"
    assert await database.change_log.reset()
    assert await maintain(ranks) == "built"
    await assert_right(ranks, db)


async def test_the_log_and_the_index_are_repaired_without_redis(settings: Settings) -> None:
    without_redis = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}")})
    app = App(without_redis, Tuning(log=LogTuning(prune_every_s=0.05)))
    async with app.running():
        await until(lambda: is_valid_now(app), "the index is built")
        sql(settings, "UPDATE log_state SET written_by = '3'")
        assert not await is_valid_now(app)
        await until(lambda: is_valid_now(app), "the log is emptied and the index is built again")


async def is_valid_now(app: App) -> bool:
    try:
        return await is_valid(app.database.rank_index)
    except DatabaseUnavailable:
        return False
