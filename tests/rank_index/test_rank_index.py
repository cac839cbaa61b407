"""What keeps the rank index right and small, one thing at a time; all at once is the property test's business."""

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
from leaderboard.database import rank_index
from leaderboard.database.rank_index import LOCK_KEY, RankIndex, Repair
from leaderboard.database.store import Database
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import run
from leaderboard.errors import DatabaseUnavailable
from leaderboard.model import Context, ContextQuery, PageAroundQuery, PageQuery, Standing, StandingQuery
from leaderboard.observe import Metrics
from leaderboard.rank_keeper import RankIndexMaintainer
from tests.system import PATIENCE_S, OneConnection, connect, free_port, redis, sql, until

pytestmark = pytest.mark.anyio

USERS = 1000
WIDTH = 10


@pytest.fixture(autouse=True)
def fine_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_index, "WIDTH", WIDTH)
    monkeypatch.setattr(rank_index, "FOLD_AFTER_S", 0.0)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    store = database_from(settings)
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
    ranks = RankIndex(store.connections)
    assert await tend(ranks) == "built"
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


async def tend(ranks: RankIndex) -> str:
    """What is done in one turn."""
    tended = await ranks.tend()
    if tended is None:
        return "overtaken"
    if tended.wants_repair:
        return await ranks.repair()
    return "folded" if tended.folded else "kept" if tended.usable else "left"


async def rank(ranks: RankIndex, user_id: int, *, count: bool = False) -> int | None:
    """By the index, None if it cannot be used; with `count` by counting then."""
    seen = await ranks.standings([StandingQuery(user_id)], count=count)
    if seen is None:
        return None
    assert isinstance(seen.value[0], Standing)
    return seen.value[0].rank


async def usable(ranks: RankIndex) -> bool:
    return await ranks.standings([StandingQuery(1)], count=False) is not None


async def sizes(db: asyncpg.Connection) -> list[int]:
    """How many users the index has from each fence to the next."""
    row = await db.fetchrow("SELECT counts, total FROM rank_index")
    assert row is not None
    return [after - before for before, after in itertools.pairwise([*row["counts"], row["total"]])]


async def all_is_right(ranks: RankIndex, db: asyncpg.Connection) -> None:
    """Every fence, and every rank of a board that stands still."""
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
    assert await tend(ranks) == "folded"
    assert await rank(ranks, 500) == 501
    await transaction.commit()
    assert await rank(ranks, 500) == 502
    assert await tend(ranks) == "folded"
    await all_is_right(ranks, db)


async def test_all_of_an_answer_is_of_one_instant(
    ranks: RankIndex, settings: Settings, other: asyncpg.Connection
) -> None:
    """A user goes to and fro above another, over a fence: it is before it or behind it, never both or neither."""
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
            await tend(ranks)
    finally:
        done.set()
        await moving
    assert seen == {victim}


async def test_without_an_index_everybody_is_counted(store: Database, db: asyncpg.Connection) -> None:
    await add(db, [5, 7, 5, 5])
    ranks = RankIndex(store.connections)
    assert not await usable(ranks)
    assert [await rank(ranks, user_id, count=True) for user_id in (1, 2, 3, 4)] == [2, 1, 3, 4]
    page = (await ranks.page(PageAroundQuery(2, 3))).value
    assert ([standing.user_id for standing in page.users], page.total) == ([1, 3], 4)
    assert [standing.rank for standing in page.users] == [2, 3]


async def test_an_empty_board_has_empty_pages(store: Database) -> None:
    ranks = RankIndex(store.connections)
    for _ in range(2):
        for question in (
            PageQuery(10),
            PageQuery(10, (0, 1)),
            PageAroundQuery(10, 1),
            PageAroundQuery(10, 2**31 - 1),
        ):
            page = (await ranks.page(question)).value
            assert (page.users, page.total) == ([], 0)
        await tend(ranks)


# Folding


