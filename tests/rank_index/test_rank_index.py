"""What keeps the rank index right and small, one mechanism at a time (`test_exact_ranks.py` tests all
together)."""

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from leaderboard.app import App, database_from
from leaderboard.cache import keys
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.rank_index import WRITER_LOCK, RankIndex, RankIndexInvalid, Repair
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import run
from leaderboard.errors import DatabaseUnavailable
from leaderboard.maintenance.audits import RankIndexAudits
from leaderboard.maintenance.rank_index import RankIndexMaintainer
from leaderboard.metrics import Metrics
from leaderboard.model import Context, Standing
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, StandingQuery
from leaderboard.tuning import LogTuning, RankIndexTuning, Tuning
from tests.system import PATIENCE_S, OneConnection, connect, free_port, redis, sql, until

pytestmark = pytest.mark.anyio

USERS = 1000
WIDTH = 10


TUNING = RankIndexTuning(width=WIDTH, apply_after_s=0.0)
"""Many checkpoints on a small board, and every change is applied at once."""
PRUNE_NOW = LogTuning(keep_s=0)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    store = database_from(settings, Tuning(ranks=TUNING))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Database]:
    async with opened(settings) as store:
        yield store


@pytest.fixture
async def ranks(store: Database, db: asyncpg.Connection) -> RankIndex:
    """An index of a board of some users, whose scores are ten apart: the user of id n stands at rank n."""
    await add(db, [10 * (USERS - n) for n in range(USERS)])
    ranks = RankIndex(store.connections, TUNING)
    assert await maintain(ranks) == "built"
    return ranks


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(settings)
    yield connection
    await connection.close()


async def add(db: asyncpg.Connection, scores: Sequence[int]) -> None:
    await db.execute(
        "INSERT INTO users (user_name, total_score) SELECT gen_random_uuid(), s FROM unnest($1::int[]) AS s",
        scores,
    )


async def set_score(db: asyncpg.Connection, user_id: int, score: int) -> None:
    await db.execute("UPDATE users SET total_score = $2 WHERE user_id = $1", user_id, score)


async def maintain(ranks: RankIndex) -> str:
    """Do what is done in one turn; returns what that was."""
    state = await ranks.maintain()
    if state is None:
        return "conflict"
    if state.needs_repair:
        return await ranks.repair()
    return "log applied" if state.applied else "kept" if state.valid else "left"


async def rank(ranks: RankIndex, user_id: int, *, count: bool = False) -> int | None:
    """The rank by the index, or with `count` by counting if the index is not valid."""
    found = await ranks.standings([StandingQuery(user_id)], count=count)
    assert isinstance(found.value[0], Standing)
    return found.value[0].rank


async def is_valid(ranks: RankIndex) -> bool:
    try:
        await ranks.standings([StandingQuery(1)], count=False)
    except RankIndexInvalid:
        return False
    return True


async def sizes(db: asyncpg.Connection) -> list[int]:
    """How many users the index has from each checkpoint to the next."""
    row = await db.fetchrow("SELECT counts, total FROM rank_index")
    assert row is not None
    return [after - before for before, after in itertools.pairwise([*row["counts"], row["total"]])]


async def all_is_right(ranks: RankIndex, db: asyncpg.Connection) -> None:
    """Every checkpoint, and every rank of a board that stands still."""
    assert await ranks.recount_all() == []
    rows = await db.fetch("SELECT user_id, row_number() OVER (ORDER BY total_score DESC, user_id) FROM users")
    seen = await ranks.standings([StandingQuery(user_id) for user_id, _ in rows], count=False)
    assert seen is not None
    found = [standing.rank for standing in seen.value if isinstance(standing, Standing)]
    assert found == [number for _, number in rows]


# Reading


