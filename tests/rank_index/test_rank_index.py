"""What the rank index answers, and how the log is applied to it."""

import asyncio
import itertools
import random
from dataclasses import replace

import asyncpg
import pytest

from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.rank_index import RankIndex
from leaderboard.model import Context
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, StandingQuery
from tests.rank_index.index import (
    TUNING,
    USERS,
    WIDTH,
    add,
    assert_right,
    is_valid,
    is_waited_for,
    maintain,
    make_writes_of_the_index_wait,
    opened,
    rank,
    set_score,
    sizes,
)
from tests.system import until

pytestmark = pytest.mark.anyio


# Reading


async def test_a_rank_includes_pending_changes(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await set_score(db, 900, 1_000_000)
    await db.execute("DELETE FROM users WHERE user_id IN (1, 2)")
    await add(db, [1_000_000])
    assert await rank(ranks, 500) == 500
    assert await rank(ranks, 950) == 949
    result = await ranks.standings([ContextQuery(500)], count=False)
    assert result is not None
    assert isinstance(result.value[0], Context)
    assert result.value[0].total == USERS - 1
    assert (await ranks.page(PageQuery(3))).value.total == USERS - 1


async def test_a_page_around_a_rank_includes_pending_changes(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await db.execute("UPDATE users SET total_score = 1000000 WHERE user_id > 900")
    for middle in (100, 101, 102, 555, 999):
        page = (await ranks.page(PageAroundQuery(3, middle))).value
        assert [standing.rank for standing in page.users] == [middle - 1, middle, middle + 1]
        by_rank = await ranks.standings([StandingQuery(standing.user_id) for standing in page.users], count=False)
        assert by_rank is not None
        assert by_rank.value == page.users


async def test_changes_of_transactions_that_ran_during_an_update_are_not_lost(
    ranks: RankIndex, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    transaction = session.transaction()
    await transaction.start()
    await set_score(session, 900, 1_000_000)
    await set_score(db, 800, 1_000_000)
    assert await maintain(ranks) == "log applied"
    assert await rank(ranks, 500) == 501
    await transaction.commit()
    assert await rank(ranks, 500) == 502
    assert await maintain(ranks) == "log applied"
    await assert_right(ranks, db)


async def test_a_result_is_read_from_one_snapshot(
    ranks: RankIndex, settings: Settings, session: asyncpg.Connection
) -> None:
    """The score of one user jumps over a checkpoint and back. The rank of a user below must not change."""
    lower, upper, near, far = 955, 954, 10 * (USERS - 954) + 5, 100_000
    done = asyncio.Event()

    async def change_score() -> None:
        for score in itertools.cycle((far, near)):
            await set_score(session, upper, score)
            if done.is_set():
                return

    changing = asyncio.create_task(change_score())
    ranks_read = set()
    try:
        for _ in range(40):
            ranks_read |= {await rank(ranks, lower) for _ in range(25)}
            await maintain(ranks)
    finally:
        done.set()
        await changing
    assert ranks_read == {lower}


async def test_ranks_are_counted_without_an_index(database: Database, db: asyncpg.Connection) -> None:
    await add(db, [5, 7, 5, 5])
    ranks = RankIndex(database.connections, TUNING)
    assert not await is_valid(ranks)
    assert [await rank(ranks, user_id, count=True) for user_id in (1, 2, 3, 4)] == [2, 1, 3, 4]
    page = (await ranks.page(PageAroundQuery(2, 3))).value
    assert ([standing.user_id for standing in page.users], page.total) == ([1, 3], 4)
    assert [standing.rank for standing in page.users] == [2, 3]


async def test_an_empty_board_has_empty_pages(database: Database) -> None:
    ranks = RankIndex(database.connections, TUNING)
    for _ in range(2):
        for query in (
            PageQuery(10),
            PageQuery(10, (0, 1)),
            PageAroundQuery(10, 1),
            PageAroundQuery(10, 2**31 - 1),
        ):
            page = (await ranks.page(query)).value
            assert (page.users, page.total) == ([], 0)
        await maintain(ranks)


# Applying the log


async def test_each_change_is_applied_once(ranks: RankIndex, db: asyncpg.Connection) -> None:
    for user_id in (900, 800, 700):
        await set_score(db, user_id, 1_000_000)
        assert await maintain(ranks) == "log applied"
        assert await maintain(ranks) == "kept"
    await assert_right(ranks, db)


async def test_applying_the_log_and_rebalancing_use_one_snapshot(
    ranks: RankIndex, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    """Another transaction commits between the two statements."""
    await add(db, range(5001, 5100))
    await make_writes_of_the_index_wait(db)
    maintaining = asyncio.create_task(maintain(ranks))
    await until(lambda: is_waited_for(session), "the update of the index waits")
    await set_score(db, 900, 5050)
    await db.execute("SELECT pg_advisory_unlock(77)")
    assert await maintaining == "log applied"
    assert max(await sizes(session)) <= 2 * WIDTH
    await assert_right(ranks, db)


async def test_one_of_two_concurrent_updates_applies_the_log(
    settings: Settings, ranks: RankIndex, db: asyncpg.Connection
) -> None:
    async with opened(settings) as other_database:
        both = (ranks, RankIndex(other_database.connections, TUNING))
        for user_id in range(900, 950):
            await set_score(db, user_id, 1_000_000)
            did = await asyncio.gather(*(maintain(index) for index in both))
            assert "log applied" in did
        await assert_right(ranks, db)


async def test_a_process_that_loses_the_race_changes_nothing(
    ranks: RankIndex, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    transaction = session.transaction()
    await transaction.start()
    await session.execute("UPDATE rank_index SET written_by = pg_current_xact_id()")
    maintaining = asyncio.create_task(maintain(ranks))
    await until(
        lambda: db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"),
        "the update of the index waits",
    )
    await transaction.commit()
    assert await maintaining == "conflict"
    assert await maintain(ranks) == "log applied"
    await assert_right(ranks, db)


async def test_a_few_changes_are_applied_after_a_delay(
    ranks: RankIndex, database: Database, db: asyncpg.Connection
) -> None:
    later = RankIndex(database.connections, replace(TUNING, apply_after_s=60.0))
    await set_score(db, 900, 1_000_000)
    assert await maintain(later) == "kept"
    assert await maintain(ranks) == "log applied"
    assert await maintain(ranks) == "kept", "there is nothing to apply"


# Checkpoints


async def test_checkpoints_are_added_where_users_are_added(ranks: RankIndex, db: asyncpg.Connection) -> None:
    for start in range(0, 2000, 50):
        await add(db, range(4003 + start, 4003 + start + 50))
        assert await maintain(ranks) == "log applied"
        assert max(await sizes(db)) <= 2 * WIDTH
    await assert_right(ranks, db)


async def test_a_range_that_has_grown_much_is_rebalanced_in_several_steps(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    await add(db, [0] * 5000)
    assert await maintain(ranks) == "log applied"
    assert max(await sizes(db)) > 2 * WIDTH

    async def is_balanced() -> bool:
        await maintain(ranks)
        return max(await sizes(db)) <= 2 * WIDTH

    await until(is_balanced, "the checkpoints are close together, without any writes")
    await assert_right(ranks, db)


async def test_checkpoints_are_removed_where_users_are_deleted(ranks: RankIndex, db: asyncpg.Connection) -> None:
    before = len(await sizes(db))
    await db.execute("DELETE FROM users WHERE user_id % 10 <> 0")
    for _ in range(10):
        await set_score(db, 10, random.randint(0, 10_000))
        await maintain(ranks)
    assert len(await sizes(db)) <= before / 4
    await assert_right(ranks, db)


async def test_the_number_of_checkpoints_is_bounded(database: Database, db: asyncpg.Connection) -> None:
    await add(db, range(USERS))
    await db.execute("ANALYZE users")
    ranks = RankIndex(database.connections, replace(TUNING, max_checkpoints=20))
    assert await maintain(ranks) == "built"
    assert len(await sizes(db)) == 20
    for start in range(USERS, 3 * USERS, 100):
        await add(db, range(start, start + 100))
        await maintain(ranks)
        assert len(await sizes(db)) <= 2 * (20 + 4)
    await assert_right(ranks, db)
