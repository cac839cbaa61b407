"""Migrations: from an empty database, interrupted, concurrent, and by a role without privileges."""

import asyncio
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from importlib import resources

import asyncpg
import pytest
from pydantic import SecretStr

from leaderboard.app import database_from
from leaderboard.config import Settings
from leaderboard.database import schema
from leaderboard.database.sql import load_queries, load_steps
from leaderboard.database.users import NewUser
from leaderboard.database.writing import NotWritten
from leaderboard.errors import DatabaseUnavailable, SchemaOutdated
from leaderboard.model import Context, Standing
from leaderboard.queries import ContextQuery, StandingQuery
from leaderboard.tuning import LogTuning
from tests.system import connect, environment, sql, until

pytestmark = pytest.mark.anyio

QUERY_FILES = (
    *("boards", "change_log", "entries", "export", "idempotency_keys", "import", "rank_index", "schema"),
    *("scores", "server", "username_mode", "users"),
)

ORIGINAL = (
    """
CREATE TABLE users (
    user_id     SERIAL  PRIMARY KEY,
    user_name   TEXT    NOT NULL UNIQUE,
    image_url   TEXT,
    total_score INTEGER NOT NULL DEFAULT 0
);
""",
    """
CREATE INDEX CONCURRENTLY idx_users_score_desc ON users (total_score DESC, user_id ASC);
""",
)


@pytest.fixture
def empty(template: Settings) -> Iterator[Settings]:
    """The settings for an empty database."""
    admin = template.model_copy(update={"db_name": "postgres"})
    fresh = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {fresh.db_name}")
    yield fresh
    sql(admin, f"DROP DATABASE {fresh.db_name} WITH (FORCE)")


@pytest.fixture
async def db(empty: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(empty)
    yield connection
    await connection.close()


def migrating(settings: Settings) -> "asyncio.Task[int]":
    return asyncio.create_task(database_from(settings).migrate(lambda _line: None))


async def index_is_valid(db: asyncpg.Connection) -> bool | None:
    valid: bool | None = await db.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('idx_users_score_desc')"
    )
    return valid


async def recorded(db: asyncpg.Connection) -> list[tuple[int, int]]:
    return [tuple(row) for row in await db.fetch("SELECT version, step FROM schema_migrations ORDER BY 1, 2")]


ALL_STEPS = [(step.version, step.step) for step in load_steps()]


