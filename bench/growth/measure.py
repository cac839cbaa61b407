"""Measures one board, through the stores and in this process: neither HTTP nor the cache is in any figure."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any, TypeVar

import asyncpg

from bench.growth.progress import Progress
from bench.growth.result import (
    DEPTHS,
    TOGETHER,
    Busy,
    Keeping,
    Latency,
    Look,
    Reads,
    Result,
    Sizes,
    Writes,
)
from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.model import AskContext, AskStanding, Context, ScoreSet, Standing
from leaderboard.observe import Metrics
from leaderboard.rank_keeper import RankKeeper
from leaderboard.truth.connections import Connections
from leaderboard.truth.rank_index import RankIndex, Tended
from leaderboard.truth.rows import one_row
from leaderboard.truth.sql import named_queries
from leaderboard.truth.store import NewScore

STEADY_RATE = 2000
"""Scores set a second where the writes are to be steady and something else is measured."""
STEADY_BATCH = 20
BATCH = 200
"""Scores set by one transaction where as many as possible are set."""
LANES = 2
ROUNDS = 5
LOOK_EVERY_S = 10
_CHUNK = 100_000
_WARM_UP = 5
_FEWEST = 5
"""So many times is asked even what takes longer than there is time."""
_CHECKED = 4
"""Of so many users at each depth the rank is held against the plain count."""

Place = tuple[int, int]
"""Score and id of a user."""

Item = TypeVar("Item")


class WrongAnswer(Exception):
    """The rank index said something else than the plain count."""


class WatchedIndex(RankIndex):
    """A rank index that remembers what each turn of keeping it found, and how long that took."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self.turns: list[tuple[Tended, float]] = []

    async def tend(self) -> Tended:
        started = time.perf_counter()
        tended = await super().tend()
        self.turns.append((tended, time.perf_counter() - started))
        return tended


async def measure(
    settings: Settings, users: int, progress: Progress, *, seconds: float, steady_s: float
) -> Result:
    """Fill a new database with so many users, and measure; each figure takes about `seconds`."""
    app = App(settings)
    async with progress.during("migrating"):
        await app.truth.migrate(lambda _: None)
    await app.truth.open()
    try:
        async with app.truth.connections.alone(server_settings={"statement_timeout": "0"}) as connection:
            board = _Board(app, connection, users, progress, seconds)
            load_s = await board.fill()
            build_s = await board.build()
            before = await board.bytes()
            await board.check()
            reads = await board.reads()
            busy = await board.busy()
            writes = await board.writes()
            after = await board.bytes()
            await board.check()
            sizes = Sizes(before["users"], before["rank_index"], after["rank_index"])
            steady = await board.steady(steady_s) if steady_s else []
            if steady:
                await board.check()
            postgres = await board.version()
    finally:
        await app.truth.close()
    return Result(users, postgres, load_s, build_s, sizes, reads, busy, writes, steady)


