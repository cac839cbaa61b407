"""The change log: whatever changes a user is in it, and a view that is caught up from it is never wrong.

The property tests keep copies of `users` by nothing but `catch_up`, while several transactions are open at
once, and compare them with the table as the same snapshot shows it.
"""

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from leaderboard.app import App, database_from
from leaderboard.config import Settings
from leaderboard.database.change_log import ChangeLog, Changes
from leaderboard.database.database import Database
from leaderboard.database.rank_index import WRITER_LOCK
from leaderboard.database.scores import NewScore
from leaderboard.database.sql import load_queries
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import popen_options, run
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.model import User
from leaderboard.queries import ContextQuery, PageQuery, TopQuery
from leaderboard.snapshot import Snapshot, same_database
from leaderboard.tuning import LogTuning, RankIndexTuning
from tests.system import PATIENCE_S, OneConnection, connect, free_port, own_ports, sql, until

pytestmark = pytest.mark.anyio

PRUNE_NOW = LogTuning(keep_s=0)

BARRIER = (None, None, None)
PLENTY = 1_000_000


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Database]:
    truth = database_from(settings)
    await truth.open()
    yield truth
    await truth.close()


# What is logged


@pytest.fixture(scope="module")
def of_all_kinds(template: Settings) -> Iterator[Settings]:
    """One database for all kinds of changes: making one takes longer than what is tried in it."""
    admin = template.model_copy(update={"db_name": "postgres"})
    shared = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {shared.db_name} TEMPLATE {template.db_name}")
    yield shared
    sql(admin, f"DROP DATABASE {shared.db_name} WITH (FORCE)")


async def logged(db: asyncpg.Connection, *statements: str) -> list[tuple[int | None, int | None, int | None]]:
    """The rows that these statements add to the log."""
    await db.execute("DELETE FROM user_changes")
    for statement in statements:
        await db.execute(statement)
    rows = await db.fetch("SELECT user_id, old_score, new_score FROM user_changes ORDER BY 1, 2 NULLS FIRST, 3")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        pytest.param(
            ["INSERT INTO users VALUES (7, 'g', NULL, 70), (8, 'h', NULL, -8)"],
            [(7, None, 70), (8, None, -8)],
            id="insert",
        ),
        pytest.param(
            ["INSERT INTO users (user_id, user_name) VALUES (7, 'g')"], [(7, None, 0)], id="default score"
        ),
        pytest.param(["UPDATE users SET total_score = 11 WHERE user_id = 1"], [(1, 10, 11)], id="update"),
        pytest.param(
            ["UPDATE users SET total_score = -total_score"], [(1, 10, -10), (2, 20, -20), (3, 30, -30)], id="all"
        ),
        pytest.param(["UPDATE users SET user_name = 'z' WHERE user_id = 1"], [(1, 10, 10)], id="name"),
        pytest.param(["UPDATE users SET image_url = 'u' WHERE user_id = 1"], [(1, 10, 10)], id="image"),
        pytest.param(["UPDATE users SET total_score = 10 WHERE user_id = 1"], [], id="nothing new"),
        pytest.param(["UPDATE users SET total_score = 20"], [(1, 10, 20), (3, 30, 20)], id="new for some"),
        pytest.param(["UPDATE users SET total_score = 1 WHERE user_id = 99"], [], id="nobody"),
        pytest.param(["DELETE FROM users WHERE user_id > 1"], [(2, 20, None), (3, 30, None)], id="delete"),
        pytest.param(
            ["UPDATE users SET user_id = 9 WHERE user_id = 1"], [(1, 10, None), (9, None, 10)], id="another key"
        ),
        pytest.param(
            [
                "INSERT INTO users VALUES (5, 'e', NULL, 50), (6, 'f', NULL, 60)",
                "UPDATE users SET user_id = user_id - 1 WHERE user_id >= 5",
            ],
            [(4, None, 50), (5, None, 50), (5, 50, 60), (6, None, 60), (6, 60, None)],
            id="a key that another had",
        ),
        pytest.param(
            [
                "INSERT INTO users VALUES (1, 'a', NULL, 15), (7, 'g', NULL, 70)"
                " ON CONFLICT (user_id) DO UPDATE SET total_score = excluded.total_score"
            ],
            [(1, 10, 15), (7, None, 70)],
            id="upsert",
        ),
        pytest.param(["INSERT INTO users VALUES (1, 'a') ON CONFLICT DO NOTHING"], [], id="refused insert"),
        pytest.param(
            [
                "MERGE INTO users USING (VALUES (1, 0), (2, 5), (7, 70)) AS new (id, score) ON user_id = id"
                " WHEN MATCHED AND score = 0 THEN DELETE"
                " WHEN MATCHED THEN UPDATE SET total_score = score"
                " WHEN NOT MATCHED THEN INSERT VALUES (id, 'user ' || id, NULL, score)"
            ],
            [(1, 10, None), (2, 20, 5), (7, None, 70)],
            id="merge",
        ),
        pytest.param(
            [
                "WITH gone AS (DELETE FROM users WHERE user_id = 1 RETURNING *),"
                " new AS (INSERT INTO users SELECT 7, 'g', NULL, total_score FROM gone RETURNING *)"
                " UPDATE users SET total_score = new.total_score FROM new WHERE users.user_id = 2"
            ],
            [(1, 10, None), (2, 20, 10), (7, None, 10)],
            id="several in one",
        ),
        pytest.param(
            [
                "BEGIN",
                "UPDATE users SET total_score = 11 WHERE user_id = 1",
                "UPDATE users SET total_score = 12 WHERE user_id = 1",
                "COMMIT",
            ],
            [(1, 10, 11), (1, 11, 12)],
            id="twice in a transaction",
        ),
        pytest.param(
            [
                "BEGIN",
                "UPDATE users SET total_score = 11 WHERE user_id = 1",
                "SAVEPOINT s",
                "UPDATE users SET total_score = 21 WHERE user_id = 2",
                "ROLLBACK TO s",
                "UPDATE users SET total_score = 31 WHERE user_id = 3",
                "COMMIT",
            ],
            [(1, 10, 11), (3, 30, 31)],
            id="savepoint",
        ),
        pytest.param(["BEGIN", "DELETE FROM users", "ROLLBACK"], [], id="rolled back"),
        pytest.param(
            [
                "SET session_replication_role = replica",
                "INSERT INTO users VALUES (7, 'g')",
                "UPDATE users SET total_score = 11 WHERE user_id = 1",
                "DELETE FROM users WHERE user_id = 2",
                "RESET session_replication_role",
            ],
            [(1, 10, 11), (2, 20, None), (7, None, 0)],
            id="triggers switched off",
        ),
        pytest.param(["TRUNCATE users"], [BARRIER], id="truncate"),
        pytest.param(
            ["SET session_replication_role = replica", "TRUNCATE users"], [BARRIER], id="truncate replica"
        ),
        pytest.param(
            ["TRUNCATE users", "INSERT INTO users VALUES (1, 'a')"],
            [(1, None, 0), BARRIER],
            id="truncate, then insert",
        ),
    ],
)
async def test_every_kind_of_change_is_logged(
    of_all_kinds: Settings, statements: list[str], expected: list[tuple[int | None, ...]]
) -> None:
    db = await connect(of_all_kinds)
    try:
        await db.execute("TRUNCATE users")
        await db.execute("INSERT INTO users VALUES (1, 'a', NULL, 10), (2, 'b', NULL, 20), (3, 'c', NULL, 30)")
        assert await logged(db, *statements) == expected
    finally:
        await db.close()


