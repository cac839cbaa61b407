"""Every change of a user is logged, whatever makes it."""

import uuid
from collections.abc import Iterator

import asyncpg
import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.database.database import Database
from tests.change_log.views import BARRIER
from tests.system import connect, sql

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def shared_settings(template: Settings) -> Iterator[Settings]:
    """A database that the tests of all kinds of changes share, because creating one is slow."""
    admin = template.model_copy(update={"db_name": "postgres"})
    shared = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {shared.db_name} TEMPLATE {template.db_name}")
    yield shared
    sql(admin, f"DROP DATABASE {shared.db_name} WITH (FORCE)")


async def logged(db: asyncpg.Connection, *statements: str) -> list[tuple[object, ...]]:
    """Returns the rows that these statements add to the log: of the board, and of names."""
    await db.execute("DELETE FROM changes")
    for statement in statements:
        await db.execute(statement)
    rows = await db.fetch("SELECT * FROM changes ORDER BY season_id DESC, user_id, old_key NULLS FIRST, new_key")
    return [
        (row["user_id"], row["old_key"], row["new_key"]) if row["season_id"] else ("name", row["user_id"])
        for row in rows
    ]


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
        pytest.param(["UPDATE users SET user_name = 'z' WHERE user_id = 1"], [("name", 1)], id="name"),
        pytest.param(["UPDATE users SET image_url = 'u' WHERE user_id = 1"], [("name", 1)], id="image"),
        pytest.param(["UPDATE users SET total_score = 10 WHERE user_id = 1"], [], id="nothing new"),
        pytest.param(["UPDATE users SET total_score = 20"], [(1, 10, 20), (3, 30, 20)], id="new for some"),
        pytest.param(["UPDATE users SET total_score = 1 WHERE user_id = 99"], [], id="no such user"),
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
            id="the key of another user",
        ),
        pytest.param(
            [
                "INSERT INTO users VALUES (1, 'a', NULL, 15), (7, 'g', NULL, 70)"
                " ON CONFLICT (user_id) DO UPDATE SET total_score = excluded.total_score"
            ],
            [(1, 10, 15), (7, None, 70)],
            id="upsert",
        ),
        pytest.param(
            ["INSERT INTO users VALUES (1, 'a') ON CONFLICT DO NOTHING"], [], id="insert with a conflict"
        ),
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
                "WITH deleted AS (DELETE FROM users WHERE user_id = 1 RETURNING *),"
                " new AS (INSERT INTO users SELECT 7, 'g', NULL, total_score FROM deleted RETURNING *)"
                " UPDATE users SET total_score = new.total_score FROM new WHERE users.user_id = 2"
            ],
            [(1, 10, None), (2, 20, 10), (7, None, 10)],
            id="several in one statement",
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
        pytest.param(["TRUNCATE users CASCADE"], [BARRIER], id="truncate"),
        pytest.param(
            ["SET session_replication_role = replica", "TRUNCATE users CASCADE"], [BARRIER], id="truncate replica"
        ),
        pytest.param(
            ["TRUNCATE users CASCADE", "INSERT INTO users VALUES (1, 'a')"],
            [(1, None, 0), BARRIER],
            id="truncate, then insert",
        ),
    ],
)
async def test_every_kind_of_change_is_logged(
    shared_settings: Settings, statements: list[str], expected: list[tuple[object, ...]]
) -> None:
    db = await connect(shared_settings)
    try:
        await db.execute("TRUNCATE users CASCADE")
        await db.execute("INSERT INTO users VALUES (1, 'a', NULL, 10), (2, 'b', NULL, 20), (3, 'c', NULL, 30)")
        assert await logged(db, *statements) == expected
    finally:
        await db.close()