class _Board:
    """A board while it is measured, with a connection of its own for what the stores do not do."""

    def __init__(
        self, app: App, connection: asyncpg.Connection, users: int, progress: Progress, seconds: float
    ) -> None:
        self._app = app
        self._connection = connection
        self._users = users
        self._progress = progress
        self._seconds = seconds
        self._ranks = WatchedIndex(app.truth.connections)
        text = resources.files(__package__).joinpath("growth.sql").read_text("utf-8")
        self._sql = named_queries("growth.sql", text)
        self._scores: list[int] = []

    # The board

    async def fill(self) -> float:
        """Create the users; how long that took."""
        started = time.perf_counter()
        await self._connection.execute(self._sql["seed"])
        for first in range(1, self._users + 1, _CHUNK):
            last = min(first + _CHUNK - 1, self._users)
            async with self._progress.during(f"creating users, up to {last:,} of {self._users:,}"):
                await self._connection.execute(self._sql["add_users"], first, last)
        async with self._progress.during("vacuuming"):
            await self._connection.execute(self._sql["settle"])
            await self._connection.execute(self._sql["checkpoint"])
        self._scores = [row["total_score"] for row in await self._connection.fetch(self._sql["scores"])]
        return time.perf_counter() - started

    async def build(self) -> float:
        """Build the rank index; how long that took."""
        async with self._progress.during("building the rank index"):
            started = time.perf_counter()
            if not await self._ranks.build():
                raise RuntimeError("somebody else built the rank index")
            return time.perf_counter() - started

    async def bytes(self) -> asyncpg.Record:
        """How much the tables take."""
        return await self._one("bytes")

    async def version(self) -> str:
        """PostgreSQL's."""
        return str((await self._one("version"))[0])

    async def check(self) -> None:
        """Hold ranks and totals against the plain count, while nothing is written. Raises WrongAnswer."""
        async with self._progress.during("holding ranks against the plain count"):
            places = [place for depth in DEPTHS for place in (await self._band(depth))[:_CHECKED]]
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                total = (await self._one("plain_total"))[0]
                ranks = [(await self._one("plain_rank", *place))[0] for place in places]
                standings = await self._answers([AskStanding(user_id) for _, user_id in places])
                contexts = await self._answers([AskContext(user_id) for _, user_id in places])
            for place, rank, standing, context in zip(places, ranks, standings, contexts, strict=True):
                assert isinstance(standing, Standing)
                assert isinstance(context, Context)
                found = (standing.rank, context.user.rank, context.total)
                if found != (rank, rank, total):
                    raise WrongAnswer(f"user {place[1]}: {found} instead of rank {rank} of {total}")
            wrong = await self._ranks.recount_all()
            if wrong is None or wrong:
                raise WrongAnswer(f"counted otherwise than the rank index says: {wrong}")

    # What is measured

    async def reads(self) -> Reads:
        """How long reads take while nothing else is done."""
        rank: dict[int, Latency] = {}
        context: dict[int, Latency] = {}
        plain: dict[int, Latency] = {}
        for depth in DEPTHS:
            async with self._progress.during(f"ranks at {depth} %"):
                band = await self._band(depth)
                rank[depth] = await self._timed(self._ask_standing, band)
                context[depth] = await self._timed(self._ask_context, band)
                plain[depth] = await self._timed(self._count, band)
        async with self._progress.during(f"{TOGETHER} contexts together"):
            band = await self._band(50)
            batches = [[AskContext(i) for _, i in random.choices(band, k=TOGETHER)] for _ in range(100)]
            together = await self._timed(self._answers, batches)
        return Reads(rank, context, plain, together)

    async def busy(self) -> Busy:
        """How long a context at half depth takes while scores are set."""
        async with self._progress.during(f"contexts at 50 % while {STEADY_RATE:,} scores a second are set"):
            band = await self._band(50)
            spared = {user_id for _, user_id in band}  # they are to stay at this depth
            async with self._kept():
                rate, context = await asyncio.gather(
                    self._set_scores(3 * self._seconds, STEADY_BATCH, STEADY_RATE, spared),
                    self._timed(self._ask_context, band, 3 * self._seconds),
                )
        return Busy(context, rate)

    async def writes(self) -> Writes:
        """How fast scores are set, in rounds without and with the index."""
        async with self._progress.during("setting scores, to warm up"):
            await self._set_scores(self._seconds / 2)
        rates_with, rates_without = [], []
        self._ranks.turns.clear()
        for number in range(1, ROUNDS + 1):
            await self._ranks.discard()
            await self._connection.execute(self._sql["checkpoint"])
            async with self._progress.during(f"setting scores without the index, round {number} of {ROUNDS}"):
                rates_without.append(await self._set_scores(self._seconds))
            await self._ranks.build()
            await self._connection.execute(self._sql["checkpoint"])
            text = f"setting scores with the index, round {number} of {ROUNDS}"
            async with self._progress.during(text), self._kept():
                rates_with.append(await self._set_scores(self._seconds))
        return Writes(rates_with, rates_without, self._keeping())

    async def steady(self, seconds: float) -> list[Look]:
        """What grows while scores are set for long, and all that a service does beside answering is done."""
        looks: list[Look] = []
        band = await self._band(50)
        spared = {user_id for _, user_id in band}
        service = App(self._app.settings)
        async with service.running():
            started = time.monotonic()
            writing = asyncio.create_task(self._set_scores(seconds, STEADY_BATCH, STEADY_RATE, spared))
            try:
                while not writing.done():
                    context = await self._timed(self._ask_context, band, LOOK_EVERY_S, pause_s=0.05)
                    now, rows = await self.bytes(), (await self._one("log_rows"))[0]
                    unfolded = service.metrics.registry.get_sample_value("leaderboard_rank_index_unfolded")
                    at_s = time.monotonic() - started
                    looks.append(Look(at_s, rows, now["log"], now["rank_index"], int(unfolded or 0), context))
                    self._progress.say(
                        f"{STEADY_RATE:,} scores/s set: {rows:,} log rows in {now['log']:,} bytes, rank index"
                        f" {now['rank_index']:,} bytes, {unfolded:,.0f} unfolded, context {context.p50_ms:.2f} ms"
                    )
                await writing
            finally:
                writing.cancel()
        return looks

    # How it is done

    async def _one(self, query: str, *arguments: Any) -> asyncpg.Record:
        return await one_row(self._connection, self._sql[query], *arguments)

    async def _band(self, depth: int) -> list[Place]:
        """Some users at this depth, in no order."""
        width = max(100, self._users // 1000)
        before = self._users * depth // 100 - width // 2
        rows = await self._connection.fetch(self._sql["band"], max(0, before), width, 1000)
        return [(row["total_score"], row["user_id"]) for row in rows]

    async def _answers(self, questions: Sequence[AskStanding | AskContext]) -> list[Standing | Context | None]:
        seen = await self._ranks.standings(questions, count=False)
        if seen is None:
            raise RuntimeError("the rank index cannot be used")
        return seen.value

    async def _ask_standing(self, place: Place) -> None:
        await self._answers([AskStanding(place[1])])

    async def _ask_context(self, place: Place) -> None:
        await self._answers([AskContext(place[1])])

    async def _count(self, place: Place) -> None:
        await self._one("plain_rank", *place)

    async def _timed(
        self,
        ask: Callable[[Item], Awaitable[object]],
        items: Sequence[Item],
        seconds: float | None = None,
        *,
        pause_s: float = 0,
    ) -> Latency:
        """How long it takes to ask for an item, one after the other."""
        endless = itertools.cycle(items)
        for item in itertools.islice(endless, _WARM_UP):
            await ask(item)
        taken: list[float] = []
        ends = time.perf_counter() + (self._seconds if seconds is None else seconds)
        while (started := time.perf_counter()) < ends or len(taken) < _FEWEST:
            await ask(next(endless))
            taken.append(time.perf_counter() - started)
            await asyncio.sleep(pause_s)
        return Latency.of(taken)

    async def _set_scores(
        self, seconds: float, batch: int = BATCH, rate: float = math.inf, spared: Collection[int] = ()
    ) -> float:
        """Set scores of users at random in the lanes of a service, at this rate at most; how many a second."""
        started = time.perf_counter()

        async def lane() -> int:
            done = 0
            due = started
            while time.perf_counter() < started + seconds:
                ids = [i for i in random.sample(range(1, self._users + 1), batch) if i not in spared]
                written = await self._app.truth.set_scores([NewScore(i, random.choice(self._scores)) for i in ids])
                done += sum(isinstance(outcome, ScoreSet) for outcome in written.outcomes)
                due = max(due + LANES * batch / rate, time.perf_counter())
                await asyncio.sleep(due - time.perf_counter())
            return done

        done = await asyncio.gather(*(lane() for _ in range(LANES)))
        return sum(done) / (time.perf_counter() - started)

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        """While the rank index is kept, as in every process of a service."""
        interval_s = self._app.settings.sync_interval_ms / 1000
        keeping = asyncio.create_task(RankKeeper(self._ranks, Metrics(), interval_s).run())
        try:
            yield
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    def _keeping(self) -> Keeping:
        folds = [taken for tended, taken in self._ranks.turns if tended.folded]
        unfolded = [tended.unfolded for tended, _ in self._ranks.turns]
        return Keeping(
            Latency.of(folds), max(rows or 0 for rows in unfolded), sum(rows is None for rows in unfolded)
        )