async def test_copy_is_logged(db: asyncpg.Connection) -> None:
    records = [(n, f"user {n}", n * n) for n in range(1, 51)]
    await db.copy_records_to_table("users", records=records, columns=("user_id", "user_name", "total_score"))
    rows = await db.fetch("SELECT user_id, old_score, new_score FROM user_changes ORDER BY user_id")
    assert [tuple(row) for row in rows] == [(n, None, n * n) for n in range(1, 51)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO users (user_id, user_name) SELECT n, n FROM generate_series(100001, 100000 + {n}) AS n",
        "UPDATE users SET total_score = total_score + 1 WHERE user_id <= {n}",
        "DELETE FROM users WHERE user_id <= {n}",
    ],
)
async def test_up_to_20_000_rows_are_listed_and_more_are_a_barrier(db: asyncpg.Connection, statement: str) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 20001) AS n")
    await db.execute("BEGIN")
    rows = await logged(db, statement.format(n=20_000))
    assert len(rows) == 20_000
    assert BARRIER not in rows
    await db.execute("ROLLBACK")
    assert await logged(db, statement.format(n=20_001)) == [BARRIER]


async def test_a_change_is_logged_under_the_id_that_its_transaction_shows_in_snapshots(
    db: asyncpg.Connection, store: Database
) -> None:
    async with db.transaction(), db.transaction():  # the inner one is a savepoint, with an id of its own
        await db.execute("INSERT INTO users (user_name) VALUES ('a')")
        xid = int(await db.fetchval("SELECT pg_current_xact_id()::text"))
        assert await db.fetchval("SELECT xid::text::bigint FROM user_changes") == xid
        assert not (await store.now()).snapshot.sees(xid)
    assert (await store.now()).snapshot.sees(xid)


