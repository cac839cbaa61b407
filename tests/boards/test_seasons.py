"""Seasons end at one moment for all processes, and cost the same however many entries they have."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial

import asyncpg
import pytest

from leaderboard.board_rules import BoardRules
from leaderboard.config import Settings
from leaderboard.errors import BoardNotFound, LockedOut, NotOnBoard, SeasonNotFound
from leaderboard.maintenance.seasons import SeasonKeeper
from tests.boards.boards import (
    add_users,
    fill,
    make_board,
    season_ids,
    shown,
    started,
    two_started,
    waits_for_lock,
)
from tests.rank_index.index import is_waited_for, make_writes_of_the_index_wait
from tests.system import PATIENCE_S, until

pytestmark = pytest.mark.anyio

DAILY = {"every": "day", "timezone": "UTC"}


async def test_a_write_that_waited_for_the_end_is_in_the_next_season(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 2)
    async with started(settings) as app:
        board = await make_board(app, "weekly")
        await app.service.entries.set_score("weekly", 1, 5)
        async with db.transaction():
            await db.fetch("SELECT * FROM end_season($1, $2, NULL)", board.board_id, board.season_id)
            writing = asyncio.create_task(app.service.entries.set_score("weekly", 2, 7))
            await until(partial(waits_for_lock, session), "the write waits")
        assert (await writing).season == 2
        assert (await shown(app, "weekly", 1), await shown(app, "weekly")) == ({1: 5}, {2: 7})


async def test_a_write_that_waited_past_the_end_is_in_the_next_season(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    """The end is compared with PostgreSQL's clock after the wait, not with the time when the write began."""
    await add_users(db, 1)
    async with started(settings) as app:
        board = await make_board(app, "weekly", season=DAILY)
        await session.execute("SELECT pg_advisory_lock(7001, $1)", board.board_id % 64)
        writing = asyncio.create_task(app.service.entries.set_score("weekly", 1, 7))
        await until(partial(waits_for_lock, db), "the write waits")
        await db.execute("UPDATE boards SET season_ends_at = clock_timestamp() WHERE board_id > 1")
        await session.execute("SELECT pg_advisory_unlock_all()")
        assert (await writing).season == 2


