"""A score arrives while its user is hidden, shown again or erased; either of them holds its locks and is first."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.errors import NotOnBoard, UserNotFound
from leaderboard.queries import PageQuery, SeasonRef
from tests.boards.boards import add_users, make_board, two_started, waits_for_lock
from tests.system import THOROUGH, until
from tests.writes.writing import batched

pytestmark = pytest.mark.anyio

USER, OTHER = 1, 2
ENTRIES = ("new", "existing", "default")
"""The entry that is written: a new one, an existing one, that of the board `default`."""
CHANGES = {
    "hide": "UPDATE users SET hidden = true WHERE user_id = 1",
    "show": "UPDATE users SET hidden = false WHERE user_id = 1",
    "erase": "DELETE FROM users WHERE user_id = 1",
}


async def prepare(app: App, db: asyncpg.Connection, entry: str, change: str) -> None:
    """Makes a board on which the user has no entry or one with the score 5; hides the user before `show`."""
    await add_users(db, 2)
    await make_board(app, "board")
    await app.service.entries.set_score("board", OTHER, 1)
    if entry == "existing":
        await app.service.entries.set_score("board", USER, 5)
    if change == "show":
        await app.service.users.update(USER, hidden=True)


def write(app: App, entry: str) -> Coroutine[Any, Any, Any]:
    if entry == "default":
        return app.service.writes.set_score(USER, 7)
    return app.service.entries.set_score("board", USER, 7)


async def write_by_hand(session: asyncpg.Connection, entry: str) -> None:
    match entry:
        case "default":
            await session.execute("UPDATE users SET total_score = 7 WHERE user_id = 1")
        case "existing":
            await session.execute("UPDATE scores SET sort_key = 7 WHERE user_id = 1")
        case _:
            await session.execute(
                "INSERT INTO scores (season_id, user_id, sort_key)"
                " SELECT season_id, 1, 7 FROM open_seasons(ARRAY(SELECT board_id FROM boards WHERE board_id > 1))"
            )


def change_user(app: App, change: str) -> Coroutine[Any, Any, Any]:
    if change == "erase":
        return app.service.users.erase(USER)
    return app.service.users.update(USER, hidden=change == "hide")


async def shown(app: App, entry: str) -> int | None:
    """Returns the score that a process shows for the user: in a standing, a page and a top; None if not at all."""
    season = None if entry == "default" else SeasonRef("board")
    page = (await app.service.reads.page(PageQuery(10, season=season))).result
    top = (await app.service.reads.top(10, season)).result.decode()
    found = {(user.user_id, user.total_score) for user in page.users}
    assert found == {(user.user_id, user.total_score) for user in top.users}
    try:
        score = (await app.service.reads.standing(USER, season)).result.total_score
    except (NotOnBoard, UserNotFound):
        score = None
    assert dict(found).get(USER) == score
    return score


async def check(apps: tuple[App, App], db: asyncpg.Connection, entry: str, change: str) -> None:
    """Checks what both processes show after the score 7 was written and the user was changed."""
    assert (
        await db.fetchval(
            "SELECT count(*) FROM scores AS e LEFT JOIN users AS u USING (user_id)"
            " WHERE e.hidden IS DISTINCT FROM u.hidden"
        )
        == 0
    )
    for app in apps:
        assert await shown(app, entry) == (7 if change == "show" else None)
    if change == "hide":
        await apps[0].service.users.update(USER, hidden=False)
        assert await shown(apps[1], entry) == 7


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("change", CHANGES)
async def test_a_score_that_arrives_while_its_user_is_changed(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection, entry: str, change: str
) -> None:
    async with two_started(settings) as apps:
        await prepare(apps[0], db, entry, change)
        queue = "scores" if entry == "default" else "entries"
        before = batched(apps[0], queue)
        async with session.transaction():
            await session.execute(CHANGES[change])
            writing = asyncio.ensure_future(write(apps[0], entry))

            async def tried_again() -> bool:
                return writing.done() or batched(apps[0], queue) >= before + 3

            await until(tried_again, "the write is tried again")
            assert not writing.done()
        if change == "erase":
            with pytest.raises(UserNotFound):
                await writing
        else:
            await writing
        await check(apps, db, entry, change)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("change", CHANGES)
async def test_a_user_that_is_changed_while_its_score_is_written(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection, entry: str, change: str
) -> None:
    async with two_started(settings) as apps:
        await prepare(apps[0], db, entry, change)
        async with session.transaction():
            await write_by_hand(session, entry)
            changing = asyncio.ensure_future(change_user(apps[0], change))
            await until(partial(waits_for_lock, db), "the change waits")
            assert not changing.done()
        await changing
        await check(apps, db, entry, change)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_new_entry_by_hand_waits_for_the_change_of_its_user(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection, change: str
) -> None:
    """The service skips a locked user. SQL by hand waits in the trigger."""
    async with two_started(settings) as apps:
        await prepare(apps[0], db, "new", change)
        async with session.transaction():
            await session.execute(CHANGES[change])
            inserting = asyncio.ensure_future(write_by_hand(db, "new"))
            await until(partial(waits_for_lock, session), "the insertion waits")
        if change == "erase":
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                await inserting
        else:
            await inserting
        await check(apps, db, "new", change)


async def test_a_hidden_user_that_is_inserted_again_with_its_id_stays_hidden(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    """An entry is inserted meanwhile, and finds the row of the erased user gone and the other one in its place."""
    async with two_started(settings) as apps:
        await prepare(apps[0], db, "new", "hide")
        async with session.transaction():
            await session.execute("DELETE FROM users WHERE user_id = 1")
            await session.execute("INSERT INTO users (user_id, user_name, hidden) VALUES (1, 'again', true)")
            inserting = asyncio.ensure_future(write_by_hand(db, "new"))
            await until(partial(waits_for_lock, session), "the insertion waits")
        await inserting
        await check(apps, db, "new", "hide")


async def test_no_read_shows_a_user_that_was_hidden_while_it_was_new_on_a_board(
    settings: Settings, db: asyncpg.Connection
) -> None:
    """Both begin at the same moment, on two processes, without held locks."""
    rounds = 30 * THOROUGH
    await add_users(db, rounds)
    async with two_started(settings) as apps:
        await make_board(apps[0], "board")
        for user_id in range(1, rounds + 1):
            writing, hiding = apps if user_id % 2 else apps[::-1]
            await asyncio.gather(
                writing.service.entries.set_score("board", user_id, user_id),
                hiding.service.users.update(user_id, hidden=True),
            )
            for app in apps:
                with pytest.raises(NotOnBoard):
                    await app.service.reads.standing(user_id, SeasonRef("board"))
                page = await app.service.reads.page(PageQuery(10, season=SeasonRef("board")))
                assert page.result.users == []
