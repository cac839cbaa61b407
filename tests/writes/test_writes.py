"""Group commit to PostgreSQL: each write has its own outcome, whatever else is in its batch."""

import asyncio

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.scores import NewScore
from leaderboard.database.users import NewUser
from leaderboard.database.writing import NotWritten
from leaderboard.errors import (
    DatabaseRefused,
    UsernameTaken,
)
from leaderboard.model import ScoreSet, User
from leaderboard.snapshot import CommitPosition, SnapshotPosition
from tests.system import connect, until
from tests.writes.writing import add_users, batched, opened, scores, waiting_sessions

pytestmark = pytest.mark.anyio


# Outcomes


async def test_each_score_of_one_user_in_a_batch_has_the_one_before_it_as_previous(
    database: Database, db: asyncpg.Connection
) -> None:
    await add_users(db, 2)
    batch = [NewScore(1, 5), NewScore(2, 0), NewScore(1, 7), NewScore(99, 1), NewScore(1, 7), NewScore(1, -6)]
    written = await database.scores.set(batch)
    assert written.results == [
        ScoreSet(1, "user 1", None, 5, 10),
        ScoreSet(2, "user 2", None, 0, 20),
        ScoreSet(1, "user 1", None, 7, 5),
        NotWritten.UNKNOWN_USER,
        ScoreSet(1, "user 1", None, 7, 7),
        ScoreSet(1, "user 1", None, -6, 7),
    ]
    assert await scores(db) == {1: -6, 2: 0}
    assert isinstance(written.position, CommitPosition)
    assert (await database.now()).reflects(written.position)


async def test_concurrent_scores_of_one_user_each_replace_another(leaderboard: App) -> None:
    user = await leaderboard.service.writes.create_user("hot", None, 0)
    results = await asyncio.gather(*(leaderboard.service.writes.set_score(user.user_id, n) for n in range(1, 101)))
    previous = {result.total_score: result.previous_score for result in results}
    (last,) = set(previous) - set(previous.values())
    order = [last]
    while order[-1] != 0:
        order.append(previous[order[-1]])
    assert len(order) == 101
    standing = (await leaderboard.service.reads.standing(user.user_id)).result
    assert getattr(standing, "total_score", None) == last


