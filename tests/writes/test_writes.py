"""Group commit against PostgreSQL: each write by itself, whatever its batch and other sessions are up to."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from leaderboard.app import App, database_from
from leaderboard.batching import CancelledBeforeStart
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.scores import NewScore
from leaderboard.database.users import NewUser
from leaderboard.database.writing import WriteConflict
from leaderboard.errors import (
    DatabaseRefused,
    DatabaseUnavailable,
    LeaderboardError,
    LockedOut,
    OutcomeUnknown,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.model import ScoreSet, User
from leaderboard.snapshot import CommitPosition, SnapshotPosition
from leaderboard.tuning import Tuning, WriteTuning
from tests.system import PATIENCE_S, connect, free_port, sql, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A second session, as somebody with psql would have."""
    connection = await connect(settings)
    yield connection
    await connection.close()


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Database]:
    async with opened(settings) as database:
        yield database


@asynccontextmanager
async def opened(settings: Settings, tuning: WriteTuning | None = None) -> AsyncIterator[Database]:
    database = database_from(settings, Tuning(writes=tuning or WriteTuning()))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


PATIENT = WriteTuning(name_wait_ms=60_000)
"""A batch waits for a name as long as it takes."""


@asynccontextmanager
async def running(settings: Settings, tuning: WriteTuning) -> AsyncIterator[App]:
    """The whole service, with other bounds for writes."""
    app = App(settings, Tuning(writes=tuning))
    async with app.running():
        yield app


def batched(app: App, queue: str) -> float:
    """How many items the batches of a queue have had."""
    return app.metrics.registry.get_sample_value("leaderboard_batch_items_sum", {"queue": queue}) or 0.0


async def waiting_sessions(db: asyncpg.Connection) -> list[int]:
    """The sessions of the service that wait for a lock."""
    rows = await db.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'leaderboard'"
    )
    return [row["pid"] for row in rows]


async def add_users(db: asyncpg.Connection, count: int) -> None:
    """Users 1 to `count`, each with ten times its id for a score."""
    await db.execute(
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'user ' || n, 10 * n FROM generate_series(1, $1::int) AS n",
        count,
    )


async def scores(db: asyncpg.Connection) -> dict[int, int]:
    return {row[0]: row[1] for row in await db.fetch("SELECT user_id, total_score FROM users")}


# Outcomes


async def test_scores_of_one_user_are_chained(store: Database, db: asyncpg.Connection) -> None:
    await add_users(db, 2)
    batch = [NewScore(1, 5), NewScore(2, 0), NewScore(1, 7), NewScore(99, 1), NewScore(1, 7), NewScore(1, -6)]
    written = await store.scores.set(batch)
    assert written.results == [
        ScoreSet(1, "user 1", None, 5, 10),
        ScoreSet(2, "user 2", None, 0, 20),
        ScoreSet(1, "user 1", None, 7, 5),
        WriteConflict.UNKNOWN_USER,
        ScoreSet(1, "user 1", None, 7, 7),
        ScoreSet(1, "user 1", None, -6, 7),
    ]
    assert await scores(db) == {1: -6, 2: 0}
    assert isinstance(written.position, CommitPosition)
    assert (await store.now()).reflects(written.position)


async def test_many_scores_of_one_user_at_once_each_replace_another(leaderboard: App) -> None:
    user = await leaderboard.writes.create_user("hot", None, 0)
    results = await asyncio.gather(*(leaderboard.writes.set_score(user.user_id, n) for n in range(1, 101)))
    previous = {result.total_score: result.previous_score for result in results}
    (last,) = set(previous) - set(previous.values())
    order = [last]
    while order[-1] != 0:
        order.append(previous[order[-1]])
    assert len(order) == 101
    standing = (await leaderboard.reads.standing(user.user_id)).result
    assert getattr(standing, "total_score", None) == last


