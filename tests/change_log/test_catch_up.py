"""A view that is caught up from the change log equals the table at the same snapshot."""

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.sql import load_queries
from leaderboard.model import User
from leaderboard.snapshot import Snapshot
from tests.change_log.views import (
    PLENTY,
    PRUNE_NOW,
    SCORES,
    Writer,
    end_all,
    new_view,
    schedule_settings,
    schedules,
)
from tests.system import connect

pytestmark = pytest.mark.anyio


@schedule_settings
@given(schedule=schedules, floor=st.sampled_from(SCORES), rare_every=st.integers(2, 12))
async def test_a_view_that_catches_up_equals_the_table_at_its_snapshot(
    database: Database,
    db: asyncpg.Connection,
    writers: list[Writer],
    schedule: list[tuple[int, str, int, int]],
    floor: int,
    rare_every: int,
) -> None:
    always, rare, last = [await new_view(db, None) for _ in range(3)]
    partial, rare_partial = [await new_view(db, floor) for _ in range(2)]
    try:
        for number, (writer, action, user_id, score) in enumerate(schedule):
            await writers[writer].do(action, user_id, score)
            await always.catch_up(db)
            await partial.catch_up(db)
            if number % rare_every == 0:
                await rare.catch_up(db)
                await rare_partial.catch_up(db)
    finally:
        await end_all(writers)
    for view in (always, rare, last, partial, rare_partial):
        await view.catch_up(db)
        assert view.reloaded == 0


async def test_changes_of_a_long_transaction_are_read_when_it_commits(
    settings: Settings, database: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 100) AS n")
    others = await connect(settings)
    view = await new_view(others, None)
    async with db.transaction():
        await db.execute("UPDATE users SET total_score = 1 WHERE user_id = 1")
        for round_ in range(30):
            await others.execute(
                "UPDATE users SET total_score = $1 WHERE user_id BETWEEN 2 AND 4 OR user_id = $1", round_ + 5
            )
            changes = await database.change_log.changes_since(view.snapshot, None, PLENTY)
            assert len(changes.changed) in {3, 4}, "only the new rows, not all since the oldest transaction"
            await view.catch_up(others)
        await database.change_log.prune(PRUNE_NOW)
        await database.change_log.prune(PRUNE_NOW)
        await view.catch_up(others)
    changes = await database.change_log.changes_since(view.snapshot, None, PLENTY)
    assert changes.reaches
    assert [(user.user_id, user.total_score) for user in changes.changed] == [(1, 1)]
    await view.catch_up(others)
    assert view.reloaded == 0
    await others.close()


async def test_each_changed_user_is_returned_once_with_its_present_state(
    database: Database, db: asyncpg.Connection
) -> None:
    before = await database.now()
    await db.execute("INSERT INTO users VALUES (1, 'a', 'u', 1), (2, 'b', NULL, 2), (3, 'c', NULL, 3)")
    await db.execute("UPDATE users SET total_score = total_score + 10, user_name = user_name || '!'")
    await db.execute("DELETE FROM users WHERE user_id = 2")
    changes = await database.change_log.changes_since(before.snapshot, None, PLENTY)
    assert changes.reaches
    assert sorted(changes.changed, key=lambda user: user.user_id) == [
        User(1, "a!", "u", 11),
        User(3, "c!", None, 13),
    ]
    assert changes.deleted == [2]
    assert (await database.change_log.changes_since(changes.position.snapshot, None, PLENTY)).changed == []