async def test_a_batch_that_writes_nothing_has_the_position_of_its_snapshot(
    database: Database, db: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    unknown = await database.scores.set([NewScore(98, 1), NewScore(99, 1)])
    assert unknown.results == [NotWritten.UNKNOWN_USER] * 2
    assert isinstance(unknown.position, SnapshotPosition)
    taken = await database.users.create([NewUser("user 1", None, 1)])
    assert taken.results == [NotWritten.NAME_TAKEN]
    assert (await database.now()).reflects(taken.position)


async def test_the_first_of_several_users_with_one_name_gets_it(
    database: Database, db: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    names = ["b", "user 1", "a", "b", "ä", "A", "a"]
    written = await database.users.create([NewUser(name, f"image {n}", n) for n, name in enumerate(names)])
    created = [outcome if isinstance(outcome, NotWritten) else outcome.user_name for outcome in written.results]
    assert created == [
        "b",
        NotWritten.NAME_TAKEN,
        "a",
        NotWritten.NAME_TAKEN,
        "ä",
        "A",
        NotWritten.NAME_TAKEN,
    ]
    for outcome in written.results:
        if isinstance(outcome, User):
            row = await db.fetchrow("SELECT * FROM users WHERE user_id = $1", outcome.user_id)
            assert row is not None
            assert tuple(row)[:4] == (outcome.user_id, outcome.user_name, outcome.image_url, outcome.total_score)
    assert await db.fetchval("SELECT image_url FROM users WHERE user_name = 'b'") == "image 0"


async def test_a_name_conflict_with_an_uncommitted_user_has_a_position_after_its_commit(
    database: Database, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    """The name belongs to a user newer than the statement's snapshot. The position must include that user."""
    transaction = session.transaction()
    await transaction.start()
    await session.execute("INSERT INTO users (user_name) VALUES ('new')")
    xid = int(await session.fetchval("SELECT pg_current_xact_id()::text"))
    creating = asyncio.create_task(database.users.create([NewUser("new", None, 0)]))
    await until(lambda: waiting_sessions(db), "the creator waits")
    await transaction.commit()
    written = await creating
    assert written.results == [NotWritten.NAME_TAKEN]
    position = written.position
    assert isinstance(position, CommitPosition) or position.snapshot.sees(xid)
    if isinstance(position, CommitPosition):
        assert (await database.now()).reflects(position)


# Bad items


async def test_only_the_bad_items_of_a_batch_are_rejected(leaderboard: App, db: asyncpg.Connection) -> None:
    await add_users(db, 50)
    await db.execute("ALTER TABLE users ADD CHECK (total_score <> 666)")
    wanted = {user_id: 666 if user_id in {17, 30} else -user_id for user_id in range(1, 51)}
    setting = [leaderboard.service.writes.set_score(user_id, score) for user_id, score in wanted.items()]
    results = dict(zip(wanted, await asyncio.gather(*setting, return_exceptions=True), strict=True))
    refused = {user_id for user_id, result in results.items() if isinstance(result, DatabaseRefused)}
    assert refused == {17, 30}
    assert all(isinstance(result, ScoreSet) for user_id, result in results.items() if user_id not in refused)
    expected = {user_id: 10 * user_id if user_id in refused else -user_id for user_id in wanted}
    assert await scores(db) == expected

    creating = [leaderboard.service.writes.create_user(f"new {n}", None, 666 if n == 5 else n) for n in range(20)]
    creating.append(leaderboard.service.writes.create_user("new 7", None, 8))
    made = await asyncio.gather(*creating, return_exceptions=True)
    kinds = [type(result) for result in made]
    assert kinds == [User] * 5 + [DatabaseRefused] + [User] * 14 + [UsernameTaken]
    assert await db.fetchval("SELECT count(*) FROM users WHERE user_name LIKE 'new %'") == 19
    largest = batched(leaderboard, "scores")
    assert largest >= 50, "the items were in common batches"


async def test_a_rejected_batch_changes_nothing(database: Database, db: asyncpg.Connection) -> None:
    await add_users(db, 3)
    await db.execute("ALTER TABLE users ADD CHECK (total_score <> 666)")
    with pytest.raises(DatabaseRefused):
        await database.scores.set([NewScore(1, 1), NewScore(2, 666), NewScore(3, 3)])
    with pytest.raises(DatabaseRefused):
        await database.users.create([NewUser("a", None, 1), NewUser("b", None, 666)])
    with pytest.raises(DatabaseRefused):
        await database.scores.set([NewScore(2, 666)])
    assert await scores(db) == {1: 10, 2: 20, 3: 30}


# Durability


@pytest.mark.parametrize(
    ("of_the_role", "at_commit"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
)
async def test_a_commit_is_synchronous_whatever_the_role_sets(
    settings: Settings, db: asyncpg.Connection, of_the_role: str, at_commit: str
) -> None:
    await add_users(db, 2)
    await db.execute(
        "CREATE TABLE commits (setting text, user_name text);"
        "CREATE FUNCTION record_setting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO commits VALUES (current_setting('synchronous_commit'), new.user_name); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER record_setting AFTER INSERT OR UPDATE ON users DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION record_setting()"
    )
    await db.execute(
        f"ALTER ROLE {settings.db_user} IN DATABASE {settings.db_name} SET synchronous_commit = {of_the_role}"
    )
    async with opened(settings) as database:
        await database.scores.set([NewScore(1, 1)])
        await database.scores.set([NewScore(2, 2)])
        await database.users.create([NewUser("a", None, 1)])
    by_hand = await connect(settings)
    await by_hand.execute("INSERT INTO users (user_name) VALUES ('by hand')")
    await by_hand.close()
    rows = [tuple(row) for row in await db.fetch("SELECT setting, user_name FROM commits")]
    assert rows == [(at_commit, "user 1"), (at_commit, "user 2"), (at_commit, "a"), (of_the_role, "by hand")]