async def test_a_second_migration_changes_nothing(empty: Settings, db: asyncpg.Connection) -> None:
    lines: list[str] = []
    database = database_from(empty)
    assert await database.migrate(lines.append) == len(ALL_STEPS)
    assert len(lines) == len(ALL_STEPS)
    await database.check_schema()
    assert await recorded(db) == ALL_STEPS
    assert await index_is_valid(db)
    schema = await db.fetch("SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")

    lines.clear()
    assert await database.migrate(lines.append) == 0
    assert lines == []
    assert await recorded(db) == ALL_STEPS
    assert schema == await db.fetch(
        "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )


async def test_concurrent_migrators_apply_each_step_once(empty: Settings, db: asyncpg.Connection) -> None:
    command = [sys.executable, "-m", "leaderboard", "migrate"]
    processes = [
        await asyncio.create_subprocess_exec(*command, env=environment(empty), stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    applied = await asyncio.gather(*(migrating(empty) for _ in range(3)))
    assert await asyncio.gather(*(process.wait() for process in processes)) == [0, 0]
    assert sum(applied) in {0, len(ALL_STEPS)}  # one of the five has applied all steps
    assert await recorded(db) == ALL_STEPS
    await database_from(empty).check_schema()


async def test_a_waiting_migrator_does_not_deadlock_with_a_build_of_an_index(
    empty: Settings, db: asyncpg.Connection
) -> None:
    await db.execute(load_queries("schema")["create_record"])
    await schema.apply(db, load_steps()[0], load_queries("schema"))
    writer = await connect(empty)
    await writer.execute("BEGIN; INSERT INTO users (user_name) VALUES ('a')")
    first = migrating(empty)
    await until(lambda: in_phase(db, "waiting for writers before build"), "the first migrator builds the index")
    second = migrating(empty)
    await until(lambda: is_waiting(db), "the second migrator waits")
    # The build of the index waits for all older transactions. So the second migrator must not have one.
    await writer.close()
    assert (await first, await second) == (len(ALL_STEPS) - 1, 0)
    assert await index_is_valid(db)


class old_transaction:  # noqa: N801 - used as `async with`
    """A transaction that every `CREATE INDEX CONCURRENTLY` of its database waits for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> None:
        self._connection = await connect(self._settings)
        await self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def in_phase(db: asyncpg.Connection, phase: str) -> bool:
    return bool(await db.fetchval("SELECT count(*) FROM pg_stat_progress_create_index WHERE phase = $1", phase))


async def is_building(db: asyncpg.Connection) -> bool:
    return await index_is_valid(db) is False and await in_phase(db, "waiting for old snapshots")


async def is_waiting(db: asyncpg.Connection) -> bool:
    """Returns whether a second migrator waits for the lock of the first one."""
    waiting: int = await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND query LIKE 'SELECT WHERE pg_try_advisory_xact_lock(%'"
    )
    return waiting == 2


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_an_interrupted_index_is_built_again(empty: Settings, db: asyncpg.Connection, end: str) -> None:
    async with old_transaction(empty):
        first = migrating(empty)
        await until(lambda: is_building(db), "the build of the index has started")
        await db.execute(f"SELECT {end}(pid) FROM pg_stat_progress_create_index")
        with pytest.raises(DatabaseUnavailable):
            await first
    assert await index_is_valid(db) is False
    assert await recorded(db) == ALL_STEPS[:1]
    with pytest.raises(SchemaOutdated):
        await database_from(empty).check_schema()

    assert await database_from(empty).migrate(lambda _line: None) == len(ALL_STEPS) - 1
    assert await index_is_valid(db)
    assert await db.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'users'::regclass") == 5


async def test_an_index_that_was_built_but_not_recorded_is_kept(empty: Settings, db: asyncpg.Connection) -> None:
    await database_from(empty).migrate(lambda _line: None)
    built = await db.fetchval("SELECT 'idx_users_score_desc'::regclass::oid")
    await db.execute("DELETE FROM schema_migrations WHERE (version, step) = (1, 2)")
    assert await database_from(empty).migrate(lambda _line: None) == 1
    assert await db.fetchval("SELECT 'idx_users_score_desc'::regclass::oid") == built


async def test_a_step_is_applied_and_recorded_in_one_transaction(empty: Settings, db: asyncpg.Connection) -> None:
    await db.execute("CREATE TABLE log_state (id int)")
    with pytest.raises(Exception, match="log_state"):
        await database_from(empty).migrate(lambda _line: None)
    assert await db.fetchval("SELECT to_regclass('changes')") is None
    assert await recorded(db) == [step for step in ALL_STEPS if step[0] < 5]
    await db.execute("DROP TABLE log_state")
    await database_from(empty).migrate(lambda _line: None)
    await database_from(empty).check_schema()


async def test_an_older_schema_is_rejected_and_a_newer_one_is_accepted(
    empty: Settings, db: asyncpg.Connection
) -> None:
    with pytest.raises(SchemaOutdated, match=r"0001_users; run `leaderboard migrate`"):
        await schema.check(db)
    queries = load_queries("schema")
    await db.execute(queries["create_record"])
    for step in load_steps():
        with pytest.raises(SchemaOutdated, match=f"{step.version:04d}_{step.name}"):
            await schema.check(db)
        await schema.apply(db, step, queries)
    await schema.check(db)
    await db.execute("INSERT INTO schema_migrations (version, step, name) VALUES (9999, 1, 'newer')")
    await schema.check(db)
    assert await database_from(empty).migrate(lambda _line: None) == 0


async def test_every_query_is_used_and_valid(settings: Settings) -> None:
    folder = resources.files("leaderboard") / "database"
    code = "".join(file.read_text() for file in folder.iterdir() if file.name.endswith(".py"))
    used = set(re.findall(r'"(\w+)"', code))
    files = {f.name.removesuffix(".sql") for f in (folder / "queries").iterdir() if f.name.endswith(".sql")}
    assert files == set(QUERY_FILES)
    connection = await connect(settings)
    try:
        for file in QUERY_FILES:
            for name, statement in load_queries(file).items():
                assert name in used, f"{file}.sql: {name} is not used"
                await connection.prepare(statement)
                if "CREATE TEMP" in statement:
                    await connection.execute(statement)  # later queries use this table
    finally:
        await connection.close()


def test_the_first_migration_has_the_original_statements() -> None:
    first = (resources.files("leaderboard") / "database" / "migrations" / "0001_users.sql").read_text()
    for statement in ORIGINAL:
        assert statement in first


async def test_the_owner_of_a_database_needs_no_other_privileges(empty: Settings) -> None:
    admin = empty.model_copy(update={"db_name": "postgres"})
    role = f"owner_{uuid.uuid4().hex[:12]}"
    sql(admin, f"CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD 'secret'")
    try:
        sql(admin, f"ALTER DATABASE {empty.db_name} OWNER TO {role}")
        database = database_from(empty.model_copy(update={"db_user": role, "db_password": SecretStr("secret")}))
        assert await database.migrate(lambda _line: None) == len(ALL_STEPS)
        await database.check_schema()
        await database.open()
        try:
            before = await database.now()
            created = await database.users.create([NewUser("Ann", None, 5), NewUser("Ann", None, 6)])
            assert created.results[1] is NotWritten.NAME_TAKEN
            changes = await database.change_log.changes_since(before.snapshot, None, 100)
            assert (changes.reaches, changes.log_valid, len(changes.changed)) == (True, True, 1)
            user_id = changes.changed[0].user_id
            ranks = database.rank_index
            assert await ranks.repair() == "built"
            assert (await ranks.maintain()) is not None
            result = await ranks.standings([StandingQuery(user_id), ContextQuery(user_id)], count=False)
            assert [type(standing) for standing in result.value] == [Standing, Context]
            assert await database.change_log.prune(LogTuning(keep_s=0)) is not None
            assert not await database.change_log.reset()
            async with database.importing():
                pass
        finally:
            await database.close()
        is_superuser = sql(admin, "SELECT rolsuper FROM pg_roles WHERE rolname = $1", role)
        assert not is_superuser[0]["rolsuper"]
    finally:
        sql(admin, f"ALTER DATABASE {empty.db_name} OWNER TO postgres")
        owned = empty.model_copy()
        sql(owned, f"REASSIGN OWNED BY {role} TO postgres")
        sql(owned, f"DROP OWNED BY {role}")
        sql(admin, f"DROP ROLE {role}")