async def test_rows_of_a_copy_command_are_logged(db: asyncpg.Connection) -> None:
    records = [(n, f"user {n}", n * n) for n in range(1, 51)]
    await db.copy_records_to_table("users", records=records, columns=("user_id", "user_name", "total_score"))
    rows = await db.fetch("SELECT user_id, old_key, new_key FROM changes ORDER BY user_id")
    assert [tuple(row) for row in rows] == [(n, None, n * n) for n in range(1, 51)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO users (user_id, user_name) SELECT n, n FROM generate_series(100001, 100000 + {n}) AS n",
        "UPDATE users SET total_score = total_score + 1 WHERE user_id <= {n}",
        "DELETE FROM users WHERE user_id <= {n}",
    ],
)
async def test_up_to_20_000_rows_are_logged_and_more_become_a_barrier(
    db: asyncpg.Connection, statement: str
) -> None:
    await db.execute("INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 20001) AS n")
    await db.execute("BEGIN")
    rows = await logged(db, statement.format(n=20_000))
    assert len(rows) == 20_000
    assert BARRIER not in rows
    await db.execute("ROLLBACK")
    assert await logged(db, statement.format(n=20_001)) == [BARRIER]


async def test_a_change_has_the_transaction_id_that_snapshots_contain(
    db: asyncpg.Connection, database: Database
) -> None:
    async with db.transaction(), db.transaction():  # the inner one is a savepoint, which has its own id
        await db.execute("INSERT INTO users (user_name) VALUES ('a')")
        xid = int(await db.fetchval("SELECT pg_current_xact_id()::text"))
        assert await db.fetchval("SELECT xid::text::bigint FROM changes") == xid
        assert not (await database.now()).snapshot.sees(xid)
    assert (await database.now()).snapshot.sees(xid)


async def test_changes_by_a_role_without_access_to_the_log_are_logged(
    settings: Settings, db: asyncpg.Connection
) -> None:
    role = f"clerk_{uuid.uuid4().hex[:12]}"
    await db.execute(f"CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD 'secret'")
    await db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON users, scores TO {role}")
    clerk = await connect(settings.model_copy(update={"db_user": role, "db_password": SecretStr("secret")}))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await clerk.fetch("SELECT * FROM changes")
        # The trigger must not write to temporary tables of the role that have the names of ours.
        await clerk.execute("CREATE TEMP TABLE changes (user_id int, old_key int, new_key int)")
        await clerk.execute("CREATE TEMP TABLE new_users (user_id int, total_score int)")
        await clerk.execute("SET search_path = pg_temp, public")
        await clerk.execute("INSERT INTO public.users VALUES (1, 'a', NULL, 10), (2, 'b', NULL, 20)")
        await clerk.execute("UPDATE public.users SET total_score = 11 WHERE user_id = 1")
        await clerk.execute("DELETE FROM public.users WHERE user_id = 2")
        await clerk.execute("TRUNCATE public.users CASCADE")
        assert await clerk.fetchval("SELECT count(*) FROM pg_temp.changes") == 0
    finally:
        await clerk.close()
    rows = await db.fetch("SELECT user_id, old_key, new_key FROM changes ORDER BY xid, user_id")
    expected = [(1, None, 10), (2, None, 20), (1, 10, 11), (2, 20, None), BARRIER]
    assert [tuple(row) for row in rows] == expected
    await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_trigger_runs_no_code_of_the_calling_role(settings: Settings, db: asyncpg.Connection) -> None:
    """The trigger runs as the owner of the schema, and must use the operators of PostgreSQL only."""
    role = f"clerk_{uuid.uuid4().hex[:12]}"
    await db.execute(
        # pragma: allowlist nextline secret
        f"CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD 'secret'; GRANT INSERT ON users TO {role};"
        f"CREATE SCHEMA clerk AUTHORIZATION {role}"
    )
    clerk = await connect(settings.model_copy(update={"db_user": role, "db_password": SecretStr("secret")}))
    try:
        # The trigger compares the number of rows with a limit.
        await clerk.execute(
            "CREATE FUNCTION clerk.always(bigint, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
            "CREATE OPERATOR clerk.> (FUNCTION = clerk.always, LEFTARG = bigint, RIGHTARG = integer);"
            "SET search_path = clerk, pg_catalog"
        )
        assert await clerk.fetchval("SELECT 1::bigint > 2")
        await clerk.execute("INSERT INTO public.users VALUES (1, 'a', NULL, 10)")
    finally:
        await clerk.close()
    rows = await db.fetch("SELECT user_id, old_key, new_key FROM changes")
    assert [tuple(row) for row in rows] == [(1, None, 10)]
    await db.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
