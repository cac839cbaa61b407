"""The cache of seasons: what is loaded and evicted; a season in it is answered without PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.cache.format import Delta
from leaderboard.cache.season_replica import SeasonReplica, SeasonReplicas
from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.seasons import CachedSeason, SeasonExport
from leaderboard.config import Settings
from leaderboard.database.change_log import SeasonView
from leaderboard.errors import NotOnBoard
from leaderboard.model import Context, EncodedTop, Top, User
from leaderboard.queries import ContextQuery, SeasonRef
from leaderboard.snapshot import Snapshot, SnapshotPosition
from leaderboard.tuning import LogTuning, SeasonTuning, SyncTuning, Tuning
from tests.boards.boards import add_users, fill, make_board, started
from tests.system import PATIENCE_S, redis, until

pytestmark = pytest.mark.anyio

USERS = 30
TUNING = Tuning(
    sync=SyncTuning(fresh_s=PATIENCE_S, patience_s=PATIENCE_S), seasons=SeasonTuning(load_after=2, report_s=0.05)
)


@asynccontextmanager
async def serving(settings: Settings, tuning: Tuning = TUNING, **overrides: object) -> AsyncIterator[App]:
    """Runs a process with its timers."""
    app = App(settings.model_copy(update={"sync_interval_ms": 50, **overrides}), tuning)
    async with app.running():
        yield app


async def cached(app: App) -> set[str]:
    """Returns the names of the cached seasons."""
    return set(await SeasonStore(app.cache, 1, 1).names())


def answers(app: App, source: str) -> int:
    return app.metrics.answers.counts.get((source,), 0)


async def read_until_cached(app: App, *seasons: SeasonRef) -> None:
    """Reads these seasons until the cache answers for each."""
    for season in seasons:

        async def from_cache(season: SeasonRef = season) -> bool:
            before = answers(app, "cache")
            await app.service.reads.top(1, season)
            return answers(app, "cache") > before

        await until(from_cache, f"{season} is answered from the cache")


async def board_with(
    app: App, db: asyncpg.Connection, name: str, count: int = USERS, **rules: object
) -> SeasonRef:
    board = await make_board(app, name, **rules)
    await fill(db, board.season_id, count)
    return SeasonRef(name)


async def test_a_season_is_cached_once_it_was_read_some_times(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        season = await board_with(app, db, "read")
        await board_with(app, db, "not read")  # Of this name there is no other use.
        await read_until_cached(app, season)
        assert await cached(app) == {"read"}
        reads = app.service.reads
        asked = answers(app, "postgres")
        top = (await reads.top(2, season)).result.decode()
        assert [(user.rank, user.user_id, user.total_score) for user in top.users] == [(1, 30, 30), (2, 29, 29)]
        assert (await reads.standing(7, season)).result.rank == 24
        context = (await reads.context(1, season)).result
        assert ([user.user_id for user in context.above], context.below, context.total) == (
            [6, 5, 4, 3, 2],
            [],
            30,
        )
        with pytest.raises(NotOnBoard):
            await reads.standing(1000, season)
        assert answers(app, "postgres") == asked


async def test_a_write_is_seen_by_the_next_read_of_another_process(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, USERS)
    async with serving(settings) as one, serving(settings) as other:
        season = await board_with(one, db, "shared", better="lower")
        await read_until_cached(one, season)
        await read_until_cached(other, season)
        asked = answers(other, "postgres")
        for n in range(1, 40):
            await one.service.entries.set_score("shared", 1 + n % USERS, -100 - n)
            best = (await other.service.reads.top(1, season)).result.decode().users[0]
            assert (best.user_id, best.total_score) == (1 + n % USERS, -100 - n)
        assert answers(other, "postgres") == asked


async def test_a_season_below_its_floor_is_answered_by_postgres(
    settings: Settings, db: asyncpg.Connection
) -> None:
    count = 200
    await add_users(db, count)
    async with serving(settings, cache_size=50) as app:
        season = await board_with(app, db, "deep", count)
        await read_until_cached(app, season)
        asked = answers(app, "postgres")
        assert (await app.service.reads.context(170, season)).result.user.rank == 31
        assert answers(app, "postgres") == asked
        assert (await app.service.reads.context(10, season)).result.user.rank == 191
        assert (await app.service.reads.context(10, season)).result.total == count
        with pytest.raises(NotOnBoard):
            await app.service.reads.standing(1000, season)
        assert answers(app, "postgres") > asked


async def test_all_answers_of_the_cache_are_those_of_postgres(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, 100)
    async with serving(settings) as app, serving(settings, cache_users=1000, replica_users=1000) as other:
        kinds: list[dict[str, object]] = [
            {},
            {"better": "lower", "decimals": 2},
            {"ties": "first", "ranks": "shared"},
            {"better": "lower", "ties": "first", "decimals": 3, "ranks": "shared", "keeps": "best"},
        ]
        for n, rules in enumerate(kinds):
            await make_board(app, f"kind-{n}", **rules)
            for user_id in range(1, 41):
                await app.service.entries.set_score(f"kind-{n}", user_id, user_id % 7 - 3)
        for n in range(len(kinds)):
            season = SeasonRef(f"kind-{n}")
            await read_until_cached(other, season)
            asked = answers(other, "postgres")
            best = (await app.database.users.top_of_season(25, season)).value
            assert (await other.service.reads.top(25, season)).result == EncodedTop.of(Top(best))
            contexts = [ContextQuery(user_id, season=season) for user_id in range(1, 41)]
            stored = (await app.database.rank_index.standings(contexts, count=True)).value
            for query, expected in zip(contexts, stored, strict=True):
                assert isinstance(expected, Context)
                assert (await other.service.reads.context(query.user_id, season)).result == expected
                assert (await other.service.reads.standing(query.user_id, season)).result == expected.user
            assert answers(other, "postgres") == asked


async def test_a_load_that_is_older_than_the_log_is_not_admitted(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, USERS)
    async with started(settings) as app:
        log = app.database.change_log
        board = await make_board(app, "old")
        await fill(db, board.season_id, USERS)
        loaded = (await app.database.users.best_of_season(USERS, SeasonRef("old"))).position.snapshot
        await db.execute("DELETE FROM scores WHERE user_id < 5")
        view = SeasonView(board.season_id, board.board_id, None, loaded)
        for reaches in (True, False):
            present = (await app.database.now()).snapshot
            (found,) = (await log.changes_since(present, None, 1000, [view], 1000)).seasons
            assert found.reaches is reaches
            assert not reaches or (found.added, sorted(found.deleted)) == (-4, [1, 2, 3, 4])
            for _ in range(2):  # The first call takes the snapshot up to which the second one prunes.
                await log.prune(LogTuning(keep_s=0))


async def test_what_is_read_least_is_evicted_for_what_is_read_more(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 400)
    async with serving(settings, cache_users=1000) as app:
        seasons = [await board_with(app, db, f"b{n}", 400) for n in range(3)]
        await read_until_cached(app, seasons[0], seasons[1])
        for _ in range(30):
            await app.service.reads.top(1, seasons[0])
        # There is room for two. Now and then, the third is read; the least read one goes when it is read more.
        await read_until_cached(app, seasons[2])
        assert await cached(app) == {"b0", "b2"}


async def test_a_season_read_as_seldom_does_not_evict_another(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, 600)
    async with serving(settings, cache_users=1000) as app:
        often, seldom = [await board_with(app, db, name, 600) for name in ("often", "seldom")]
        await read_until_cached(app, often)
        for _ in range(200):
            await app.service.reads.top(1, often)
        for _ in range(20):
            await app.service.reads.top(1, seldom)
        assert await cached(app) == {"often"}


async def test_seasons_that_grow_are_evicted_when_they_are_too_large_together(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 900)
    async with serving(settings, cache_users=1000, cache_size=1000) as app:
        small, other = [await board_with(app, db, name, 10) for name in ("small", "other")]
        await read_until_cached(app, small, other)
        for season in (small, other):
            board = await app.service.boards.get(season.board)
            await db.execute(
                "INSERT INTO scores (season_id, user_id, sort_key)"
                " SELECT $1, n, n FROM generate_series(11, 900) AS n",
                board.season_id,
            )

        async def one_is_left() -> bool:
            await app.service.reads.top(1, other)
            return await cached(app) == {"other"}

        await until(one_is_left, "the season that is read less has left the cache")


def test_replicas_that_grow_drop_others() -> None:
    replicas = SeasonReplicas(max_users=250)
    growing, other = replica_of(10), replica_of(10)
    replicas.put("other", other)
    replicas.put("growing", growing)
    assert replicas.get("other") is other
    replicas.get("growing")
    growing.apply(Delta(1000, [], [(n, f"user {n}", None, n, None) for n in range(11, 201)]))
    replicas.put("growing", growing)
    assert replicas.get("other") is None
    assert replicas.get("growing") is growing


def replica_of(count: int) -> SeasonReplica:
    season = CachedSeason("load", b"version", count, count, None, 2, 2, 0, "{}")
    users = [User(n, f"user {n}", None, n) for n in range(1, count + 1)]
    position = SnapshotPosition("epoch", Snapshot(1, 1))
    return SeasonReplica(SeasonExport(b"token", position, season, users))


async def test_the_end_of_a_season_and_new_rules_drop_it(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        season = await board_with(app, db, "weekly")
        await read_until_cached(app, season)
        ended = await app.service.boards.end_season("weekly", 1)
        assert (await app.service.reads.top(1, season)).result.decode() == Top([])
        await read_until_cached(app, season, SeasonRef("weekly", ended.number), SeasonRef("weekly", 0))
        assert await cached(app) == {"weekly", "weekly/1", "weekly/0"}
        previous = SeasonRef("weekly", 0)
        assert (await app.service.reads.top(1, previous)).result.decode().users[0].user_id == USERS
        await app.service.boards.end_season("weekly", 2)
        assert (await app.service.reads.top(1, previous)).result.decode() == Top([])


async def test_hiding_renaming_and_erasing_is_seen_in_every_cached_season(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        seasons = [await board_with(app, db, name) for name in ("one", "two")]
        await read_until_cached(app, *seasons)
        asked = answers(app, "postgres")
        users = app.service.users

        async def best() -> list[tuple[int, str]]:
            found = [(await app.service.reads.top(1, season)).result.decode().users[0] for season in seasons]
            return [(user.user_id, user.user_name) for user in found]

        await users.update(30, hidden=True)
        assert await best() == [(29, "user 29")] * 2
        await users.update(29, user_name="renamed")
        assert await best() == [(29, "renamed")] * 2
        await users.update(30, hidden=False)
        assert await best() == [(30, "user 30")] * 2
        await users.erase(30)
        assert await best() == [(29, "renamed")] * 2
        assert answers(app, "postgres") == asked


async def test_a_rebuild_drops_the_other_seasons(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        season = await board_with(app, db, "other")
        await read_until_cached(app, season)
        assert await app.sync.synchronizer.rebuild("a test")
        assert await cached(app) == set()
        await read_until_cached(app, season)


async def test_a_season_whose_keys_were_lost_is_loaded_again(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        season = await board_with(app, db, "lost")
        await read_until_cached(app, season)
        with redis(settings) as client:
            for key in client.scan_iter("{leaderboard}:load:*"):
                client.delete(key)
        assert (await app.service.reads.top(1, season)).result.decode().users[0].user_id == USERS
        await read_until_cached(app, season)


@pytest.mark.parametrize("entry", [b"", b"x", b"a|b|c|d|e|f|g|h|i|j", b"l|v|1|0||0|2|2|0|{}"])
async def test_an_entry_of_another_program_is_dropped(
    settings: Settings, db: asyncpg.Connection, entry: bytes
) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        season = await board_with(app, db, "damaged")
        await read_until_cached(app, season)
        with redis(settings) as client:
            client.hset(keys.SEASONS, "damaged", entry)
        for _ in range(3):
            assert (await app.service.reads.top(1, season)).result.decode().users[0].user_id == USERS
        await read_until_cached(app, season)
        assert (await app.service.reads.top(1, season)).result.decode().users[0].user_id == USERS


async def test_an_audit_compares_the_cached_seasons(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, USERS)
    async with serving(settings) as app:
        season = await board_with(app, db, "audited")
        await read_until_cached(app, season)
        audit = (await app.sync.auditor.audit_seasons(10))["audited"]
        assert (audit.compared, audit.differences, audit.totals) == (USERS, [], None)
        await db.execute("ALTER TABLE scores DISABLE TRIGGER ALL")
        await db.execute("UPDATE scores SET sort_key = 99 WHERE user_id = 3")
        audit = (await app.sync.auditor.audit_seasons(10))["audited"]
        assert [difference.user_id for difference in audit.differences] == [3]
