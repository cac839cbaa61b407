"""Explores interleavings of writes, catching up, loads, admissions and evictions, one step at a time.

The parts of the service and the stores are real. Between any two calls to a store, a seeded scheduler decides who
goes on: a world is a sequence of such decisions, and its number makes it again. Whenever a process catches up, an
oracle reads the tables as that statement saw them. When the cache is then moved to that snapshot, all of Redis is
compared with it. What is read from a replica is compared with the snapshot of the cache at that moment.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import asyncpg

from leaderboard.app import cache_from, database_from
from leaderboard.board_rules import parse_rules, parse_stored, score_of, unscale
from leaderboard.cache import keys
from leaderboard.cache.reader import CacheReader
from leaderboard.cache.season_reader import SeasonReader
from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.seasons import season_name
from leaderboard.cache.state import CacheState
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.errors import (
    BoardNotFound,
    LeaderboardError,
    NotOnBoard,
    SeasonNotFound,
)
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import NEIGHBOURS, Context, EncodedTop, Standing, Top, User
from leaderboard.queries import ContextQuery, RankingQuery, SeasonRef, StandingQuery, TopQuery
from leaderboard.snapshot import Snapshot
from leaderboard.sync.catch_up import CatchUp
from leaderboard.sync.invalidation import Invalidator
from leaderboard.sync.rebuild import Rebuilder
from leaderboard.sync.season_loader import SeasonLoader
from leaderboard.sync.waiters import Waiters
from leaderboard.tuning import LogTuning, SeasonTuning, SyncTuning, Tuning
from tests.system import connect, redis

USERS = 40
SIZE = 10
"""The users that the cache keeps of a season at least."""
BOARDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "races": {"better": "lower", "ties": "first", "ranks": "shared", "decimals": 1},
    "weeks": {"keeps": "sum"},
}
MAX_USERS = 300
"""Three cached seasons, which count as 100 users each."""
FRESH_S = 3600.0
STEPS = 700
WEIGHTS = {
    "poll": 2.0,
    "changes_since": 3.0,
    "apply": 3.0,
    "board": 0.1,
    "prune": 0.12,
    "expire": 2.0,
    "read": 0.5,
}
"""How much likelier a step is than another one."""
TUNING = Tuning(
    # Leases and claims run out when the scheduler says so. A process goes on from its own last state.
    sync=SyncTuning(fresh_s=FRESH_S, lease_ms=60_000, claim_ms=60_000, reuse_own_state_s=FRESH_S),
    seasons=SeasonTuning(report_s=FRESH_S, claim_ms=60_000),
)


class Wrong(AssertionError):
    """The cache showed something that PostgreSQL did not have at its snapshot."""


class Crash(Exception):
    """A process ends between two calls to a store."""


@dataclass(frozen=True)
class Truth:
    """What the tables have at one snapshot: the users of each season, best first, by its name in the cache."""

    default: list[User]
    seasons: dict[str, tuple[str, int, list[User]]]
    """The stored rules, the tie bits and the users; their scores are sort keys."""


@dataclass
class Scheduler:
    """Lets one actor at a time go on, chosen at random."""

    random: random.Random
    waiting: dict[asyncio.Future[None], str] = field(default_factory=dict)
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    steps: Counter[str] = field(default_factory=Counter)

    async def turn(self, step: str) -> None:
        """Waits until this step is chosen."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[future] = step
        self._pause()
        await future

    def _pause(self) -> None:
        self.running -= 1
        if not self.running:
            self.idle.set()

    async def act(self, work: Callable[[], Awaitable[None]]) -> None:
        """Runs an actor for ever. One that crashes begins again."""
        try:
            while True:
                with suppress(Crash):
                    await work()
        finally:
            self._pause()

    async def run(self, actors: Sequence[Callable[[], Awaitable[None]]], steps: int) -> None:
        """Runs so many steps. Raises what an actor raises."""
        self.running = len(actors)
        tasks = [asyncio.create_task(self.act(actor)) for actor in actors]
        try:
            for _ in range(steps):
                async with asyncio.timeout(60):
                    await self.idle.wait()
                for task in tasks:
                    if task.done():
                        task.result()
                self.idle.clear()
                self.running += 1
                weights = [WEIGHTS.get(step, 1.0) for step in self.waiting.values()]
                (future,) = self.random.choices(list(self.waiting), weights)
                step = self.waiting.pop(future)
                self.steps[step] += 1
                if self.random.random() < 0.02:
                    future.set_exception(Crash())
                else:
                    future.set_result(None)
            async with asyncio.timeout(60):
                await self.idle.wait()
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Gated:
    """A store of which each call of a named method is one step."""

    def __init__(
        self, store: object, scheduler: Scheduler, methods: dict[str, Callable[..., Awaitable[Any]]]
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in self._methods:
            return found
        after = self._methods[name]

        async def gated(*arguments: Any, **options: Any) -> Any:
            await self._scheduler.turn(name)
            result = await found(*arguments, **options)
            await after(result)
            return result

        return gated


async def _nothing(_result: object) -> None:
    pass


class Process:
    """The parts of one process that keep the cache."""

    def __init__(self, world: "World", settings: Settings, tuning: Tuning) -> None:
        self.world = world
        metrics = Metrics()
        database = world.database
        self.store = cache_from(settings, tuning)
        self.health = Health(database, metrics)
        self.seasons = SeasonStore(self.store, MAX_USERS, tuning.seasons.claim_ms)
        gate = world.scheduler
        cache = cast(
            "Any",
            Gated(
                self.store,
                gate,
                {
                    "poll": _nothing,
                    "apply": self._check_applied,
                    "claim": _nothing,
                    "install": _nothing,
                    "invalidate": _nothing,
                },
            ),
        )
        log = cast("Any", Gated(database.change_log, gate, {"changes_since": world.remember, "prune": _nothing}))
        users = cast(
            "Any", Gated(database.users, gate, {"top_and_total": world.remember, "best_of_season": _nothing})
        )
        offers = cast("Any", Gated(self.seasons, gate, {"claim": _nothing, "offer": _nothing}))
        waiters = Waiters()
        self.invalidator = Invalidator(cache, waiters, self.health, metrics, FRESH_S)
        self.catch_up = CatchUp(log, cache, waiters, self.invalidator, self.health, metrics, tuning.sync)
        self.rebuilder = Rebuilder(users, cache, self.health, metrics, tuning.sync)
        self.loader = SeasonLoader(users, offers, self.health, metrics, tuning.seasons)
        self.reader = CacheReader(self.store)
        self.season_reader = SeasonReader(self.store, self.seasons, 250)

    async def close(self) -> None:
        for part in (self.reader, self.season_reader, self.store):
            await part.close()

    async def keep_cache(self) -> None:
        """Catches up once, and rebuilds if that is needed."""
        needed = await self.catch_up.run()
        if needed is None:
            return
        if needed.invalidate:
            await self.invalidator.invalidate(needed.reason)
        await self.rebuilder.install(needed.reason)
        self.catch_up.own_state.forget()

    async def load(self) -> None:
        """Loads a season beside the cache, often one that is cached."""
        rng = self.world.random
        season = SeasonRef(rng.choice(list(BOARDS)), rng.choice([None, None, None, 0, 1, 2]))
        for _ in range(rng.randrange(5)):
            self.loader.note_read(season, cached=True)
        with suppress(BoardNotFound, SeasonNotFound):
            if await self.loader.load(season):
                self.world.seen["offered"] += 1

    async def _check_applied(self, applied: object) -> None:
        if isinstance(applied, CacheState):
            self.world.seen["applied"] += 1
            await self.world.check_redis(self, applied.position.snapshot)

    async def read(self) -> None:
        """Reads from the replicas, and compares with what the cache is at."""
        world, rng = self.world, self.world.random
        await world.scheduler.turn("read")
        queries: list[RankingQuery[Any]] = []
        for _ in range(4):
            season = SeasonRef(rng.choice(list(BOARDS)), rng.choice([None, None, 0, 1]))
            user_id = rng.randrange(1, USERS + 1)
            queries.append(
                rng.choice(
                    [
                        TopQuery(rng.randrange(1, 12), season=season),
                        StandingQuery(user_id, season=season),
                        ContextQuery(user_id, season=season),
                    ]
                )
            )
        reading = await self.season_reader.read(queries, FRESH_S)
        if reading is None:
            return
        state = await self.store.poll("reader", lease_ms=0)
        assert state is not None
        truth = world.truths[state.position.snapshot]
        for query, result in zip(queries, reading.results, strict=True):
            assert query.season is not None
            if result is not None:
                world.seen["answered"] += 1
                world.check_result(query, result, truth, season_name(query.season))


class World:
    """PostgreSQL and Redis with some boards, and everything that changes them."""

    def __init__(self, database: Database, db: asyncpg.Connection, settings: Settings, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(self.random)
        self.database = database
        self.db = db
        self.settings = settings
        self.truths: dict[Snapshot, Truth] = {}
        self.seen: Counter[str] = Counter()
        self.sessions: list[asyncpg.Connection] = []

    # The oracle

    async def remember(self, found: Any) -> None:
        """Reads the tables as the statement has seen them: nothing has been committed since."""
        position = found.position
        async with self.db.transaction(isolation="repeatable_read", readonly=True):
            self.truths[position.snapshot] = await self._truth()

    async def _truth(self) -> Truth:
        users = await self.db.fetch(
            "SELECT user_id, user_name, image_url, total_score, external_id FROM users WHERE NOT hidden"
            " ORDER BY total_score DESC, user_id"
        )
        rows = await self.db.fetch(
            "SELECT b.name, s.number, s.season_id = b.season_id AS current, s.ended_at, b.rules::text, b.tie_bits,"
            " coalesce(json_agg(json_build_array(e.user_id, u.user_name, u.image_url, e.sort_key, u.external_id)"
            " ORDER BY e.sort_key DESC, e.user_id) FILTER (WHERE e.user_id IS NOT NULL), '[]')::text AS entries"
            " FROM boards AS b JOIN seasons AS s USING (board_id)"
            " LEFT JOIN scores AS e ON e.season_id = s.season_id AND NOT e.hidden"
            " LEFT JOIN users AS u ON u.user_id = e.user_id"
            " WHERE b.board_id > 1 GROUP BY b.board_id, s.season_id ORDER BY s.number"
        )
        seasons: dict[str, tuple[str, int, list[User]]] = {}
        for row in rows:
            found = row["rules"], row["tie_bits"], [User(*entry) for entry in json.loads(row["entries"])]
            seasons[f"{row['name']}/{row['number']}"] = found
            if row["current"]:
                seasons[row["name"]] = found
            if row["ended_at"] is not None:
                seasons[f"{row['name']}/0"] = found  # The last one stays.
        return Truth([User(*row) for row in users], seasons)

    async def check_redis(self, process: Process, snapshot: Snapshot) -> None:
        """Compares all of the cache with what the tables had at its snapshot."""
        truth = self.truths[snapshot]
        export = await process.store.export()
        assert export is not None
        self._compare("default", export.users, export.floor is None, export.total, truth.default)
        for name in await process.seasons.names():
            found = await process.seasons.export(name)
            if found is None:
                raise Wrong(f"{name} has an entry and no users")
            if name not in truth.seasons:
                raise Wrong(f"{name} is cached, and there is no such season")
            rules, _, users = truth.seasons[name]
            if parse_stored(found.season.rules) != parse_stored(rules):
                raise Wrong(f"{name} is cached with the rules {found.season.rules} instead of {rules}")
            self._compare(name, found.users, found.season.complete, found.season.total, users)
            self.seen["season compared"] += 1

    def _compare(self, name: str, cached: list[User], complete: bool, total: int, users: list[User]) -> None:
        if total != len(users):
            raise Wrong(f"{name}: the total is {total} instead of {len(users)}")
        if cached != users[: len(cached)]:
            raise Wrong(f"{name}: {cached} instead of {users[: len(cached)]}")
        if complete and len(cached) != len(users):
            raise Wrong(f"{name} is complete with {len(cached)} of {len(users)} users")

    def check_result(self, query: RankingQuery[Any], result: object, truth: Truth, name: str) -> None:
        """Compares what was read with what the tables had at the snapshot of the cache."""
        expected = self._expected(query, truth, name)
        if isinstance(result, EncodedTop):
            result = json.loads(result.body)
        elif isinstance(result, LeaderboardError):
            result = type(result)
        if result != expected:
            raise Wrong(f"{query}: {result} instead of {expected}")

    def _expected(self, query: RankingQuery[Any], truth: Truth, name: str) -> object:
        rules_text, tie_bits, users = truth.seasons[name]
        rules = parse_stored(rules_text)
        standings: list[Standing] = []
        for index, user in enumerate(users):
            shares = (
                index
                and rules.ranks == "shared"
                and users[index - 1].total_score >> tie_bits == user.total_score >> tie_bits
            )
            rank = standings[-1].rank if shares else index + 1
            score: Any = unscale(rules, score_of(rules, user.total_score))
            standings.append(Standing(rank, user.user_id, user.user_name, user.image_url, score, user.external_id))
        if isinstance(query, TopQuery):
            return json.loads(EncodedTop.of(Top(standings[: query.n])).body)
        assert isinstance(query, StandingQuery | ContextQuery)
        at = next((n for n, user in enumerate(users) if user.user_id == query.user_id), None)
        if at is None:
            return NotOnBoard
        if isinstance(query, StandingQuery):
            return standings[at]
        above, below = standings[max(0, at - NEIGHBOURS) : at], standings[at + 1 : at + 1 + NEIGHBOURS]
        return Context(standings[at], above, below, len(users))

    # What changes PostgreSQL

    async def write(self, session: asyncpg.Connection) -> None:
        """Runs some statements in a transaction, and commits it or not."""
        turn = self.scheduler.turn
        await turn("begin")
        transaction = session.transaction()
        await transaction.start()
        try:
            for _ in range(self.random.randrange(1, 4)):
                await turn("statement")
                sql, *arguments = await self._statement()
                await session.execute(sql, *arguments)
            await turn("commit")
        except (Crash, asyncpg.PostgresError):
            await transaction.rollback()
            self.seen["rolled back"] += 1
            return
        if self.random.random() < 0.15:
            await transaction.rollback()
        else:
            await transaction.commit()
            self.seen["committed"] += 1

    async def _statement(self) -> Sequence[Any]:
        rng = self.random
        user_id = rng.randrange(1, USERS + 1)
        seasons = [
            row["season_id"] for row in await self.db.fetch("SELECT season_id FROM seasons WHERE season_id > 1")
        ]
        season_id = rng.choice(seasons) if seasons else 0
        key = rng.randrange(8) << rng.choice([0, 31]) | rng.randrange(3)
        image = rng.choice([None, f"https://{rng.randrange(9)}"])
        write = (
            "INSERT INTO scores (season_id, user_id, sort_key) VALUES ($1, $2, $3)"
            " ON CONFLICT (user_id, season_id) DO UPDATE SET sort_key = excluded.sort_key"
        )
        return rng.choice(
            [
                *[(write, season_id, user_id, key)] * 8,
                ("DELETE FROM scores WHERE season_id = $1 AND user_id = $2", season_id, user_id),
                ("UPDATE users SET total_score = $2 WHERE user_id = $1", user_id, key % 9),
                ("UPDATE users SET image_url = $2 WHERE user_id = $1", user_id, image),
                (
                    "UPDATE users SET user_name = $2 WHERE user_id = $1",
                    user_id,
                    f"user {user_id}.{rng.randrange(4)}",
                ),
                (
                    "UPDATE users SET external_id = $2 WHERE user_id = $1 AND external_id IS NULL",
                    user_id,
                    f"id of {user_id}",
                ),
                *[("UPDATE users SET hidden = NOT hidden WHERE user_id = $1", user_id)] * 2,
                ("DELETE FROM users WHERE user_id = $1", user_id),
                *[
                    (
                        "INSERT INTO users (user_id, user_name) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                        user_id,
                        f"user {user_id}",
                    )
                ]
                * 2,
            ]
        )

    async def change_boards(self) -> None:
        """Ends a season, changes rules, or deletes a board and creates it again."""
        rng = self.random
        name = rng.choice(list(BOARDS))
        await self.scheduler.turn("board")
        boards = self.database.boards
        board = (await boards.get(name)).value
        with suppress(LeaderboardError, asyncpg.PostgresError):
            if board is None:
                await self.make_board(name)
            elif rng.random() < 0.5:
                await boards.end_season(board, None)
            elif rng.random() < 0.7:
                rules = json.loads(json.dumps(BOARDS[name])) | {"title": f"title {rng.randrange(3)}"}
                if rng.random() < 0.5:
                    rules["ranks"] = "unique"
                await boards.configure(name, parse_rules(rules), None, ())
            elif rng.random() < 0.3:
                await boards.delete(name)

    async def make_board(self, name: str) -> None:
        await self.database.boards.configure(name, parse_rules(BOARDS[name]), None, ())

    async def expire(self) -> None:
        """Lets a lease or a claim run out, whether its process goes on or not."""
        await self.scheduler.turn("expire")
        with redis(self.settings) as client:
            held = sorted(key for key in client.scan_iter() if key == keys.LEASE.encode() or b"claim" in key)
            if held:
                client.delete(self.random.choice(held))

    async def prune(self) -> None:
        """Prunes the log of all that every transaction has seen."""
        await self.scheduler.turn("prune")
        await self.database.change_log.prune(LogTuning(keep_s=0, max_index_wait_s=0))


@asynccontextmanager
async def world_of(settings: Settings, seed: int) -> AsyncIterator[World]:
    """Makes a world: boards with some entries, open sessions for writers."""
    settings = settings.model_copy(update={"cache_size": SIZE, "sync_interval_ms": 50})
    database = database_from(settings, TUNING)
    await database.open()
    db = await connect(settings)
    world = World(database, db, settings, seed)
    await db.execute(
        "INSERT INTO users (user_id, user_name) SELECT n, 'user ' || n FROM generate_series(1, $1::int) AS n",
        USERS,
    )
    for name in BOARDS:
        await world.make_board(name)
    await db.execute(
        "INSERT INTO scores (season_id, user_id, sort_key) SELECT s.season_id, n, n % 7"
        " FROM seasons AS s, generate_series(1, 30) AS n WHERE s.season_id > 1 AND (n + s.season_id) % 3 > 0"
    )
    world.sessions = [await connect(settings) for _ in range(3)]
    for session in world.sessions:
        await session.execute("SET lock_timeout = '5ms'")
    try:
        yield world
    finally:
        for session in world.sessions:
            session.terminate()
        await db.close()
        await database.close()


async def explore(settings: Settings, seed: int, steps: int = STEPS) -> Counter[str]:
    """Runs a world. Raises Wrong if the cache ever shows what PostgreSQL did not have at its snapshot.

    Returns how often something happened that the exploration is about.
    """
    async with world_of(settings, seed) as world:
        processes = [Process(world, world.settings, TUNING) for _ in range(2)]
        for process in processes:
            process.health.note_postgres(await world.database.now())
        actors: list[Callable[[], Awaitable[None]]] = []
        actors += [partial(world.write, session) for session in world.sessions]
        for process in processes:
            actors += [process.keep_cache, process.load, process.read]
        actors += [processes[0].load, world.change_boards, world.prune, world.expire]
        try:
            await world.scheduler.run(actors, steps)
        except Wrong as wrong:
            raise Wrong(f"world {seed}: {wrong}") from wrong
        finally:
            for process in processes:
                await process.close()
        return world.seen + Counter({f"step {name}": count for name, count in world.scheduler.steps.items()})