async def test_a_batch_that_writes_nothing_has_the_position_of_its_snapshot(
    store: Database, db: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    unknown = await store.scores.set([NewScore(98, 1), NewScore(99, 1)])
    assert unknown.results == [WriteConflict.UNKNOWN_USER] * 2
    assert isinstance(unknown.position, SnapshotPosition)
    taken = await store.users.create([NewUser("user 1", None, 1)])
    assert taken.results == [WriteConflict.NAME_TAKEN]
    assert (await store.now()).reflects(taken.position)


async def test_of_several_with_one_name_the_first_gets_it(store: Database, db: asyncpg.Connection) -> None:
    await add_users(db, 1)
    names = ["b", "user 1", "a", "b", "ä", "A", "a"]
    written = await store.users.create([NewUser(name, f"image {n}", n) for n, name in enumerate(names)])
    created = [outcome if isinstance(outcome, WriteConflict) else outcome.user_name for outcome in written.results]
    assert created == [
        "b",
        WriteConflict.NAME_TAKEN,
        "a",
        WriteConflict.NAME_TAKEN,
        "ä",
        "A",
        WriteConflict.NAME_TAKEN,
    ]
    for outcome in written.results:
        if isinstance(outcome, User):
            row = await db.fetchrow("SELECT * FROM users WHERE user_id = $1", outcome.user_id)
            assert row is not None
            assert tuple(row) == (outcome.user_id, outcome.user_name, outcome.image_url, outcome.total_score)
    assert await db.fetchval("SELECT image_url FROM users WHERE user_name = 'b'") == "image 0"


async def test_a_name_refused_for_a_user_not_yet_committed_waits_for_that_user(
    store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """The refusal tells of a user newer than the statement's snapshot; its point must show that user."""
    transaction = other.transaction()
    await transaction.start()
    await other.execute("INSERT INTO users (user_name) VALUES ('new')")
    xid = int(await other.fetchval("SELECT pg_current_xact_id()::text"))
    creating = asyncio.create_task(store.users.create([NewUser("new", None, 0)]))
    await until(lambda: waiting_sessions(db), "the creator waits")
    await transaction.commit()
    written = await creating
    assert written.results == [WriteConflict.NAME_TAKEN]
    position = written.position
    assert isinstance(position, CommitPosition) or position.snapshot.sees(xid)
    if isinstance(position, CommitPosition):
        assert (await store.now()).reflects(position)


# Rows and names that others hold


async def test_a_locked_row_is_skipped_and_told_from_an_unknown_one(
    store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 3)
    async with other.transaction():
        await other.execute("SELECT FROM users WHERE user_id = 2 FOR UPDATE")
        written = await store.scores.set([NewScore(n, -n) for n in (1, 2, 3, 4, 2)])
    kinds = [outcome if isinstance(outcome, WriteConflict) else outcome.user_id for outcome in written.results]
    assert kinds == [1, WriteConflict.LOCKED, 3, WriteConflict.UNKNOWN_USER, WriteConflict.LOCKED]
    assert await scores(db) == {1: -1, 2: 20, 3: -3}


async def test_a_reference_to_a_user_delays_no_write(
    store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    await db.execute("CREATE TABLE badges (user_id int REFERENCES users)")
    async with other.transaction():
        await other.execute("INSERT INTO badges VALUES (1)")
        written = await store.scores.set([NewScore(1, 5)])
    assert written.results == [ScoreSet(1, "user 1", None, 5, 10)]


async def test_a_locked_row_delays_its_own_user_only(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 201)
    async with running(settings, WriteTuning(row_wait_s=PATIENCE_S)) as leaderboard, other.transaction():
        await leaderboard.writes.set_score(1, 1)
        await other.execute("SELECT FROM users WHERE user_id = 1 FOR UPDATE")
        held = asyncio.create_task(leaderboard.writes.set_score(1, 1000))
        others = [leaderboard.writes.set_score(user_id, -user_id) for user_id in range(2, 202)]
        results = await asyncio.wait_for(asyncio.gather(*others), PATIENCE_S)
        assert [result.previous_score for result in results] == [10 * user_id for user_id in range(2, 202)]
        assert not held.done()
        await other.execute("ROLLBACK; BEGIN")
        assert (await held).previous_score == 1


async def test_a_locked_row_is_waited_for_so_long_and_no_longer(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with running(settings, WriteTuning(row_wait_s=0.3)) as leaderboard:
        async with other.transaction():
            await other.execute("SELECT FROM users WHERE user_id = 1 FOR UPDATE")
            started = time.monotonic()
            with pytest.raises(LockedOut):
                await asyncio.wait_for(leaderboard.writes.set_score(1, 1000), PATIENCE_S)
            assert time.monotonic() - started > 0.3
        assert (await leaderboard.writes.set_score(1, 2)).previous_score == 10


async def test_a_locked_row_is_written_when_it_is_released(
    leaderboard: App, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 2)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE users SET total_score = 77 WHERE user_id = 1")
    await other.execute("DELETE FROM users WHERE user_id = 2")
    first = asyncio.create_task(leaderboard.writes.set_score(1, 1000))
    second = asyncio.create_task(leaderboard.writes.set_score(2, 1000))
    await until(lambda: _later(batched(leaderboard, "scores") > 4), "both were skipped and tried again")
    assert not first.done()
    assert not second.done()
    await transaction.commit()
    assert await first == ScoreSet(1, "user 1", None, 1000, 77)
    with pytest.raises(UserNotFound):
        await second
    assert await scores(db) == {1: 1000}


async def _later(value: object) -> object:
    return value


@asynccontextmanager
async def a_deadlock(
    settings: Settings, store: Database, db: asyncpg.Connection
) -> AsyncIterator["asyncio.Task[Any]"]:
    """Ours creates `a`, then `b`, while somebody has created `b` and wants `a`; ours is the one to find out."""
    await db.execute(f"ALTER DATABASE {settings.db_name} SET deadlock_timeout = '1s'")
    other = await connect(settings)
    try:
        await other.execute("SET deadlock_timeout = '60s'")
        await other.execute("BEGIN; INSERT INTO users (user_name) VALUES ('b')")
        creating = asyncio.create_task(store.users.create([NewUser("b", None, 1), NewUser("a", None, 1)]))
        await until(lambda: waiting_sessions(db), "ours waits")
        await other.execute("INSERT INTO users (user_name) VALUES ('a')")
        await other.execute("ROLLBACK")
        yield creating
    finally:
        await other.close()


async def test_after_a_deadlock_it_is_tried_again(settings: Settings, db: asyncpg.Connection) -> None:
    async with opened(settings, PATIENT) as store, a_deadlock(settings, store, db) as creating:
        written = await creating
    assert [getattr(result, "user_name", None) for result in written.results] == ["b", "a"]
    assert await db.fetchval("SELECT count(*) FROM users") == 2
    await until(
        lambda: db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"),
        "PostgreSQL has counted the deadlock",
    )


async def test_a_deadlock_that_persists_is_an_error_of_this_program(
    settings: Settings, db: asyncpg.Connection
) -> None:
    async with (
        opened(settings, replace(PATIENT, attempts=1)) as store,
        a_deadlock(settings, store, db) as creating,
    ):
        with pytest.raises(LeaderboardError):
            await creating


async def test_a_lock_timeout_of_the_role_is_an_error_of_this_program(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await db.execute(f"ALTER DATABASE {settings.db_name} SET lock_timeout = '50ms'")
    async with opened(settings) as store, other.transaction():
        await other.execute("INSERT INTO users (user_name) VALUES ('a')")
        with pytest.raises(LeaderboardError):
            await store.users.create([NewUser("a", None, 1)])


async def test_overlapping_names_from_two_processes_do_not_deadlock(
    settings: Settings, db: asyncpg.Connection
) -> None:
    once = WriteTuning(attempts=1)
    await db.execute(f"ALTER DATABASE {settings.db_name} SET deadlock_timeout = '10ms'")
    chance = random.Random(7)
    created: list[str] = []
    async with opened(settings, once) as one, opened(settings, once) as two:
        for round_ in range(15):
            names = [f"{round_} {n}" for n in range(150)]
            batches = [[NewUser(name, None, 0) for name in chance.sample(names, 120)] for _ in range(6)]
            writing = [(one, two)[n % 2].users.create(batch) for n, batch in enumerate(batches)]
            for written in await asyncio.gather(*writing):
                created += [user.user_name for user in written.results if isinstance(user, User)]
    assert len(created) == len(set(created))
    assert sorted(created) == [
        row["user_name"] for row in await db.fetch("SELECT * FROM users ORDER BY user_name")
    ]


async def test_names_are_inserted_in_their_order_whatever_the_order_of_the_batch(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    async with opened(settings, PATIENT) as store, other.transaction():
        await other.execute("INSERT INTO users (user_name) VALUES ('a')")
        creating = asyncio.create_task(store.users.create([NewUser("b", None, 1), NewUser("a", None, 1)]))
        await until(lambda: waiting_sessions(db), "ours waits for the first name")
        # While it waits for `a` it must not hold `b`, which the holder of `a` may want.
        await db.execute("SET lock_timeout = '500ms'")
        free = await db.fetchval(
            "INSERT INTO users (user_name) VALUES ('b') ON CONFLICT (user_name) DO NOTHING RETURNING true"
        )
        assert free
        await other.execute("COMMIT; BEGIN")
        assert (await creating).results == [WriteConflict.NAME_TAKEN] * 2


async def test_names_that_exist_use_up_no_ids(store: Database, db: asyncpg.Connection) -> None:
    await add_users(db, 50)
    for _ in range(3):
        written = await store.users.create([NewUser(f"user {n}", None, 0) for n in range(1, 51)])
        assert written.results == [WriteConflict.NAME_TAKEN] * 50
    written = await store.users.create([NewUser("user 51", None, 0), NewUser("user 50", None, 0)])
    assert isinstance(written.results[0], User)
    assert written.results[0].user_id == 51


WRITES: dict[str, Callable[[Database], Awaitable[object]]] = {
    "set_scores": lambda store: store.scores.set([NewScore(1, 5)]),
    "create_users": lambda store: store.users.create([NewUser("a", None, 5)]),
}


async def test_a_role_whose_transactions_are_repeatable_read_has_its_writes_done_as_well(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    await db.execute(f"ALTER DATABASE {settings.db_name} SET default_transaction_isolation = 'repeatable read'")
    async with opened(settings, PATIENT) as store:
        async with other.transaction():
            await other.execute("UPDATE users SET total_score = 4 WHERE user_id = 1")
            await other.execute("INSERT INTO users (user_name) VALUES ('a')")
            writing = asyncio.ensure_future(store.users.create([NewUser("a", None, 5)]))
            await until(lambda: waiting_sessions(db), "the write waits")
        assert (await writing).results == [WriteConflict.NAME_TAKEN]


async def test_a_name_not_yet_committed_delays_no_other_user(
    leaderboard: App, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    async with other.transaction():
        await other.execute("INSERT INTO users (user_name) VALUES ('held')")
        names = [*(f"free {n}" for n in range(50)), "held"]
        async with asyncio.timeout(PATIENCE_S):
            creating = [leaderboard.writes.create_user(name, None, 0) for name in names]
            results = await asyncio.gather(*creating, return_exceptions=True)
    assert all(isinstance(result, User) for result in results[:-1])
    assert isinstance(results[-1], LockedOut)


async def test_a_locked_row_refuses_all_its_writers(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with running(settings, WriteTuning(row_wait_s=0.3)) as leaderboard, other.transaction():
        await other.execute("SELECT FROM users WHERE user_id = 1 FOR UPDATE")
        async with asyncio.timeout(PATIENCE_S):
            setting = [leaderboard.writes.set_score(1, n) for n in range(30)]
            results = await asyncio.gather(*setting, return_exceptions=True)
    assert {type(result) for result in results} == {LockedOut}


# One item's fault


async def test_only_the_items_at_fault_are_refused(leaderboard: App, db: asyncpg.Connection) -> None:
    await add_users(db, 50)
    await db.execute("ALTER TABLE users ADD CHECK (total_score <> 666)")
    wanted = {user_id: 666 if user_id in {17, 30} else -user_id for user_id in range(1, 51)}
    setting = [leaderboard.writes.set_score(user_id, score) for user_id, score in wanted.items()]
    results = dict(zip(wanted, await asyncio.gather(*setting, return_exceptions=True), strict=True))
    refused = {user_id for user_id, result in results.items() if isinstance(result, DatabaseRefused)}
    assert refused == {17, 30}
    assert all(isinstance(result, ScoreSet) for user_id, result in results.items() if user_id not in refused)
    expected = {user_id: 10 * user_id if user_id in refused else -user_id for user_id in wanted}
    assert await scores(db) == expected

    creating = [leaderboard.writes.create_user(f"new {n}", None, 666 if n == 5 else n) for n in range(20)]
    creating.append(leaderboard.writes.create_user("new 7", None, 8))
    made = await asyncio.gather(*creating, return_exceptions=True)
    kinds = [type(result) for result in made]
    assert kinds == [User] * 5 + [DatabaseRefused] + [User] * 14 + [UsernameTaken]
    assert await db.fetchval("SELECT count(*) FROM users WHERE user_name LIKE 'new %'") == 19
    largest = batched(leaderboard, "scores")
    assert largest >= 50, "they have to have been in batches together"


async def test_a_refused_batch_has_changed_nothing(store: Database, db: asyncpg.Connection) -> None:
    await add_users(db, 3)
    await db.execute("ALTER TABLE users ADD CHECK (total_score <> 666)")
    with pytest.raises(DatabaseRefused):
        await store.scores.set([NewScore(1, 1), NewScore(2, 666), NewScore(3, 3)])
    with pytest.raises(DatabaseRefused):
        await store.users.create([NewUser("a", None, 1), NewUser("b", None, 666)])
    with pytest.raises(DatabaseRefused):
        await store.scores.set([NewScore(2, 666)])
    assert await scores(db) == {1: 10, 2: 20, 3: 30}


# Durability


@pytest.mark.parametrize(
    ("of_the_role", "at_commit"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
)
async def test_a_commit_is_synchronous_whatever_the_role_says(
    settings: Settings, db: asyncpg.Connection, of_the_role: str, at_commit: str
) -> None:
    await add_users(db, 2)
    await db.execute(
        "CREATE TABLE commits (setting text, who text);"
        "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO commits VALUES (current_setting('synchronous_commit'), new.user_name); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE ON users DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION look()"
    )
    await db.execute(
        f"ALTER ROLE {settings.db_user} IN DATABASE {settings.db_name} SET synchronous_commit = {of_the_role}"
    )
    async with opened(settings) as store:
        await store.scores.set([NewScore(1, 1)])
        await store.scores.set([NewScore(2, 2)])
        await store.users.create([NewUser("a", None, 1)])
    by_hand = await connect(settings)
    await by_hand.execute("INSERT INTO users (user_name) VALUES ('by hand')")
    await by_hand.close()
    rows = [tuple(row) for row in await db.fetch("SELECT setting, who FROM commits")]
    assert rows == [(at_commit, "user 1"), (at_commit, "user 2"), (at_commit, "a"), (of_the_role, "by hand")]


# A server that goes away


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_connection_lost_during_a_write_leaves_its_outcome_unknown(
    store: Database,
    db: asyncpg.Connection,
    other: asyncpg.Connection,
    write: Callable[[Database], Awaitable[object]],
) -> None:
    await add_users(db, 1)
    async with other.transaction():
        await other.execute("LOCK TABLE users IN SHARE MODE")
        writing = asyncio.ensure_future(write(store))
        await until(lambda: waiting_sessions(db), "the write waits")
        await db.execute("SELECT pg_terminate_backend($1)", (await waiting_sessions(db))[0])
        with pytest.raises(OutcomeUnknown):
            await writing
    await write(store)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_write_that_is_not_confirmed_in_time_leaves_its_outcome_unknown(
    settings: Settings,
    db: asyncpg.Connection,
    other: asyncpg.Connection,
    write: Callable[[Database], Awaitable[object]],
) -> None:
    await add_users(db, 1)
    async with opened(settings) as store:
        await store.now()  # so that there is a connection, and it is not that which takes too long
        async with other.transaction():
            await other.execute("LOCK TABLE users IN SHARE MODE")
            store.connections.timeout_s = 0.5
            with pytest.raises(OutcomeUnknown):
                await write(store)
            store.connections.timeout_s = PATIENCE_S
        await write(store)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_write_that_was_not_sent_has_changed_nothing_and_says_so(
    settings: Settings,
    db: asyncpg.Connection,
    other: asyncpg.Connection,
    write: Callable[[Database], Awaitable[object]],
) -> None:
    await add_users(db, 1)
    never_opened = database_from(settings)
    with pytest.raises(DatabaseUnavailable):
        await write(never_opened)
    async with opened(settings.model_copy(update={"db_port": free_port()})) as nobody_there:
        with pytest.raises(DatabaseUnavailable):
            await write(nobody_there)
    one_connection = database_from(settings.model_copy(update={"db_pool_size": 1}))
    await one_connection.open()
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE users IN SHARE MODE")
            first = asyncio.ensure_future(write(one_connection))
            await until(lambda: waiting_sessions(db), "the only connection is in use")
            one_connection.connections.timeout_s = 0.1
            with pytest.raises(DatabaseUnavailable):
                await write(one_connection)
            await db.execute("SELECT pg_terminate_backend($1)", (await waiting_sessions(db))[0])
            with pytest.raises(OutcomeUnknown):
                await first
    finally:
        await one_connection.close()
    assert await scores(db) == {1: 10}


async def test_every_caller_of_a_lost_batch_learns_that_the_outcome_is_unknown(
    leaderboard: App, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 20)
    async with other.transaction():
        await other.execute("LOCK TABLE users IN SHARE MODE")
        setting = asyncio.gather(
            *(leaderboard.writes.set_score(user_id, 1) for user_id in range(1, 21)), return_exceptions=True
        )
        await until(lambda: waiting_sessions(db), "the batch waits")
        await db.execute("SELECT pg_terminate_backend($1)", (await waiting_sessions(db))[0])
        assert {type(result) for result in await setting} == {OutcomeUnknown}
    assert await scores(db) == {n: 10 * n for n in range(1, 21)}
    results = await asyncio.gather(*(leaderboard.writes.set_score(user_id, 1) for user_id in range(1, 21)))
    assert [result.previous_score for result in results] == [10 * n for n in range(1, 21)]


def test_a_cancelled_request_does_not_cancel_its_batch(settings: Settings) -> None:
    sql(settings, "INSERT INTO users (user_name) VALUES ('a'), ('b')")

    async def story() -> None:
        board = App(settings)
        async with board.running():
            tasks = [asyncio.create_task(board.writes.set_score(user_id, 5)) for user_id in (1, 2)]
            await asyncio.sleep(0)  # both have been submitted
            while any(queue.depth for queue in board.writes.queues()):
                await asyncio.sleep(0)  # and their batch begins
            tasks[0].cancel()
            async with asyncio.timeout(PATIENCE_S):
                assert (await tasks[1]).previous_score == 0

    asyncio.run(story())
    assert [row[0] for row in sql(settings, "SELECT total_score FROM users")] == [5, 5]


async def test_a_caller_cancelled_while_the_row_is_locked_learns_that_nothing_was_done(
    settings: Settings, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add_users(db, 1)

    async def request() -> type[BaseException] | None:
        # As in a request: the task's own result would not tell the two kinds of cancellation apart.
        try:
            await leaderboard.writes.set_score(1, 77)
        except asyncio.CancelledError as error:
            return type(error)
        return None

    tuning = WriteTuning(row_retry_s=(5.0, 5.0))
    async with running(settings, tuning) as leaderboard, other.transaction():
        await other.execute("SELECT FROM users FOR UPDATE")
        task = asyncio.create_task(request())

        def waits() -> bool:
            return bool(batched(leaderboard, "scores")) and not any(q.running for q in leaderboard.writes.queues())

        await until(lambda: _later(waits()), "it waits to be tried again")
        task.cancel()
        assert await task is CancelledBeforeStart
    assert await db.fetchval("SELECT total_score FROM users") == 10
