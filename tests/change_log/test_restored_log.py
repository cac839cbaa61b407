"""A log that was restored from a dump is not used."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from leaderboard.app import App, database_from
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import run
from leaderboard.queries import TopQuery
from tests.change_log.views import PLENTY, PRUNE_NOW, log_length
from tests.system import PATIENCE_S, connect, sql, until

pytestmark = pytest.mark.anyio


async def test_the_log_stays_valid_after_statements_that_rewrite_tables(
    database: Database, db: asyncpg.Connection
) -> None:
    before = await database.now()
    await db.execute("INSERT INTO users VALUES (1, 'a')")
    for statement in (
        "VACUUM FREEZE log_state",
        "VACUUM FULL log_state",
        "CLUSTER log_state USING log_state_pkey",
        "ANALYZE",
    ):
        await db.execute(statement)
        changes = await database.change_log.changes_since(before.snapshot, None, PLENTY)
        assert (changes.reaches, changes.log_valid, len(changes.changed)) == (True, True, 1), statement


@pytest.fixture
def restored(settings: Settings, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Settings]:
    """A database that was restored from a dump of the test's database, with users and a log."""
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


async def test_a_restored_log_is_invalid_until_it_is_emptied(restored: Settings) -> None:
    db = await connect(restored)
    database = database_from(restored)
    await database.open()
    try:
        assert await log_length(db) == 50
        changes = await database.change_log.changes_since((await database.now()).snapshot, None, PLENTY)
        assert (changes.reaches, changes.log_valid) == (False, False)
        assert await database.change_log.prune(PRUNE_NOW) is None, "the rules of pruning do not hold for this log"
        assert await log_length(db) == 50

        assert await database.change_log.reset()
        assert await log_length(db) == 0
        assert not await database.change_log.reset()
        before = await database.now()
        await db.execute("UPDATE users SET total_score = 100 WHERE user_id = 1")
        changes = await database.change_log.changes_since(before.snapshot, None, PLENTY)
        assert (changes.reaches, changes.log_valid) == (True, True)
        assert [(user.user_id, user.total_score) for user in changes.changed] == [(1, 100)]
        assert await database.change_log.prune(PRUNE_NOW) is not None
    finally:
        await database.close()
        await db.close()


async def test_a_service_on_a_restored_database_resets_the_log(restored: Settings) -> None:
    app = App(restored)
    async with app.running():
        assert (await app.service.writes.set_score(1, 1000)).previous_score == 1

        async def caught_up() -> bool:
            reading = await app.reader.read([TopQuery(1)], PATIENCE_S)
            return reading is not None and reading.epoch == app.health.epoch

        await until(caught_up, "the cache is read")
        assert (
            await app.database.change_log.changes_since((await app.database.now()).snapshot, None, PLENTY)
        ).log_valid
        assert (await app.sync.auditor.audit()).differences == []