async def test_a_season_that_is_due_is_ended_by_a_write_and_by_the_job(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with two_started(settings) as apps:
        for name in ("by-write", "by-removal", "by-job"):
            await make_board(apps[0], name, season=DAILY)
        assert (await apps[0].service.entries.set_score("by-write", 1, 5)).season == 1
        assert (await apps[0].service.entries.set_score("by-removal", 1, 5)).season == 1
        # Ten ends were missed. They are skipped.
        await db.execute("UPDATE boards SET season_ends_at = now() - interval '10 days' WHERE board_id > 1")
        assert (await apps[1].service.entries.set_score("by-write", 1, 7)).season == 2
        with pytest.raises(NotOnBoard):
            await apps[1].service.entries.remove("by-removal", 1)
        await SeasonKeeper(apps[0].service.boards, apps[0].database.boards).end_due()
        for name in ("by-write", "by-removal", "by-job"):
            board = await apps[1].service.boards.get(name)
            assert board.season_number == 2
            assert board.season_ends_at is not None
            assert board.now < board.season_ends_at
        assert await shown(apps[1], "by-removal", 1) == {1: 5}
        assert await apps[0].service.boards.end_due() == 0


async def test_a_season_never_begins_past_its_end(settings: Settings) -> None:
    """A process read the board before an end of the schedule, and ends the season after it."""
    async with started(settings) as app:
        board = await make_board(app, "weekly", season=DAILY)
        await app.service.boards.end(replace(board, now=board.now - timedelta(days=1)))
        board = await app.service.boards.get("weekly")
        assert board.season_number == 2
        assert board.season_ends_at is not None
        assert board.season_started_at < board.season_ends_at


async def test_old_seasons_are_deleted_in_the_background(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, 2500)
    async with started(settings) as app:
        board = await make_board(app, "weekly", keepSeasons=2)
        await make_board(app, "other")
        await app.service.entries.set_score("other", 1, 1)
        first = board.season_id
        await fill(db, first, 2500)
        await db.execute("UPDATE users SET hidden = true WHERE user_id <= 1100")
        for number in range(1, 5):
            await app.service.boards.end_season("weekly", number)
            await app.service.entries.set_score("weekly", 2500, number)
        assert [season.number for season in await app.service.boards.seasons("weekly", None, 10)] == [5, 4, 3]
        with pytest.raises(SeasonNotFound):
            await shown(app, "weekly", 2)
        await db.execute("DELETE FROM changes")
        await SeasonKeeper(app.service.boards, app.database.boards).delete_orphans()
        left = await db.fetch("SELECT season_id, count(*) FROM scores GROUP BY 1 ORDER BY 1")
        ids = await season_ids(db, "weekly")
        assert {season_id for season_id, _ in left} == {first + 1, ids[3], ids[4], ids[5]}
        assert await db.fetchval("SELECT count(*) FROM changes") == 0
        assert await shown(app, "weekly", 3) == {2500: 2}


async def test_the_entries_of_a_deleted_board_are_deleted_in_the_background(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 30)
    async with started(settings) as app:
        for name in ("kept", "deleted"):
            board = await make_board(app, name)
            for number in (1, 2):
                await fill(db, (await app.service.boards.get(name)).season_id, 30)
                await app.service.boards.end_season(name, number)
            assert await app.database.rank_index.build(board.season_id)
        await db.execute("UPDATE users SET hidden = true WHERE user_id <= 3")
        await app.service.boards.delete("deleted")
        with pytest.raises(BoardNotFound):
            await app.service.entries.set_score("deleted", 10, 1)
        await db.execute("DELETE FROM changes")
        await SeasonKeeper(app.service.boards, app.database.boards).delete_orphans()
        registered = sorted((await season_ids(db, "kept")).values())
        left = await db.fetch("SELECT season_id, count(*) FROM scores GROUP BY 1 ORDER BY 1")
        assert list(map(tuple, left)) == [(season_id, 30) for season_id in registered[:2]]
        assert await db.fetchval("SELECT array_agg(season_id) FROM rank_index") == registered[:1]
        assert await db.fetchval("SELECT count(*) FROM changes") == 0


async def test_ending_a_season_touches_no_entry(settings: Settings, db: asyncpg.Connection) -> None:
    rows = "SELECT ctid, xmin, xmax, user_id, sort_key FROM scores ORDER BY user_id"
    await add_users(db, 1000)
    async with started(settings) as app:
        board = await make_board(app, "weekly")
        await fill(db, board.season_id, 1000)
        before = await db.fetch(rows)
        await app.service.boards.end_season("weekly", 1)
        assert await db.fetch(rows) == before


@pytest.mark.parametrize("change", ["delete", "configure"])
async def test_a_change_of_a_board_does_not_hold_up_the_writes_behind_it(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection, change: str
) -> None:
    """A transaction by hand holds the lock of the board for long. Writes share the lock with it."""
    await add_users(db, 1)
    async with two_started(settings) as apps:
        board = await make_board(apps[0], "weekly")
        await apps[1].service.entries.set_score("weekly", 1, 1)
        async with session.transaction():
            await session.fetch("SELECT * FROM open_seasons(ARRAY[$1::int])", board.board_id)
            changing = asyncio.create_task(
                apps[0].service.boards.delete("weekly")
                if change == "delete"
                else apps[0].service.boards.configure("weekly", BoardRules(title="new"))
            )
            await until(partial(waits_for_lock, db), "the change waits")
            await asyncio.wait_for(apps[1].service.entries.set_score("weekly", 1, 2), PATIENCE_S / 2)
        with suppress(LockedOut):
            await changing


async def test_no_rank_index_of_a_deleted_season_stays(settings: Settings, db: asyncpg.Connection) -> None:
    """The index was being built when the board was deleted."""
    await add_users(db, 30)
    async with started(settings) as app:
        board = await make_board(app, "deleted")
        await fill(db, board.season_id, 30)
        await make_writes_of_the_index_wait(db)
        building = asyncio.create_task(app.database.rank_index.build(board.season_id))
        await until(partial(is_waited_for, db), "the build waits")
        await app.service.boards.delete("deleted")
        await db.execute("SELECT pg_advisory_unlock(77)")
        await building
        await SeasonKeeper(app.service.boards, app.database.boards).delete_orphans()
        assert await db.fetchval("SELECT count(*) FROM rank_index WHERE season_id > 1") == 0