async def test_each_change_is_folded_once(ranks: RankIndex, db: asyncpg.Connection) -> None:
    for user_id in (900, 800, 700):
        await set_score(db, user_id, 1_000_000)
        assert await tend(ranks) == "folded"
        assert await tend(ranks) == "kept"
    await all_is_right(ranks, db)


async def test_a_fold_and_the_fences_it_sets_are_of_one_snapshot(
    ranks: RankIndex, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Somebody commits between the two statements of a fold."""
    await add(db, range(5001, 5100))
    await make_writes_of_the_index_wait(db)
    folding = asyncio.create_task(tend(ranks))
    await until(lambda: is_waited_for(other), "the fold waits")
    await set_score(db, 900, 5050)
    await db.execute("SELECT pg_advisory_unlock(77)")
    assert await folding == "folded"
    assert max(await sizes(other)) <= 2 * WIDTH
    await all_is_right(ranks, db)


async def make_writes_of_the_index_wait(db: asyncpg.Connection) -> None:
    """Until this session lets go of a lock."""
    await db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN NEW; END';"
        "CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON rank_index FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    await db.execute("SELECT pg_advisory_lock(77)")


async def is_waited_for(db: asyncpg.Connection) -> object:
    return await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


async def test_of_two_who_fold_at_once_one_does(
    settings: Settings, ranks: RankIndex, db: asyncpg.Connection
) -> None:
    async with opened(settings) as another:
        both = (ranks, RankIndex(another.connections))
        for user_id in range(900, 950):
            await set_score(db, user_id, 1_000_000)
            did = await asyncio.gather(*(tend(index) for index in both))
            assert "folded" in did
        await all_is_right(ranks, db)


async def test_who_is_overtaken_while_folding_changes_nothing(
    ranks: RankIndex, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE rank_index SET written_by = pg_current_xact_id()")
    folding = asyncio.create_task(tend(ranks))
    await until(
        lambda: db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"),
        "the fold waits",
    )
    await transaction.commit()
    assert await folding == "overtaken"
    assert await tend(ranks) == "folded"
    await all_is_right(ranks, db)


async def test_few_changes_wait_to_be_folded_but_not_for_ever(
    ranks: RankIndex, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_index, "FOLD_AFTER_S", 60.0)
    await set_score(db, 900, 1_000_000)
    assert await tend(ranks) == "kept"
    monkeypatch.setattr(rank_index, "FOLD_AFTER_S", 0.0)
    assert await tend(ranks) == "folded"
    assert await tend(ranks) == "kept", "there is nothing to fold"


# Fences


async def test_fences_are_set_where_users_come(ranks: RankIndex, db: asyncpg.Connection) -> None:
    for start in range(0, 2000, 50):
        await add(db, range(4003 + start, 4003 + start + 50))
        assert await tend(ranks) == "folded"
        assert max(await sizes(db)) <= 2 * WIDTH
    await all_is_right(ranks, db)


async def test_what_has_grown_very_much_is_fitted_piece_by_piece(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await add(db, [0] * 5000)
    assert await tend(ranks) == "folded"
    assert max(await sizes(db)) > 2 * WIDTH

    async def fits() -> bool:
        await tend(ranks)
        return max(await sizes(db)) <= 2 * WIDTH

    await until(fits, "every bucket is small, though nobody writes")
    await all_is_right(ranks, db)


async def test_fences_are_taken_out_where_users_leave(ranks: RankIndex, db: asyncpg.Connection) -> None:
    before = len(await sizes(db))
    await db.execute("DELETE FROM users WHERE user_id % 10 <> 0")
    for _ in range(10):
        await set_score(db, 10, random.randint(0, 10_000))
        await tend(ranks)
    assert len(await sizes(db)) <= before / 4
    await all_is_right(ranks, db)


async def test_the_number_of_fences_is_bounded(
    store: Database, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_index, "MOST_FENCES", 20)
    await add(db, range(USERS))
    await db.execute("ANALYZE users")
    ranks = RankIndex(store.connections)
    assert await tend(ranks) == "built"
    assert len(await sizes(db)) == 20
    for start in range(USERS, 3 * USERS, 100):
        await add(db, range(start, start + 100))
        await tend(ranks)
        assert len(await sizes(db)) <= 2 * (20 + 4)
    await all_is_right(ranks, db)


# Building


async def test_it_is_built_while_others_write(
    settings: Settings, store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add(db, [random.randint(0, 1000) for _ in range(15_000)])
    ranks = RankIndex(store.connections)
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
    ranks = RankIndex(store.connections)
    await make_writes_of_the_index_wait(db)
    building = asyncio.create_task(tend(ranks))
    await until(lambda: is_waited_for(other), "the build waits")
    async with asyncio.timeout(PATIENCE_S):
        await set_score(other, 1, 7)
        await add(other, [8])
        await other.execute("DELETE FROM users WHERE user_id = 2")
    await db.execute("SELECT pg_advisory_unlock(77)")
    assert await building == "built"
    await all_is_right(ranks, other)


async def test_an_index_that_cannot_be_used_has_nobody_counted_unless_asked_for(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    """Of many questions that wait together each would count everybody, all in one statement."""
    await ranks.discard()
    here = RankIndex(cast("Any", OneConnection(db)))
    before = await entries_read(db)
    assert await here.standings([ContextQuery(user_id) for user_id in range(1, 101)], count=False) is None
    assert await entries_read(db) - before < USERS
    assert await here.standings([StandingQuery(USERS)], count=True) is not None
    assert await entries_read(db) - before >= USERS - 1, "what is read is counted"


async def test_statistics_from_when_all_had_one_score_do_not_lead_astray(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    """Else the planner takes the primary key, and walks through everybody behind a user."""
    await db.execute("TRUNCATE users RESTART IDENTITY")
    await add(db, [0] * 20_000)
    await db.execute("ANALYZE users")
    await db.execute("UPDATE users SET total_score = user_id")
    await tend(ranks)
    here = RankIndex(cast("Any", OneConnection(db)))
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
    await other.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    assert await tend(ranks) == "left"
    assert not await ranks.build()
    await other.execute("SELECT pg_advisory_unlock($1)", LOCK_KEY)
    assert await tend(ranks) == "built"


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE users",
        "UPDATE users SET total_score = total_score / 2",
        "INSERT INTO users (user_name, total_score) SELECT 'n' || n, n FROM generate_series(1, 20001) AS n",
    ],
    ids=["truncate", "all scores halved", "many more"],
)
async def test_after_a_change_too_large_to_be_listed_it_is_built_anew(
    ranks: RankIndex, db: asyncpg.Connection, statement: str
) -> None:
    if statement.startswith("UPDATE"):
        await add(db, [random.randint(0, 100_000) for _ in range(20_001)])
        await ranks.build()
    await db.execute(statement)
    await db.execute("INSERT INTO users (user_id, user_name, total_score) VALUES (2000000, 'Ann', -5)")
    assert not await usable(ranks)
    total = await db.fetchval("SELECT count(*) FROM users")
    assert await rank(ranks, 2_000_000, count=True) == total
    assert await tend(ranks) == "built"
    assert await rank(ranks, 2_000_000) == total
    await all_is_right(ranks, db)


async def test_more_log_than_is_worth_reading_is_folded_all_the_same(
    ranks: RankIndex, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a build during which much was written: to build again would be no better."""
    monkeypatch.setattr(rank_index, "MOST_UNFOLDED", 100)
    await db.execute("UPDATE users SET total_score = total_score - 1 WHERE user_id <= 100")
    assert not await usable(ranks)
    assert await tend(ranks) == "folded"
    await all_is_right(ranks, db)


async def test_more_log_than_is_worth_folding_has_it_built_anew(
    ranks: RankIndex, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_index, "MOST_UNFOLDED", 100)
    monkeypatch.setattr(rank_index, "MOST_FOLDED", 200)
    await db.execute("UPDATE users SET total_score = total_score - 1 WHERE user_id <= 200")
    assert not await usable(ranks)
    assert await tend(ranks) == "built"
    await all_is_right(ranks, db)


# The log


async def test_the_log_is_kept_until_it_is_folded(
    ranks: RankIndex, store: Database, db: asyncpg.Connection
) -> None:
    await set_score(db, 900, 1_000_000)
    await store.prune_log(0, 10_000)
    await store.prune_log(0, 10_000)
    assert await db.fetchval("SELECT count(*) FROM user_changes") == 1, "only what is folded has gone"
    assert await rank(ranks, 500) == 501
    assert await tend(ranks) == "folded"
    await store.prune_log(0, 10_000)
    assert await db.fetchval("SELECT count(*) FROM user_changes") == 0
    assert await rank(ranks, 500) == 501


async def test_an_index_that_lacks_what_was_pruned_is_not_believed(
    ranks: RankIndex, store: Database, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_score(db, 900, 1_000_000)
    monkeypatch.setattr("leaderboard.database.store._WAIT_FOR_RANKS_S", 0)
    await store.prune_log(0, 10_000)
    await store.prune_log(0, 10_000)
    assert await db.fetchval("SELECT count(*) FROM user_changes") == 0
    assert not await usable(ranks)
    assert await rank(ranks, 500, count=True) == 501

    monkeypatch.undo()
    await store.prune_log(0, 10_000)
    assert not await usable(ranks), "pruning does not move back to what the index sees"
    await tend(ranks)
    await all_is_right(ranks, db)


async def test_nothing_is_pruned_while_it_is_being_built(
    store: Database, db: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await add(db, [1, 2, 3])
    async with other.transaction(isolation="repeatable_read"):
        await other.execute("SELECT pg_try_advisory_xact_lock($1)", LOCK_KEY)
        assert await store.prune_log(0, 10_000) is None
    assert await store.prune_log(0, 10_000) is not None


async def test_an_index_beside_a_log_that_came_with_a_dump_is_not_believed(
    ranks: RankIndex, db: asyncpg.Connection
) -> None:
    assert await usable(ranks)
    await db.execute("UPDATE log_state SET written_by = '3'")
    assert not await usable(ranks)


async def test_nothing_is_built_beside_a_log_that_is_not_believed(
    ranks: RankIndex, store: Database, db: asyncpg.Connection
) -> None:
    """It would be no better; first the log is emptied."""
    await db.execute("UPDATE log_state SET written_by = '3'")
    assert await tend(ranks) == "left"
    assert await store.reset_log()
    assert await tend(ranks) == "built"
    await all_is_right(ranks, db)


async def test_all_that_heals_without_redis(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.sync.PRUNE_EVERY_S", 0.05)
    app = App(settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}")}))
    async with app.running():
        await until(lambda: usable_with_anybody(app), "it is built")
        sql(settings, "UPDATE log_state SET written_by = '3'")
        assert not await usable_with_anybody(app)
        await until(lambda: usable_with_anybody(app), "the log is emptied and it is built anew")


async def usable_with_anybody(app: App) -> bool:
    try:
        return await usable(app.ranks)
    except DatabaseUnavailable:
        return False


# Where it came from


async def test_an_index_that_came_with_a_dump_is_not_believed(
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
            restored = RankIndex(store.connections)
            assert not await usable(restored)
            assert await rank(restored, 500, count=True) == 501
            assert await store.reset_log()
            async with store.connections.pooled() as connection:
                await connection.execute("UPDATE rank_index SET snapshot = '900000000:900000000:'")
            assert not await usable(restored), "though it is as if all there is had been folded long since"
            assert await tend(restored) == "built"
            assert await rank(restored, 500) == 501
    finally:
        sql(admin, f"DROP DATABASE {copy.db_name} WITH (FORCE)")


async def test_it_survives_what_moves_rows_about(ranks: RankIndex, db: asyncpg.Connection) -> None:
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
    """PostgreSQL is killed in the middle of writes and folds, some of them not committed yet."""
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
        ranks = RankIndex(store.connections)
        await tend(ranks)
        await set_score(db, 1, 5000)
        assert await tend(ranks) == "folded"
        await set_score(db, 2, 6000)
        open_ = db.transaction()
        await open_.start()
        await set_score(db, 3, 7000)
        postmaster = int(own_postgres.pid_file.read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        own_postgres.stop()
        own_postgres.start()
        await until(lambda: answers(ranks), "PostgreSQL is back")
        assert await usable(ranks), "without being built again"
        assert [await rank(ranks, user_id) for user_id in (2, 1, 4)] == [1, 2, USERS - 1]
        async with store.connections.alone() as connection:
            await all_is_right(ranks, connection)


async def answers(ranks: RankIndex) -> bool:
    try:
        await ranks.recount()
    except Exception:
        return False
    return True


# Keeping


async def test_that_it_cannot_be_repaired_is_said_once_and_shown(
    ranks: RankIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    keeper = RankIndexMaintainer(ranks, metrics, 0.01)
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
        keeping = asyncio.create_task(keeper.run())
        await until(up, "it is up")
        await ranks.discard()
        await until(down, "it is down")
        await until(tried_often, "it is tried again and again")
        failed.set()
        await until(up, "it is up again")
        keeping.cancel()
    told = [line["event"] for line in said]
    assert told == [
        "the rank index cannot be repaired, ranks are counted",
        "rank index built",
        "the rank index is in use again",
    ]


# Auditing


async def test_a_wrong_count_is_found_and_the_index_thrown_away(ranks: RankIndex, db: asyncpg.Connection) -> None:
    metrics = Metrics()
    keeper = RankIndexMaintainer(ranks, metrics, 0.1)
    for _ in range(20):
        await keeper.recount()
    assert await usable(ranks)
    assert value(metrics.registry) == 0

    await db.execute(
        "UPDATE rank_index SET written_by = pg_current_xact_id(),"
        " counts = ARRAY(SELECT n + (i % 2)::int FROM unnest(counts) WITH ORDINALITY AS c (n, i) ORDER BY i)"
    )
    assert await usable(ranks), "nothing but counting shows it"
    wrong = await ranks.recount_all()
    assert wrong
    assert wrong[0].said != wrong[0].found
    await keeper.recount()
    assert value(metrics.registry) > 0
    assert not await usable(ranks)
    assert await tend(ranks) == "built"
    await all_is_right(ranks, db)


async def test_a_wrong_total_is_always_found(ranks: RankIndex, db: asyncpg.Connection) -> None:
    await db.execute("UPDATE rank_index SET written_by = pg_current_xact_id(), total = total + 1")
    (wrong,) = await ranks.recount()
    assert wrong.said == wrong.found + 1


def value(registry: CollectorRegistry) -> float:
    found = registry.get_sample_value("leaderboard_rank_index_differences_total")
    assert found is not None
    return found


async def test_the_cache_knows_how_many_users_there_are(leaderboard: App) -> None:
    """More than it holds, whether they come, go or stay; and where it is wrong, the audit tells."""
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

        assert (await small.sync.audit()).totals is None
        redis(small.settings).hincrby(keys.STATE, "total", 7)
        assert (await small.sync.audit()).totals == (107, 100)


async def cached_total(app: App) -> int:
    """As soon as the cache is in use and shows the present."""
    best = (await app.database.best(1)).value[0]
    await app.sync.cover(await app.database.now())
    async with asyncio.timeout(PATIENCE_S):
        while (reading := await app.cache.read([ContextQuery(best.user_id)], PATIENCE_S)) is None:
            await asyncio.sleep(0.01)
    assert isinstance(reading.answers[0], Context)
    return reading.answers[0].total