async def test_a_floor_excludes_only_users_that_were_never_above_it(
    database: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users SELECT n, 'user ' || n, NULL, n * 10 FROM generate_series(1, 9) AS n")
    before = await database.now()
    await db.execute("UPDATE users SET total_score = 49 WHERE user_id = 1")  # stays below
    await db.execute("UPDATE users SET total_score = 50 WHERE user_id = 2")  # rises above the floor
    await db.execute("UPDATE users SET total_score = 49 WHERE user_id = 9")  # falls below the floor
    await db.execute("UPDATE users SET total_score = 90 WHERE user_id = 3")  # rises above the floor,
    await db.execute("UPDATE users SET total_score = 30 WHERE user_id = 3")  # and falls again
    await db.execute("DELETE FROM users WHERE user_id IN (4, 5)")  # 4 was below the floor, 5 on it
    await db.execute("UPDATE users SET user_name = 'six' WHERE user_id = 6")
    changes = await database.change_log.changes_since(before.snapshot, 50, PLENTY)
    assert sorted(user.user_id for user in changes.changed) == [2, 3, 6, 9]
    assert changes.deleted == [5]


async def test_a_plan_made_for_an_empty_log_does_not_scan_a_long_log(
    database: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT g::text FROM generate_series(1, 5000) AS g")
    await db.execute("DELETE FROM changes")
    await db.execute("VACUUM ANALYZE changes")
    async with database.connections.acquire() as connection:
        await connection.execute(f"PREPARE kept AS {load_queries('change_log')['changes_since']}")
        snapshot = await connection.fetchval("SELECT pg_current_snapshot()::text")
        execute = f"EXPLAIN EXECUTE kept('{snapshot}', 20000, 10)"
        for _ in range(2):
            plan = "\n".join(row[0] for row in await connection.fetch(execute))
            assert "changes_season_xid" in plan
            assert "Seq Scan on changes" not in plan
            await db.execute("UPDATE users SET total_score = total_score + 1")


@pytest.mark.parametrize("running", [False, True], ids=["since the snapshot", "running at the snapshot"])
async def test_a_log_longer_than_the_limit_cannot_be_caught_up_from(
    settings: Settings, database: Database, db: asyncpg.Connection, running: bool
) -> None:
    other = await connect(settings)
    transaction = db.transaction()
    await transaction.start()
    if running:
        await db.execute("SELECT pg_current_xact_id()")
        # A later transaction ends. Otherwise the running one would not be before the end of the snapshot.
        await other.execute("SELECT pg_current_xact_id()")
    before = await database.now()
    assert bool(before.snapshot.xip) == running
    await db.execute("INSERT INTO users (user_name) SELECT n FROM generate_series(1, 10) AS n")
    await transaction.commit()
    assert (await database.change_log.changes_since(before.snapshot, None, 11)).reaches
    assert not (await database.change_log.changes_since(before.snapshot, None, 10)).reaches
    assert not (await database.change_log.changes_since(before.snapshot, None, 3)).reaches
    assert (await database.change_log.changes_since((await database.now()).snapshot, None, 3)).reaches
    await other.close()


@pytest.mark.parametrize("running", [False, True], ids=["since the snapshot", "running at the snapshot"])
async def test_a_view_cannot_catch_up_over_a_new_barrier(
    settings: Settings, database: Database, db: asyncpg.Connection, running: bool
) -> None:
    other = await connect(settings)
    transaction = db.transaction()
    await transaction.start()
    if running:
        await db.execute("SELECT pg_current_xact_id()")
        await other.execute("SELECT pg_current_xact_id()")
    before = await database.now()
    await db.execute("TRUNCATE users CASCADE")
    await transaction.commit()
    for floor in (None, 5):
        changes = await database.change_log.changes_since(before.snapshot, floor, PLENTY)
        assert (changes.reaches, changes.log_valid) == (False, True)
    assert (await database.change_log.changes_since((await database.now()).snapshot, None, PLENTY)).reaches
    await other.close()


async def test_a_future_snapshot_cannot_be_caught_up_from(database: Database) -> None:
    """Otherwise the changes that commit before that snapshot would never be read."""
    present = (await database.now()).snapshot
    assert (await database.change_log.changes_since(present, None, PLENTY)).reaches
    future = Snapshot(present.xmax + 1000, present.xmax + 1000)
    assert not (await database.change_log.changes_since(future, None, PLENTY)).reaches