async def test_a_role_that_may_only_change_users_is_logged(settings: Settings, db: asyncpg.Connection) -> None:
    role = f"clerk_{uuid.uuid4().hex[:12]}"
    await db.execute(f"CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD 'secret'")
    await db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON users TO {role}")
    clerk = await connect(settings.model_copy(update={"db_user": role, "db_password": SecretStr("secret")}))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await clerk.fetch("SELECT * FROM user_changes")
        # Tables of its own by those names must not catch what belongs in the log.
        await clerk.execute("CREATE TEMP TABLE user_changes (user_id int, old_score int, new_score int)")
        await clerk.execute("CREATE TEMP TABLE new_users (user_id int, total_score int)")
        await clerk.execute("SET search_path = pg_temp, public")
        await clerk.execute("INSERT INTO public.users VALUES (1, 'a', NULL, 10), (2, 'b', NULL, 20)")
        await clerk.execute("UPDATE public.users SET total_score = 11 WHERE user_id = 1")
        await clerk.execute("DELETE FROM public.users WHERE user_id = 2")
        await clerk.execute("TRUNCATE public.users")
        assert await clerk.fetchval("SELECT count(*) FROM pg_temp.user_changes") == 0
    finally:
        await clerk.close()
    rows = await db.fetch("SELECT user_id, old_score, new_score FROM user_changes ORDER BY xid, user_id")
    expected = [(1, None, 10), (2, None, 20), (1, 10, 11), (2, 20, None), BARRIER]
    assert [tuple(row) for row in rows] == expected
    await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_role_cannot_have_its_own_code_run_by_the_trigger(
    settings: Settings, db: asyncpg.Connection
) -> None:
    """The trigger runs as the owner of the schema, and must find no operator that somebody else has made."""
    role = f"clerk_{uuid.uuid4().hex[:12]}"
    await db.execute(
        # pragma: allowlist nextline secret
        f"CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD 'secret'; GRANT INSERT ON users TO {role};"
        f"CREATE SCHEMA clerk AUTHORIZATION {role}"
    )
    clerk = await connect(settings.model_copy(update={"db_user": role, "db_password": SecretStr("secret")}))
    try:
        # The trigger asks whether it counted more rows than it lists one by one.
        await clerk.execute(
            "CREATE FUNCTION clerk.always(bigint, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
            "CREATE OPERATOR clerk.> (FUNCTION = clerk.always, LEFTARG = bigint, RIGHTARG = integer);"
            "SET search_path = clerk, pg_catalog"
        )
        assert await clerk.fetchval("SELECT 1::bigint > 2")
        await clerk.execute("INSERT INTO public.users VALUES (1, 'a', NULL, 10)")
    finally:
        await clerk.close()
    rows = await db.fetch("SELECT user_id, old_score, new_score FROM user_changes")
    assert [tuple(row) for row in rows] == [(1, None, 10)]
    await db.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


# Catching up

Row = tuple[str, str | None, int]


async def users_in(connection: asyncpg.Connection) -> dict[int, Row]:
    rows = await connection.fetch("SELECT user_id, user_name, image_url, total_score FROM users")
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


@dataclass
class View:
    """A copy of all users, or of those from a score up, that knows of changes by `catch_up` only."""

    snapshot: Snapshot
    users: dict[int, Row]
    floor: int | None = None
    used: int = field(default=0, compare=False)
    refused: int = field(default=0, compare=False)

    def holds(self, score: int) -> bool:
        return self.floor is None or score >= self.floor

    async def catch_up(self, store: Database, connection: asyncpg.Connection) -> None:
        """Catch up, or rebuild where told to, and compare with the table in the same snapshot."""
        async with connection.transaction(isolation="repeatable_read"):
            changes = await log_on(connection).catch_up(self.snapshot, self.floor, PLENTY)
            table = await users_in(connection)
        true = {user_id: row for user_id, row in table.items() if self.holds(row[2])}
        assert changes.position.snapshot.covers(self.snapshot)
        if changes.reaches:
            self.used += 1
            self._apply(changes)
            assert self.users == true, (self.snapshot, changes)
        else:
            self.refused += 1
            self.users = true
        self.snapshot = changes.position.snapshot

    def _apply(self, changes: Changes) -> None:
        for user in changes.changed:
            if self.holds(user.total_score):
                self.users[user.user_id] = (user.user_name, user.image_url, user.total_score)
            else:
                self.users.pop(user.user_id, None)
        for user_id in changes.deleted:
            self.users.pop(user_id, None)


def log_on(connection: asyncpg.Connection) -> ChangeLog:
    """The change log, read on that connection."""
    return ChangeLog(cast("Any", OneConnection(connection)), RankIndexTuning())


async def a_view(store: Database, connection: asyncpg.Connection, floor: int | None) -> View:
    view = View(Snapshot(3, 3), {}, floor)
    async with connection.transaction(isolation="repeatable_read"):
        changes = await log_on(connection).catch_up(view.snapshot, floor, PLENTY)
        view.users = {i: row for i, row in (await users_in(connection)).items() if view.holds(row[2])}
    view.snapshot = changes.position.snapshot
    return view


IDS = range(1, 7)
SCORES = range(8)


