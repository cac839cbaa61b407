"""The rank index after a restore, a crash, a failed repair or a wrong count."""

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from leaderboard.app import App, database_from
from leaderboard.cache import keys
from leaderboard.config import Settings
from leaderboard.database.rank_index import RankIndex, Repair
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import run
from leaderboard.errors import DatabaseUnavailable
from leaderboard.maintenance.audits import RankIndexAudits
from leaderboard.maintenance.rank_index import RankIndexMaintainer
from leaderboard.metrics import Metrics
from leaderboard.model import Context
from leaderboard.queries import ContextQuery
from tests.rank_index.index import TUNING, USERS, add, assert_right, is_valid, maintain, opened, rank, set_score
from tests.system import PATIENCE_S, connect, redis, sql, until

pytestmark = pytest.mark.anyio


# Restores and crashes


async def test_a_restored_index_is_not_valid(
    settings: Settings, ranks: RankIndex, db: asyncpg.Connection, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    await set_score(db, 900, 1_000_000)
    admin = settings.model_copy(update={"db_name": "postgres"})
    restored_settings = settings.model_copy(update={"db_name": f"{settings.db_name}_restored"})
    sql(admin, f"CREATE DATABASE {restored_settings.db_name}")
    to = ["-h", HOST, "-p", str(postgres.port), "-U", postgres.user]
    dump = str(tmp_path / "dump")
    for command in (
        ["pg_dump", *to, "-Fc", "-f", dump, settings.db_name],
        ["pg_restore", *to, "--exit-on-error", "-d", restored_settings.db_name, dump],
    ):
        done = run([str(postgres.programs / command[0]), *command[1:]], PGPASSWORD=postgres.password)
        assert done.returncode == 0, done.stderr
    try:
        async with opened(restored_settings) as database:
            restored = RankIndex(database.connections, TUNING)
            assert not await is_valid(restored)
            assert await rank(restored, 500, count=True) == 501
            assert await database.change_log.reset()
            async with database.connections.acquire() as connection:
                await connection.execute("UPDATE rank_index SET snapshot = '900000000:900000000:'")
            assert not await is_valid(restored), "although its snapshot seems to see every row of the log"
            assert await maintain(restored) == "built"
            assert await rank(restored, 500) == 501
    finally:
        sql(admin, f"DROP DATABASE {restored_settings.db_name} WITH (FORCE)")


async def test_an_index_stays_valid_after_statements_that_rewrite_tables(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    for statement in (
        "VACUUM FREEZE rank_index",
        "VACUUM FULL rank_index",
        "CLUSTER rank_index USING rank_index_pkey",
        "ANALYZE",
    ):
        await db.execute(statement)
        assert await rank(ranks, 500) == 501, statement


async def test_an_index_stays_valid_after_a_crash(
    template: Settings, own_postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    """PostgreSQL is killed between writes. Some of them are not committed yet."""
    settings = template.model_copy(
        update={
            "db_port": own_postgres.port,
            "db_name": "leaderboard",
            "db_password": SecretStr(own_postgres.password),
        }
    )
    await database_from(settings).migrate(lambda _line: None)
    db = await connect(settings)
    await add(db, range(USERS))
    async with opened(settings) as database:
        ranks = RankIndex(database.connections, TUNING)
        await maintain(ranks)
        await set_score(db, 1, 5000)
        assert await maintain(ranks) == "log applied"
        await set_score(db, 2, 6000)
        open_ = db.transaction()
        await open_.start()
        await set_score(db, 3, 7000)
        postmaster = int(own_postgres.pid_file.read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        own_postgres.stop()
        own_postgres.start()
        await until(lambda: answers(ranks), "PostgreSQL is back")
        assert await is_valid(ranks), "the index is valid without another build"
        assert [await rank(ranks, user_id) for user_id in (2, 1, 4)] == [1, 2, USERS - 1]
        async with database.connections.dedicated() as connection:
            await assert_right(ranks, connection)


async def answers(ranks: RankIndex) -> bool:
    try:
        await ranks.recount()
    except Exception:
        return False
    return True


# Repairing


async def test_a_repair_that_fails_is_logged_once_and_is_a_metric(
    ranks: RankIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    maintainer = RankIndexMaintainer(ranks, metrics, 0.01)
    repair, failed, tries = ranks.repair, asyncio.Event(), 0

    async def fail() -> Repair:
        nonlocal tries
        if failed.is_set():
            return await repair()
        tries += 1
        raise DatabaseUnavailable("the disk is full")

    monkeypatch.setattr(ranks, "repair", fail)

    async def up() -> float | None:
        return metrics.registry.get_sample_value("leaderboard_rank_index_up")

    async def down() -> bool:
        return await up() == 0

    async def tried_often() -> bool:
        return tries >= 5

    with capture_logs() as lines:
        maintaining = asyncio.create_task(maintainer.run())
        await until(up, "the index is valid")
        await ranks.discard()
        await until(down, "the index is not valid")
        await until(tried_often, "the repair is tried often")
        failed.set()
        await until(up, "the index is valid again")
        maintaining.cancel()
    assert [line["event"] for line in lines] == [
        "the rank index cannot be repaired, ranks are counted",
        "rank index built",
        "the rank index is valid again",
    ]


# Auditing


async def test_a_wrong_count_is_found_and_the_index_discarded(ranks: RankIndex, db: asyncpg.Connection) -> None:
    metrics = Metrics()
    audits = RankIndexAudits(ranks, metrics, 0.1)
    for _ in range(20):
        await audits.recount()
    assert await is_valid(ranks)
    assert value(metrics.registry) == 0

    await db.execute(
        "UPDATE rank_index SET written_by = pg_current_xact_id(),"
        " counts = ARRAY(SELECT n + (i % 2)::int FROM unnest(counts) WITH ORDINALITY AS c (n, i) ORDER BY i)"
    )
    assert await is_valid(ranks), "only a recount can find the wrong counts"
    wrong = await ranks.recount_all()
    assert wrong
    assert wrong[0].indexed != wrong[0].counted
    await audits.recount()
    assert value(metrics.registry) > 0
    assert not await is_valid(ranks)
    assert await maintain(ranks) == "built"
    await assert_right(ranks, db)


async def test_a_wrong_total_is_always_found(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await db.execute("UPDATE rank_index SET written_by = pg_current_xact_id(), total = total + 1")
    (wrong,) = await ranks.recount()
    assert wrong.indexed == wrong.counted + 1


def value(registry: CollectorRegistry) -> float:
    found = registry.get_sample_value("leaderboard_rank_index_differences_total")
    assert found is not None
    return found


async def test_the_total_from_the_cache_is_right_and_audited(leaderboard: App) -> None:
    """The total counts more users than the cache contains. If it is wrong, an audit finds that."""
    small = App(leaderboard.settings.model_copy(update={"cache_size": 10}))
    async with small.running():
        for statement, total in (
            ("INSERT INTO users (user_name, total_score) SELECT n, n FROM generate_series(1, 100) AS n", 100),
            ("UPDATE users SET total_score = -total_score WHERE user_id <= 95", 100),
            ("DELETE FROM users WHERE user_id IN (1, 100)", 98),
            ("INSERT INTO users (user_name, total_score) VALUES ('Ann', -1000), ('Bob', 1000)", 100),
            ("UPDATE users SET user_id = 200 WHERE user_id = 99", 100),
        ):
            sql(small.settings, statement)
            assert await cached_total(small) == total

        assert (await small.sync.auditor.audit()).totals is None
        redis(small.settings).hincrby(keys.STATE, "total", 7)
        assert (await small.sync.auditor.audit()).totals == (107, 100)


async def cached_total(app: App) -> int:
    """Returns the total of a context from the cache, once the cache is valid and up to date."""
    best = (await app.database.users.top(1)).value[0]
    await app.sync.visibility.wait_until_visible(await app.database.now())
    async with asyncio.timeout(PATIENCE_S):
        while (reading := await app.reader.read([ContextQuery(best.user_id)], PATIENCE_S)) is None:
            await asyncio.sleep(0.01)
    assert isinstance(reading.results[0], Context)
    return reading.results[0].total