async def test_a_rank_has_in_it_what_is_not_folded_yet(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await set_score(db, 900, 1_000_000)
    await db.execute("DELETE FROM users WHERE user_id IN (1, 2)")
    await add(db, [1_000_000])
    assert await rank(ranks, 500) == 500
    assert await rank(ranks, 950) == 949
    seen = await ranks.standings([ContextQuery(500)], count=False)
    assert seen is not None
    assert isinstance(seen.value[0], Context)
    assert seen.value[0].total == USERS - 1
    assert (await ranks.page(PageQuery(3))).value.total == USERS - 1


async def test_a_page_around_a_rank_has_in_it_what_is_not_folded_yet(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    await db.execute("UPDATE users SET total_score = 1000000 WHERE user_id > 900")
    for middle in (100, 101, 102, 555, 999):
        page = (await ranks.page(PageAroundQuery(3, middle))).value
        assert [standing.rank for standing in page.users] == [middle - 1, middle, middle + 1]
        by_rank = await ranks.standings([StandingQuery(standing.user_id) for standing in page.users], count=False)
        assert by_rank is not None
        assert by_rank.value == page.users


async def test_what_transactions_did_that_ran_when_it_was_folded_is_not_lost(
    ranks: RankIndex, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    transaction = other.transaction()
    await transaction.start()
    await set_score(other, 900, 1_000_000)
    await set_score(db, 800, 1_000_000)
    assert await maintain(ranks) == "log applied"
    assert await rank(ranks, 500) == 501
    await transaction.commit()
    assert await rank(ranks, 500) == 502
    assert await maintain(ranks) == "log applied"
    await all_is_right(ranks, db)


async def test_all_of_an_answer_is_of_one_instant(
    ranks: RankIndex, settings: Settings, other: asyncpg.Connection
) -> None:
    """One user moves above another and back, over a checkpoint: before it or after it, never both or neither."""
    victim, ahead, near, far = 955, 954, 10 * (USERS - 954) + 5, 100_000
    done = asyncio.Event()

    async def to_and_fro() -> None:
        for score in itertools.cycle((far, near)):
            await set_score(other, ahead, score)
            if done.is_set():
                return

    moving = asyncio.create_task(to_and_fro())
    seen = set()
    try:
        for _ in range(40):
            seen |= {await rank(ranks, victim) for _ in range(25)}
            await maintain(ranks)
    finally:
        done.set()
        await moving
    assert seen == {victim}


async def test_without_an_index_all_better_users_are_counted(store: Database, db: asyncpg.Connection) -> None:
    await add(db, [5, 7, 5, 5])
    ranks = RankIndex(store.connections, TUNING)
    assert not await is_valid(ranks)
    assert [await rank(ranks, user_id, count=True) for user_id in (1, 2, 3, 4)] == [2, 1, 3, 4]
    page = (await ranks.page(PageAroundQuery(2, 3))).value
    assert ([standing.user_id for standing in page.users], page.total) == ([1, 3], 4)
    assert [standing.rank for standing in page.users] == [2, 3]


async def test_an_empty_board_has_empty_pages(store: Database) -> None:
    ranks = RankIndex(store.connections, TUNING)
    for _ in range(2):
        for question in (
            PageQuery(10),
            PageQuery(10, (0, 1)),
            PageAroundQuery(10, 1),
            PageAroundQuery(10, 2**31 - 1),
        ):
            page = (await ranks.page(question)).value
            assert (page.users, page.total) == ([], 0)
        await maintain(ranks)


# Applying the log


async def test_each_change_is_applied_once(ranks: RankIndex, db: asyncpg.Connection) -> None:
    for user_id in (900, 800, 700):
        await set_score(db, user_id, 1_000_000)
        assert await maintain(ranks) == "log applied"
        assert await maintain(ranks) == "kept"
    await all_is_right(ranks, db)


async def test_applying_the_log_and_rebalancing_use_one_snapshot(
    ranks: RankIndex, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Another transaction commits between the two statements."""
    await add(db, range(5001, 5100))
    await make_writes_of_the_index_wait(db)
    folding = asyncio.create_task(maintain(ranks))
    await until(lambda: is_waited_for(other), "it waits")
    await set_score(db, 900, 5050)
    await db.execute("SELECT pg_advisory_unlock(77)")
    assert await folding == "log applied"
    assert max(await sizes(other)) <= 2 * WIDTH
    await all_is_right(ranks, db)


async def make_writes_of_the_index_wait(db: asyncpg.Connection) -> None:
    """Make writes of the index wait until this session releases a lock."""
    await db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN NEW; END';"
        "CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON rank_index FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    await db.execute("SELECT pg_advisory_lock(77)")


async def is_waited_for(db: asyncpg.Connection) -> object:
    return await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


async def test_of_two_that_apply_the_log_at_once_one_does(
    settings: Settings, ranks: RankIndex, db: asyncpg.Connection
) -> None:
    async with opened(settings) as another:
        both = (ranks, RankIndex(another.connections, TUNING))
        for user_id in range(900, 950):
            await set_score(db, user_id, 1_000_000)
            did = await asyncio.gather(*(maintain(index) for index in both))
            assert "log applied" in did
        await all_is_right(ranks, db)


async def test_a_process_that_loses_the_race_changes_nothing(
    ranks: RankIndex, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE rank_index SET written_by = pg_current_xact_id()")
    folding = asyncio.create_task(maintain(ranks))
    await until(
        lambda: db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"),
        "it waits",
    )
    await transaction.commit()
    assert await folding == "conflict"
    assert await maintain(ranks) == "log applied"
    await all_is_right(ranks, db)


async def test_few_changes_are_applied_after_a_while(
    ranks: RankIndex, store: Database, db: asyncpg.Connection
) -> None:
    later = RankIndex(store.connections, replace(TUNING, apply_after_s=60.0))
    await set_score(db, 900, 1_000_000)
    assert await maintain(later) == "kept"
    assert await maintain(ranks) == "log applied"
    assert await maintain(ranks) == "kept", "there is nothing to apply"


# Fences


async def test_fences_are_set_where_users_come(ranks: RankIndex, db: asyncpg.Connection) -> None:
    for start in range(0, 2000, 50):
        await add(db, range(4003 + start, 4003 + start + 50))
        assert await maintain(ranks) == "log applied"
        assert max(await sizes(db)) <= 2 * WIDTH
    await all_is_right(ranks, db)


async def test_what_has_grown_very_much_is_fitted_piece_by_piece(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await add(db, [0] * 5000)
    assert await maintain(ranks) == "log applied"
    assert max(await sizes(db)) > 2 * WIDTH

    async def fits() -> bool:
        await maintain(ranks)
        return max(await sizes(db)) <= 2 * WIDTH

    await until(fits, "every bucket is small, though nobody writes")
    await all_is_right(ranks, db)


async def test_fences_are_taken_out_where_users_leave(ranks: RankIndex, db: asyncpg.Connection) -> None:
    before = len(await sizes(db))
    await db.execute("DELETE FROM users WHERE user_id % 10 <> 0")
    for _ in range(10):
        await set_score(db, 10, random.randint(0, 10_000))
        await maintain(ranks)
    assert len(await sizes(db)) <= before / 4
    await all_is_right(ranks, db)


async def test_the_number_of_checkpoints_is_bounded(store: Database, db: asyncpg.Connection) -> None:
    await add(db, range(USERS))
    await db.execute("ANALYZE users")
    ranks = RankIndex(store.connections, replace(TUNING, max_checkpoints=20))
    assert await maintain(ranks) == "built"
    assert len(await sizes(db)) == 20
    for start in range(USERS, 3 * USERS, 100):
        await add(db, range(start, start + 100))
        await maintain(ranks)
        assert len(await sizes(db)) <= 2 * (20 + 4)
    await all_is_right(ranks, db)


# Building


async def test_it_is_built_during_writes(
    settings: Settings, store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add(db, [random.randint(0, 1000) for _ in range(15_000)])
    ranks = RankIndex(store.connections, TUNING)
    done = asyncio.Event()

    async def keep_writing() -> int:
        for number in itertools.count():
            await set_score(other, random.randint(1, 15_000), random.randint(0, 1000))
            if done.is_set():
                return number
        return 0

    writing = asyncio.create_task(keep_writing())
    for _ in range(10):
        assert await ranks.build()
    done.set()
    assert await writing > 0
    await all_is_right(ranks, db)


async def test_writers_do_not_wait_for_a_build(
    store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add(db, range(100))
    ranks = RankIndex(store.connections, TUNING)
    await make_writes_of_the_index_wait(db)
    building = asyncio.create_task(maintain(ranks))
    await until(lambda: is_waited_for(other), "the build waits")
    async with asyncio.timeout(PATIENCE_S):
        await set_score(other, 1, 7)
        await add(other, [8])
        await other.execute("DELETE FROM users WHERE user_id = 2")
    await db.execute("SELECT pg_advisory_unlock(77)")
    assert await building == "built"
    await all_is_right(ranks, other)


async def test_with_an_invalid_index_users_are_counted_only_on_demand(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    """Otherwise every query of a batch would count all users, in one statement."""
    await ranks.discard()
    here = RankIndex(cast("Any", OneConnection(db)), TUNING)
    before = await entries_read(db)
    with pytest.raises(RankIndexInvalid):
        await here.standings([ContextQuery(user_id) for user_id in range(1, 101)], count=False)
    assert await entries_read(db) - before < USERS
    await here.standings([StandingQuery(USERS)], count=True)
    assert await entries_read(db) - before >= USERS - 1, "what is read is counted"


async def test_statistics_of_a_board_of_one_score_do_not_lead_to_the_primary_key(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    """Otherwise the planner uses the primary key, and reads all users of a score."""
    await db.execute("TRUNCATE users RESTART IDENTITY")
    await add(db, [0] * 20_000)
    await db.execute("ANALYZE users")
    await db.execute("UPDATE users SET total_score = user_id")
    await maintain(ranks)
    here = RankIndex(cast("Any", OneConnection(db)), TUNING)
    before = await entries_read(db, "users_pkey")
    assert await here.standings([ContextQuery(user_id) for user_id in range(100, 20_000, 500)], count=False)
    assert 0 < await entries_read(db, "users_pkey") - before < 40 * 2 * 15, "the two versions of fifteen users"


async def entries_read(db: asyncpg.Connection, index: str = "idx_users_score_desc") -> int:
    """How many entries of an index this session has read, and others as far as they have told."""
    await db.execute("SELECT pg_stat_force_next_flush()")
    number: int = await db.fetchval(
        "SELECT pg_stat_get_tuples_returned(indexrelid) FROM pg_index WHERE indexrelid = $1::text::regclass", index
    )
    return number


async def test_one_builds_at_a_time(ranks: RankIndex, other: asyncpg.Connection) -> None:
    await ranks.discard()
    await other.execute("SELECT pg_advisory_lock($1)", WRITER_LOCK)
    assert await maintain(ranks) == "left"
    assert not await ranks.build()
    await other.execute("SELECT pg_advisory_unlock($1)", WRITER_LOCK)
    assert await maintain(ranks) == "built"


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE users",
        "UPDATE users SET total_score = total_score / 2",
        "INSERT INTO users (user_name, total_score) SELECT 'n' || n, n FROM generate_series(1, 20001) AS n",
    ],
    ids=["truncate", "all scores halved", "many more"],
)
async def test_after_a_barrier_the_index_is_built_again(
    ranks: RankIndex, db: asyncpg.Connection, statement: str
) -> None:
    if statement.startswith("UPDATE"):
        await add(db, [random.randint(0, 100_000) for _ in range(20_001)])
        await ranks.build()
    await db.execute(statement)
    await db.execute("INSERT INTO users (user_id, user_name, total_score) VALUES (2000000, 'Ann', -5)")
    assert not await is_valid(ranks)
    total = await db.fetchval("SELECT count(*) FROM users")
    assert await rank(ranks, 2_000_000, count=True) == total
    assert await maintain(ranks) == "built"
    assert await rank(ranks, 2_000_000) == total
    await all_is_right(ranks, db)


@pytest.mark.usefixtures("ranks")
async def test_a_log_too_long_for_readers_is_applied(store: Database, db: asyncpg.Connection) -> None:
    """As after a build during which much was written: building again would be no better."""
    ranks = RankIndex(store.connections, replace(TUNING, max_pending=100))
    await db.execute("UPDATE users SET total_score = total_score - 1 WHERE user_id <= 100")
    assert not await is_valid(ranks)
    assert await maintain(ranks) == "log applied"
    await all_is_right(ranks, db)


@pytest.mark.usefixtures("ranks")
async def test_after_a_log_too_long_to_apply_the_index_is_built_again(
    store: Database, db: asyncpg.Connection
) -> None:
    ranks = RankIndex(store.connections, replace(TUNING, max_pending=100, max_applied=200))
    await db.execute("UPDATE users SET total_score = total_score - 1 WHERE user_id <= 200")
    assert not await is_valid(ranks)
    assert await maintain(ranks) == "built"
    await all_is_right(ranks, db)


# The log


async def test_the_log_is_kept_until_it_is_applied(
    ranks: RankIndex, store: Database, db: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    await store.change_log.prune(PRUNE_NOW)
    await store.change_log.prune(PRUNE_NOW)
    assert await db.fetchval("SELECT count(*) FROM user_changes") == 1, "only rows that were applied are pruned"
    assert await rank(ranks, 500) == 501
    assert await maintain(ranks) == "log applied"
    await store.change_log.prune(PRUNE_NOW)
    assert await db.fetchval("SELECT count(*) FROM user_changes") == 0
    assert await rank(ranks, 500) == 501


async def test_an_index_that_lacks_pruned_rows_is_not_valid(
    ranks: RankIndex, store: Database, db: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    for _ in range(2):
        await store.change_log.prune(replace(PRUNE_NOW, max_index_wait_s=0))
    assert await db.fetchval("SELECT count(*) FROM user_changes") == 0
    assert not await is_valid(ranks)
    assert await rank(ranks, 500, count=True) == 501

    await store.change_log.prune(PRUNE_NOW)
    assert not await is_valid(ranks), "`pruned` never goes back to the snapshot of the index"
    await maintain(ranks)
    await all_is_right(ranks, db)


async def test_nothing_is_pruned_while_the_index_is_built(
    store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add(db, [1, 2, 3])
    async with other.transaction(isolation="repeatable_read"):
        await other.execute("SELECT pg_try_advisory_xact_lock($1)", WRITER_LOCK)
        assert await store.change_log.prune(PRUNE_NOW) is None
    assert await store.change_log.prune(PRUNE_NOW) is not None


async def test_an_index_beside_a_restored_log_is_not_valid(ranks: RankIndex, db: asyncpg.Connection) -> None:
    assert await is_valid(ranks)
    await db.execute("UPDATE log_state SET written_by = '3'")
    assert not await is_valid(ranks)


async def test_nothing_is_built_beside_a_restored_log(
    ranks: RankIndex, store: Database, db: asyncpg.Connection
) -> None:
    """The log has to be reset first."""
    await db.execute("UPDATE log_state SET written_by = '3'")
    assert await maintain(ranks) == "left"
    assert await store.change_log.reset()
    assert await maintain(ranks) == "built"
    await all_is_right(ranks, db)


async def test_everything_is_repaired_without_redis(settings: Settings) -> None:
    without_redis = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}")})
    app = App(without_redis, Tuning(log=LogTuning(prune_every_s=0.05)))
    async with app.running():
        await until(lambda: is_valid_now(app), "it is built")
        sql(settings, "UPDATE log_state SET written_by = '3'")
        assert not await is_valid_now(app)
        await until(lambda: is_valid_now(app), "the log is emptied and it is built anew")


async def is_valid_now(app: App) -> bool:
    try:
        return await is_valid(app.database.rank_index)
    except DatabaseUnavailable:
        return False


# Restores and crashes


async def test_a_restored_index_is_not_valid(
    settings: Settings, ranks: RankIndex, db: asyncpg.Connection, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    await set_score(db, 900, 1_000_000)
    admin = settings.model_copy(update={"db_name": "postgres"})
    copy = settings.model_copy(update={"db_name": f"{settings.db_name}_restored"})
    sql(admin, f"CREATE DATABASE {copy.db_name}")
    to = ["-h", HOST, "-p", str(postgres.port), "-U", postgres.user]
    dump = str(tmp_path / "dump")
    for command in (
        ["pg_dump", *to, "-Fc", "-f", dump, settings.db_name],
        ["pg_restore", *to, "--exit-on-error", "-d", copy.db_name, dump],
    ):
        done = run([str(postgres.programs / command[0]), *command[1:]], PGPASSWORD=postgres.password)
        assert done.returncode == 0, done.stderr
    try:
        async with opened(copy) as store:
            restored = RankIndex(store.connections, TUNING)
            assert not await is_valid(restored)
            assert await rank(restored, 500, count=True) == 501
            assert await store.change_log.reset()
            async with store.connections.acquire() as connection:
                await connection.execute("UPDATE rank_index SET snapshot = '900000000:900000000:'")
            assert not await is_valid(restored), "although its snapshot seems to see every row of the log"
            assert await maintain(restored) == "built"
            assert await rank(restored, 500) == 501
    finally:
        sql(admin, f"DROP DATABASE {copy.db_name} WITH (FORCE)")


async def test_it_survives_statements_that_move_rows(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await set_score(db, 900, 1_000_000)
    for statement in (
        "VACUUM FREEZE rank_index",
        "VACUUM FULL rank_index",
        "CLUSTER rank_index USING rank_index_pkey",
        "ANALYZE",
    ):
        await db.execute(statement)
        assert await rank(ranks, 500) == 501, statement


async def test_it_survives_a_crash(template: Settings, own_postgres: EmbeddedPostgres, data_dir: Path) -> None:
    """PostgreSQL is killed between writes, some of them not committed yet."""
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
    async with opened(settings) as store:
        ranks = RankIndex(store.connections, TUNING)
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
        assert await is_valid(ranks), "without being built again"
        assert [await rank(ranks, user_id) for user_id in (2, 1, 4)] == [1, 2, USERS - 1]
        async with store.connections.dedicated() as connection:
            await all_is_right(ranks, connection)


async def answers(ranks: RankIndex) -> bool:
    try:
        await ranks.recount()
    except Exception:
        return False
    return True


# Repairing


async def test_a_repair_that_fails_is_logged_once_and_shown(
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

    with capture_logs() as said:
        keeping = asyncio.create_task(maintainer.run())
        await until(up, "it is up")
        await ranks.discard()
        await until(down, "it is down")
        await until(tried_often, "it is tried again and again")
        failed.set()
        await until(up, "it is up again")
        keeping.cancel()
    assert [line["event"] for line in said] == [
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
    assert await is_valid(ranks), "only counting shows it"
    wrong = await ranks.recount_all()
    assert wrong
    assert wrong[0].indexed != wrong[0].counted
    await audits.recount()
    assert value(metrics.registry) > 0
    assert not await is_valid(ranks)
    assert await maintain(ranks) == "built"
    await all_is_right(ranks, db)


async def test_a_wrong_total_is_always_found(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await db.execute("UPDATE rank_index SET written_by = pg_current_xact_id(), total = total + 1")
    (wrong,) = await ranks.recount()
    assert wrong.indexed == wrong.counted + 1


def value(registry: CollectorRegistry) -> float:
    found = registry.get_sample_value("leaderboard_rank_index_differences_total")
    assert found is not None
    return found


async def test_the_cache_knows_how_many_users_there_are(leaderboard: App) -> None:
    """The total is of more users than it holds. If it is wrong, an audit finds it."""
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
    """The total of a context from the cache, when the cache is valid and up to date."""
    best = (await app.database.users.top(1)).value[0]
    await app.sync.visibility.wait_until_visible(await app.database.now())
    async with asyncio.timeout(PATIENCE_S):
        while (reading := await app.reader.read([ContextQuery(best.user_id)], PATIENCE_S)) is None:
            await asyncio.sleep(0.01)
    assert isinstance(reading.results[0], Context)
    return reading.results[0].total