class Writer:
    """One connection that begins, changes, and ends its transactions as it is told.

    A user is changed under an advisory lock that is not waited for, so that no two of these block each other.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._savepoints = 0
        self._open = False

    async def do(self, action: str, user_id: int, score: int) -> None:
        match action:
            case "commit" | "roll back" if self._open:
                await self._connection.execute("COMMIT" if action == "commit" else "ROLLBACK")
                self._open, self._savepoints = False, 0
            case "savepoint" if self._open:
                self._savepoints += 1
                await self._connection.execute(f"SAVEPOINT s{self._savepoints}")
            case "release" if self._savepoints:
                await self._connection.execute(f"RELEASE s{self._savepoints}")
                self._savepoints -= 1
            case "undo" if self._savepoints:
                await self._connection.execute(f"ROLLBACK TO s{self._savepoints}")
            case "change" | "change alone":
                await self._change(user_id, score, alone=action == "change alone")

    async def _change(self, user_id: int, score: int, *, alone: bool) -> None:
        mine = not self._open
        if mine:
            await self._connection.execute("BEGIN")
            self._open = True
        if await self._connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", user_id):
            if score == 0:
                await self._connection.execute("DELETE FROM users WHERE user_id = $1", user_id)
            else:
                await self._connection.execute(
                    "INSERT INTO users (user_id, user_name, total_score) VALUES ($1::int, 'user ' || $1::int, $2)"
                    " ON CONFLICT (user_id) DO UPDATE SET total_score = excluded.total_score",
                    user_id,
                    score,
                )
        if mine and alone:
            await self.do("commit", 0, 0)


@pytest.fixture
async def writers(settings: Settings) -> AsyncIterator[list[Writer]]:
    connections = [await connect(settings) for _ in range(3)]
    yield [Writer(connection) for connection in connections]
    for connection in connections:
        await connection.close()


actions = st.sampled_from(
    ["change", "change", "change", "change alone", "commit", "commit", "roll back", "savepoint", "undo", "release"]
)
steps = st.tuples(st.integers(0, 2), actions, st.sampled_from(IDS), st.sampled_from(SCORES))
stories = st.lists(steps, min_size=15, max_size=40)
story_settings = hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def end_all(writers: list[Writer]) -> None:
    for writer in writers:
        await writer.do("roll back", 0, 0)


@story_settings
@given(story=stories, floor=st.sampled_from(SCORES), rarely=st.integers(2, 12))
async def test_a_view_that_catches_up_is_the_table_of_its_snapshot(
    store: Database,
    db: asyncpg.Connection,
    writers: list[Writer],
    story: list[tuple[int, str, int, int]],
    floor: int,
    rarely: int,
) -> None:
    always, seldom, lastly = [await a_view(store, db, None) for _ in range(3)]
    partial, seldom_partial = [await a_view(store, db, floor) for _ in range(2)]
    try:
        for number, (who, action, user_id, score) in enumerate(story):
            await writers[who].do(action, user_id, score)
            await always.catch_up(store, db)
            await partial.catch_up(store, db)
            if number % rarely == 0:
                await seldom.catch_up(store, db)
                await seldom_partial.catch_up(store, db)
    finally:
        await end_all(writers)
    for view in (always, seldom, lastly, partial, seldom_partial):
        await view.catch_up(store, db)
        assert view.refused == 0


@story_settings
@given(
    story=stories,
    prunes=st.dictionaries(st.integers(0, 40), st.sampled_from([1, 2, 3, 1000]), max_size=12),
    every=st.integers(1, 4),
)
async def test_pruning_makes_no_view_wrong(
    store: Database,
    db: asyncpg.Connection,
    writers: list[Writer],
    story: list[tuple[int, str, int, int]],
    prunes: dict[int, int],
    every: int,
) -> None:
    views = [await a_view(store, db, None)]
    try:
        for number, (who, action, user_id, score) in enumerate(story):
            await writers[who].do(action, user_id, score)
            if number in prunes:
                await store.change_log.prune(LogTuning(keep_s=0, prune_batch=prunes[number]))
            if number % every == 0:
                views.append(await a_view(store, db, 3 if number % 2 else None))
            await views[number % len(views)].catch_up(store, db)
    finally:
        await end_all(writers)
    for view in views:
        await view.catch_up(store, db)
    # One that is at the present is never refused again, whatever is pruned.
    for _ in range(3):
        await store.change_log.prune(PRUNE_NOW)
        refused = views[-1].refused
        await views[-1].catch_up(store, db)
        assert views[-1].refused == refused


async def test_a_transaction_that_is_open_for_long_is_seen_when_it_commits(
    settings: Settings, store: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 100) AS n")
    others = await connect(settings)
    view = await a_view(store, others, None)
    async with db.transaction():
        await db.execute("UPDATE users SET total_score = 1 WHERE user_id = 1")
        for round_ in range(30):
            await others.execute(
                "UPDATE users SET total_score = $1 WHERE user_id BETWEEN 2 AND 4 OR user_id = $1", round_ + 5
            )
            changes = await store.change_log.catch_up(view.snapshot, None, PLENTY)
            assert len(changes.changed) in {3, 4}, "only what is new, not all since the oldest transaction"
            await view.catch_up(store, others)
        await store.change_log.prune(PRUNE_NOW)
        await store.change_log.prune(PRUNE_NOW)
        await view.catch_up(store, others)
    changes = await store.change_log.catch_up(view.snapshot, None, PLENTY)
    assert changes.reaches
    assert [(user.user_id, user.total_score) for user in changes.changed] == [(1, 1)]
    await view.catch_up(store, others)
    assert view.refused == 0
    await others.close()


async def test_what_is_returned_is_the_present_of_each_changed_user_once(
    store: Database, db: asyncpg.Connection
) -> None:
    before = await store.now()
    await db.execute("INSERT INTO users VALUES (1, 'a', 'u', 1), (2, 'b', NULL, 2), (3, 'c', NULL, 3)")
    await db.execute("UPDATE users SET total_score = total_score + 10, user_name = user_name || '!'")
    await db.execute("DELETE FROM users WHERE user_id = 2")
    changes = await store.change_log.catch_up(before.snapshot, None, PLENTY)
    assert changes.reaches
    assert sorted(changes.changed, key=lambda user: user.user_id) == [
        User(1, "a!", "u", 11),
        User(3, "c!", None, 13),
    ]
    assert changes.deleted == [2]
    assert (await store.change_log.catch_up(changes.position.snapshot, None, PLENTY)).changed == []


async def test_a_floor_leaves_out_who_never_stood_above_it_and_nobody_else(
    store: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users SELECT n, 'user ' || n, NULL, n * 10 FROM generate_series(1, 9) AS n")
    before = await store.now()
    await db.execute("UPDATE users SET total_score = 49 WHERE user_id = 1")  # stays below
    await db.execute("UPDATE users SET total_score = 50 WHERE user_id = 2")  # comes
    await db.execute("UPDATE users SET total_score = 49 WHERE user_id = 9")  # goes
    await db.execute("UPDATE users SET total_score = 90 WHERE user_id = 3")  # came,
    await db.execute("UPDATE users SET total_score = 30 WHERE user_id = 3")  # and went
    await db.execute("DELETE FROM users WHERE user_id IN (4, 5)")  # 4 was below, 5 stood on it
    await db.execute("UPDATE users SET user_name = 'six' WHERE user_id = 6")
    changes = await store.change_log.catch_up(before.snapshot, 50, PLENTY)
    assert sorted(user.user_id for user in changes.changed) == [2, 3, 6, 9]
    assert changes.deleted == [5]


async def test_a_plan_made_when_the_log_was_empty_does_not_read_all_of_a_long_one(
    store: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT g::text FROM generate_series(1, 5000) AS g")
    await db.execute("DELETE FROM user_changes")
    await db.execute("VACUUM ANALYZE user_changes")
    async with store.connections.acquire() as connection:
        await connection.execute(f"PREPARE kept AS {load_queries('change_log')['catch_up']}")
        snapshot = await connection.fetchval("SELECT pg_current_snapshot()::text")
        execute = f"EXPLAIN EXECUTE kept('{snapshot}', 20000, 10)"
        for _ in range(2):
            plan = "\n".join(row[0] for row in await connection.fetch(execute))
            assert "user_changes_xid" in plan
            assert "Seq Scan on user_changes" not in plan
            await db.execute("UPDATE users SET total_score = total_score + 1")


@pytest.mark.parametrize("running", [False, True], ids=["since the snapshot", "running at the snapshot"])
async def test_more_log_than_the_limit_is_not_usable(
    settings: Settings, store: Database, db: asyncpg.Connection, running: bool
) -> None:
    other = await connect(settings)
    transaction = db.transaction()
    await transaction.start()
    if running:
        await db.execute("SELECT pg_current_xact_id()")
        # A later transaction that has ended: without it the running one lies beyond the snapshot.
        await other.execute("SELECT pg_current_xact_id()")
    before = await store.now()
    assert bool(before.snapshot.xip) == running
    await db.execute("INSERT INTO users (user_name) SELECT n FROM generate_series(1, 10) AS n")
    await transaction.commit()
    assert (await store.change_log.catch_up(before.snapshot, None, 11)).reaches
    assert not (await store.change_log.catch_up(before.snapshot, None, 10)).reaches
    assert not (await store.change_log.catch_up(before.snapshot, None, 3)).reaches
    assert (await store.change_log.catch_up((await store.now()).snapshot, None, 3)).reaches
    await other.close()


@pytest.mark.parametrize("running", [False, True], ids=["since the snapshot", "running at the snapshot"])
async def test_a_barrier_is_not_usable_for_whom_it_is_new(
    settings: Settings, store: Database, db: asyncpg.Connection, running: bool
) -> None:
    other = await connect(settings)
    transaction = db.transaction()
    await transaction.start()
    if running:
        await db.execute("SELECT pg_current_xact_id()")
        await other.execute("SELECT pg_current_xact_id()")
    before = await store.now()
    await db.execute("TRUNCATE users")
    await transaction.commit()
    for floor in (None, 5):
        changes = await store.change_log.catch_up(before.snapshot, floor, PLENTY)
        assert (changes.reaches, changes.log_valid) == (False, True)
    assert (await store.change_log.catch_up((await store.now()).snapshot, None, PLENTY)).reaches
    await other.close()


# Pruning


async def log_length(db: asyncpg.Connection) -> int:
    return int(await db.fetchval("SELECT count(*) FROM user_changes"))


async def test_a_snapshot_of_the_future_is_none_to_catch_up_from(store: Database) -> None:
    """Else the present would be taken for a later one, and what commits until then never be read."""
    present = (await store.now()).snapshot
    assert (await store.change_log.catch_up(present, None, PLENTY)).reaches
    future = Snapshot(present.xmax + 1000, present.xmax + 1000)
    assert not (await store.change_log.catch_up(future, None, PLENTY)).reaches


async def test_the_log_is_kept_short_and_for_long_enough(store: Database, db: asyncpg.Connection) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT n FROM generate_series(1, 10) AS n")
    before = await store.now()
    await db.execute("UPDATE users SET total_score = 1")
    assert await store.change_log.prune(LogTuning(keep_s=3600, prune_batch=1000)) is None
    assert await log_length(db) == 20
    # What is deleted is what was there when the previous pruning began.
    assert await store.change_log.prune(PRUNE_NOW) == 0
    await db.execute("UPDATE users SET total_score = 2")
    assert (await store.change_log.catch_up(before.snapshot, None, PLENTY)).reaches
    assert await store.change_log.prune(LogTuning(keep_s=60, prune_batch=1000)) is None
    assert await store.change_log.prune(LogTuning(keep_s=0, prune_batch=15)) == 15
    assert not (await store.change_log.catch_up(before.snapshot, None, PLENTY)).reaches
    assert await store.change_log.prune(LogTuning(keep_s=0, prune_batch=15)) == 5
    assert await log_length(db) == 10
    assert await store.change_log.prune(LogTuning(keep_s=0, prune_batch=15)) == 10
    assert await log_length(db) == 0
    changes = await store.change_log.catch_up((await store.now()).snapshot, None, PLENTY)
    assert (changes.reaches, changes.changed) == (True, [])


async def test_pruning_keeps_the_rows_of_transactions_that_were_running(
    settings: Settings, store: Database, db: asyncpg.Connection
) -> None:
    other = await connect(settings)
    await other.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    async with db.transaction():
        await db.execute("UPDATE users SET total_score = 1 WHERE user_id = 1")
        await other.execute("UPDATE users SET total_score = 2 WHERE user_id = 2")
        view = await a_view(store, other, None)
        await store.change_log.prune(PRUNE_NOW)  # takes a snapshot in which the first transaction runs,
    assert await store.change_log.prune(PRUNE_NOW) == 3  # up to which this one prunes
    assert [row["user_id"] for row in await db.fetch("SELECT user_id FROM user_changes")] == [1]
    await view.catch_up(store, db)
    assert (view.used, view.refused) == (1, 0)
    assert view.users[1] == ("a", None, 1)
    await other.close()


async def test_a_view_does_not_reach_over_what_was_pruned_of_a_transaction_it_saw_running(
    settings: Settings, store: Database, db: asyncpg.Connection
) -> None:
    """Its snapshot is no older than the one pruned up to, but for that one transaction."""
    other = await connect(settings)
    await other.execute("INSERT INTO users VALUES (1, 'a')")
    async with db.transaction():
        await db.execute("UPDATE users SET total_score = 1 WHERE user_id = 1")
        await other.execute("SELECT pg_current_xact_id()")
        view = (await store.now()).snapshot
    assert len(view.xip) == 1
    await store.change_log.prune(PRUNE_NOW)  # takes a snapshot in which it has ended,
    await store.change_log.prune(PRUNE_NOW)  # up to which this one prunes
    assert await log_length(db) == 0
    pruned = Snapshot.parse(await db.fetchval("SELECT pruned::text FROM log_state"))
    assert view.xmax == pruned.xmax, "another transaction came in between: the story is another one"
    assert not (await store.change_log.catch_up(view, None, PLENTY)).reaches
    await other.close()


async def test_of_two_who_prune_at_once_one_does_and_the_other_does_not_wait(
    store: Database, db: asyncpg.Connection
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT n FROM generate_series(1, 10) AS n")
    assert await store.change_log.prune(PRUNE_NOW) == 0
    async with db.transaction():
        assert await db.fetchval(load_queries("change_log")["prune"], 0.0, 4, WRITER_LOCK, 600.0) == 4
        assert await asyncio.wait_for(store.change_log.prune(PRUNE_NOW), PATIENCE_S) is None
    results = await asyncio.gather(*(store.change_log.prune(LogTuning(keep_s=0, prune_batch=2)) for _ in range(8)))
    assert sum(result or 0 for result in results) == 10 - 4 - await log_length(db)
    while await store.change_log.prune(PRUNE_NOW):
        pass
    assert await log_length(db) == 0


# A log that came from elsewhere


async def test_the_log_survives_what_moves_rows_about(store: Database, db: asyncpg.Connection) -> None:
    before = await store.now()
    await db.execute("INSERT INTO users VALUES (1, 'a')")
    for statement in (
        "VACUUM FREEZE log_state",
        "VACUUM FULL log_state",
        "CLUSTER log_state USING log_state_pkey",
        "ANALYZE",
    ):
        await db.execute(statement)
        changes = await store.change_log.catch_up(before.snapshot, None, PLENTY)
        assert (changes.reaches, changes.log_valid, len(changes.changed)) == (True, True, 1), statement


@pytest.fixture
def restored(settings: Settings, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Settings]:
    """A database restored from a dump of the test's own, which has users and a log."""
    sql(settings, "INSERT INTO users (user_name, total_score) SELECT n, n FROM generate_series(1, 50) AS n")
    admin = settings.model_copy(update={"db_name": "postgres"})
    other = settings.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {other.db_name}")
    to = ["-h", HOST, "-p", str(postgres.port), "-U", postgres.user]
    dump = tmp_path / "dump"
    for command in (
        ["pg_dump", *to, "-Fc", "-f", str(dump), settings.db_name],
        ["pg_restore", *to, "--exit-on-error", "-d", other.db_name, str(dump)],
    ):
        done = run([str(postgres.programs / command[0]), *command[1:]], PGPASSWORD=postgres.password)
        assert done.returncode == 0, done.stderr
    yield other
    sql(admin, f"DROP DATABASE {other.db_name} WITH (FORCE)")


