"""Pruning deletes old log rows, and no view misses a change because of it."""

import asyncio

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.rank_index import WRITER_LOCK
from leaderboard.database.sql import load_queries
from leaderboard.snapshot import Snapshot
from leaderboard.tuning import LogTuning
from tests.change_log.views import (
    PLENTY,
    PRUNE_NOW,
    Writer,
    end_all,
    log_length,
    new_view,
    schedule_settings,
    schedules,
)
from tests.system import PATIENCE_S, connect

pytestmark = pytest.mark.anyio


@schedule_settings
@given(
    schedule=schedules,
    prunes=st.dictionaries(st.integers(0, 40), st.sampled_from([1, 2, 3, 1000]), max_size=12),
    every=st.integers(1, 4),
)
async def test_pruning_makes_no_view_wrong(
    database: Database,
    db: asyncpg.Connection,
    writers: list[Writer],
    schedule: list[tuple[int, str, int, int]],
    prunes: dict[int, int],
    every: int,
) -> None:
    views = [await new_view(db, None)]
    try:
        for number, (writer, action, user_id, score) in enumerate(schedule):
            await writers[writer].do(action, user_id, score)
            if number in prunes:
                await database.change_log.prune(LogTuning(keep_s=0, prune_batch=prunes[number]))
            if number % every == 0:
                views.append(await new_view(db, 3 if number % 2 else None))
            await views[number % len(views)].catch_up(db)
    finally:
        await end_all(writers)
    for view in views:
        await view.catch_up(db)
    # A view that is up to date can always be caught up, whatever is pruned.
    for _ in range(3):
        await database.change_log.prune(PRUNE_NOW)
        reloaded = views[-1].reloaded
        await views[-1].catch_up(db)
        assert views[-1].reloaded == reloaded


async def test_pruning_deletes_old_rows_and_keeps_new_ones(database: Database, db: asyncpg.Connection) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT n FROM generate_series(1, 10) AS n")
    before = await database.now()
    await db.execute("UPDATE users SET total_score = 1")
    assert await database.change_log.prune(LogTuning(keep_s=3600, prune_batch=1000)) is None
    assert await log_length(db) == 20
    # Pruning deletes the rows that existed when the previous pruning started.
    assert await database.change_log.prune(PRUNE_NOW) == 0
    await db.execute("UPDATE users SET total_score = 2")
    assert (await database.change_log.changes_since(before.snapshot, None, PLENTY)).reaches
    assert await database.change_log.prune(LogTuning(keep_s=60, prune_batch=1000)) is None
    assert await database.change_log.prune(LogTuning(keep_s=0, prune_batch=15)) == 15
    assert not (await database.change_log.changes_since(before.snapshot, None, PLENTY)).reaches
    assert await database.change_log.prune(LogTuning(keep_s=0, prune_batch=15)) == 5
    assert await log_length(db) == 10
    assert await database.change_log.prune(LogTuning(keep_s=0, prune_batch=15)) == 10
    assert await log_length(db) == 0
    changes = await database.change_log.changes_since((await database.now()).snapshot, None, PLENTY)
    assert (changes.reaches, changes.changed) == (True, [])


async def test_pruning_keeps_the_rows_of_transactions_that_were_running(
    settings: Settings, database: Database, db: asyncpg.Connection
) -> None:
    other = await connect(settings)
    await other.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    async with db.transaction():
        await db.execute("UPDATE users SET total_score = 1 WHERE user_id = 1")
        await other.execute("UPDATE users SET total_score = 2 WHERE user_id = 2")
        view = await new_view(other, None)
        await database.change_log.prune(PRUNE_NOW)  # takes a snapshot in which the first transaction runs,
    assert await database.change_log.prune(PRUNE_NOW) == 3  # up to which this one prunes
    assert [row["user_id"] for row in await db.fetch("SELECT user_id FROM changes")] == [1]
    await view.catch_up(db)
    assert (view.caught_up, view.reloaded) == (1, 0)
    assert view.users[1] == ("a", None, 1)
    await other.close()


async def test_a_view_cannot_catch_up_over_pruned_rows_of_a_transaction_that_was_running(
    settings: Settings, database: Database, db: asyncpg.Connection
) -> None:
    """Except for that transaction, the snapshot of the view is as new as the one that pruning used."""
    other = await connect(settings)
    await other.execute("INSERT INTO users VALUES (1, 'a')")
    async with db.transaction():
        await db.execute("UPDATE users SET total_score = 1 WHERE user_id = 1")
        await other.execute("SELECT pg_current_xact_id()")
        view = (await database.now()).snapshot
    assert len(view.xip) == 1
    await database.change_log.prune(PRUNE_NOW)  # takes a snapshot in which it has ended,
    await database.change_log.prune(PRUNE_NOW)  # up to which this one prunes
    assert await log_length(db) == 0
    pruned = Snapshot.parse(await db.fetchval("SELECT pruned::text FROM log_state"))
    assert view.xmax == pruned.xmax, "another transaction ran in between, and the test needs that none does"
    assert not (await database.change_log.changes_since(view, None, PLENTY)).reaches
    await other.close()


async def test_one_of_two_concurrent_prunings_works_and_the_other_returns_at_once(
    database: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT n FROM generate_series(1, 10) AS n")
    assert await database.change_log.prune(PRUNE_NOW) == 0
    async with db.transaction():
        assert await db.fetchval(load_queries("change_log")["prune"], 0.0, 4, WRITER_LOCK, 600.0) == 4
        assert await asyncio.wait_for(database.change_log.prune(PRUNE_NOW), PATIENCE_S) is None
    results = await asyncio.gather(
        *(database.change_log.prune(LogTuning(keep_s=0, prune_batch=2)) for _ in range(8))
    )
    assert sum(result or 0 for result in results) == 10 - 4 - await log_length(db)
    while await database.change_log.prune(PRUNE_NOW):
        pass
    assert await log_length(db) == 0