async def test_a_log_that_came_with_a_dump_is_not_believed_and_is_emptied(restored: Settings) -> None:
    db = await connect(restored)
    store = database_from(restored)
    await store.open()
    try:
        assert await log_length(db) == 50
        changes = await store.change_log.catch_up((await store.now()).snapshot, None, PLENTY)
        assert (changes.reaches, changes.log_valid) == (False, False)
        assert await store.change_log.prune(PRUNE_NOW) is None, "not by rules that do not hold for it"
        assert await log_length(db) == 50

        assert await store.change_log.reset()
        assert await log_length(db) == 0
        assert not await store.change_log.reset()
        before = await store.now()
        await db.execute("UPDATE users SET total_score = 100 WHERE user_id = 1")
        changes = await store.change_log.catch_up(before.snapshot, None, PLENTY)
        assert (changes.reaches, changes.log_valid) == (True, True)
        assert [(user.user_id, user.total_score) for user in changes.changed] == [(1, 100)]
        assert await store.change_log.prune(PRUNE_NOW) is not None
    finally:
        await store.close()
        await db.close()


async def test_a_service_on_a_restored_dump_heals_the_log_by_itself(restored: Settings) -> None:
    board = App(restored)
    async with board.running():
        assert (await board.writes.set_score(1, 1000)).previous_score == 1

        async def caught_up() -> bool:
            reading = await board.reader.read([TopQuery(1)], PATIENCE_S)
            return reading is not None and reading.epoch == board.health.epoch

        await until(caught_up, "the cache is in use")
        assert (
            await board.database.change_log.catch_up((await board.database.now()).snapshot, None, PLENTY)
        ).log_valid
        assert (await board.sync.auditor.audit()).differences == []


# Lives of a server


@pytest.fixture(scope="module")
def own_postgres(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that a test may stop if it starts it again."""
    folder = session_folder / uuid.uuid4().hex
    binaries = request.config.getoption("--postgres-bin")
    with EmbeddedPostgres(folder, bin_dir=binaries, durable=False, ports=own_ports()) as server:
        yield server


@pytest.fixture
async def own_settings(template: Settings, own_postgres: EmbeddedPostgres) -> Settings:
    """The settings for a migrated database on a server of the test's own."""
    own_postgres.create_database("leaderboard")
    settings = template.model_copy(
        update={
            "db_port": own_postgres.port,
            "db_name": "leaderboard",
            "db_password": SecretStr(own_postgres.password),
        }
    )
    await database_from(settings).migrate(lambda _line: None)
    return settings


@pytest.fixture
async def own_store(own_settings: Settings) -> AsyncIterator[Database]:
    truth = database_from(own_settings)
    await truth.open()
    yield truth
    await truth.close()


async def epoch_when_back(store: Database, but: str) -> str:
    """The epoch once the server answers, other than `but` if it becomes so soon."""
    found = but

    async def is_new() -> bool:
        nonlocal found
        try:
            found = (await store.now()).epoch
        except DatabaseUnavailable:
            return False
        return found != but

    await until(is_new, "another epoch")
    return found


async def test_an_epoch_ends_with_each_restart_and_each_crash_and_not_before(
    own_postgres: EmbeddedPostgres, own_settings: Settings, own_store: Database
) -> None:
    first = (await own_store.now()).epoch
    db = await connect(own_settings)
    await db.execute("CHECKPOINT; SELECT pg_switch_wal(); SELECT pg_stat_reset(); SELECT pg_reload_conf()")
    await db.execute("INSERT INTO users VALUES (1, 'a')")
    started = await db.fetchval("SELECT pg_postmaster_start_time()")
    identifier = await db.fetchval("SELECT system_identifier FROM pg_control_system()")
    assert (await own_store.now()).epoch == first
    assert (await own_store.change_log.catch_up(Snapshot(3, 3), None, 10)).position.epoch == first

    # The crash of one backend: the server recovers, and nothing else tells that it did.
    os.kill(db.get_server_pid(), signal.SIGKILL)
    second = await epoch_when_back(own_store, but=first)
    assert second != first
    db.terminate()
    db = await connect(own_settings)
    assert await db.fetchval("SELECT pg_postmaster_start_time()") == started
    assert await db.fetchval("SELECT system_identifier FROM pg_control_system()") == identifier
    assert (await own_store.now()).epoch == second
    await db.close()

    own_postgres.stop()
    own_postgres.start()
    third = await epoch_when_back(own_store, but=second)
    assert len({first, second, third}) == 3
    own_postgres.kill()
    own_postgres.start()
    fourth = await epoch_when_back(own_store, but=third)
    assert len({first, second, third, fourth}) == 4


async def test_databases_of_one_server_have_different_epochs(settings: Settings, store: Database) -> None:
    admin = settings.model_copy(update={"db_name": "postgres"})
    other = settings.model_copy(update={"db_name": f"{settings.db_name}_copy"})
    before = await store.now()
    await store.close()
    sql(admin, f"CREATE DATABASE {other.db_name} TEMPLATE {settings.db_name}")
    copied = database_from(other)
    await copied.open()
    try:
        assert (await copied.now()).epoch != before.epoch
        assert (await copied.change_log.catch_up((await copied.now()).snapshot, None, PLENTY)).reaches
    finally:
        await copied.close()
        sql(admin, f"DROP DATABASE {other.db_name} WITH (FORCE)")


async def test_databases_of_two_servers_are_told_apart_even_if_their_numbers_agree(
    settings: Settings, own_settings: Settings
) -> None:
    """Both are numbered from 16384 up, so that the first database of each server has the same number."""
    epochs = []
    for server in (settings, own_settings):
        admin = server.model_copy(update={"db_name": "postgres"})
        name = f"numbered_{uuid.uuid4().hex[:12]}"
        sql(admin, f"CREATE DATABASE {name} TEMPLATE {server.db_name} OID = 4000000")
        numbered = database_from(server.model_copy(update={"db_name": name}))
        await numbered.open()
        try:
            epochs.append((await numbered.now()).epoch)
        finally:
            await numbered.close()
            sql(admin, f"DROP DATABASE {name} WITH (FORCE)")
    assert epochs[0].split("/")[1] == epochs[1].split("/")[1] == "4000000"
    assert not same_database(*epochs)


@pytest.fixture
def standby(own_postgres: EmbeddedPostgres, own_settings: Settings) -> Iterator[Settings]:
    """A streaming standby of the test's own server."""
    server = own_postgres
    folder = server.home / "standby"
    folder.mkdir(mode=0o700)
    if server.account is not None:
        os.chown(folder, *server.account)
    source = f"host={HOST} port={server.port} user={server.user} password={server.password}"
    command = [str(server.programs / "pg_basebackup"), "-D", str(folder)]
    done = run([*command, "-R", "-X", "stream", "-c", "fast", "-N", "-d", source], server.account)
    assert done.returncode == 0, done.stderr
    port = free_port()
    options = {"port": port, "listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off"}
    with (server.folder / "standby.log").open("wb") as log:
        process = subprocess.Popen(
            [str(server.programs / "postgres"), "-D", str(folder)]
            + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
            stdout=log,
            stderr=log,
            start_new_session=True,
            **popen_options(server.account),
        )
    try:
        yield own_settings.model_copy(update={"db_port": port})
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


async def test_a_standby_does_not_serve_as_truth_until_it_is_promoted(
    own_store: Database, standby: Settings
) -> None:
    copied = database_from(standby)
    await copied.open()
    try:
        said = ""

        async def says_what_it_is() -> bool:
            nonlocal said
            try:
                await copied.now()
            except DatabaseUnavailable as error:
                said = str(error)
            else:
                pytest.fail("a standby has answered")
            return "standby" in said

        await until(says_what_it_is, "the standby is up")
        snapshot = (await own_store.now()).snapshot
        for question in (
            copied.now(),
            copied.users.top(1),
            copied.rank_index.standings([ContextQuery(1)], count=True),
            copied.rank_index.page(PageQuery(10)),
            copied.change_log.catch_up(snapshot, None, 10),
            copied.scores.set([NewScore(1, 1)]),
            copied.check_schema(),
        ):
            with pytest.raises(DatabaseReadOnly):
                await question

        by_hand = await connect(standby)
        assert await by_hand.fetchval("SELECT database_epoch()") is None
        await by_hand.execute("SELECT pg_promote()")
        await by_hand.close()
        assert (await copied.now()).epoch != (await own_store.now()).epoch
    finally:
        await copied.close()
