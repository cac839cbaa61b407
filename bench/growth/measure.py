"""Measures one board through the service's stores, in this process, without HTTP and cache."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from bench.growth.board import Board, Place
from bench.growth.result import (
    DEPTHS,
    TOGETHER,
    Busy,
    Keeping,
    Look,
    Reads,
    Result,
    Sizes,
    Writes,
)
from bench.latency import Latency, timed
from bench.progress import Progress
from bench.servers import PATIENT
from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.scores import NewScore
from leaderboard.maintenance.rank_index import RankIndexMaintainer
from leaderboard.metrics import Metrics
from leaderboard.model import ScoreSet
from leaderboard.queries import ContextQuery, StandingQuery

STEADY_RATE = 2000
"""Scores set per second while something else is measured."""
STEADY_BATCH = 20
BATCH = 200
"""Scores set per transaction where the rate of writes is measured."""
LANES = 2
ROUNDS = 5
LOOK_EVERY_S = 10


async def measure(
    settings: Settings, users: int, progress: Progress, *, seconds: float, steady_s: float
) -> Result:
    """Fills a new database with `users` users and measures each figure for about `seconds`."""
    app = App(settings)
    async with progress.during("migrating"):
        await app.database.migrate(lambda _: None)
    await app.database.open()
    try:
        async with app.database.connections.dedicated(PATIENT) as connection:
            board = Board(app, connection, users, progress)
            measuring = _Measuring(board, progress, seconds)
            load_s = await board.fill()
            build_s = await board.build()
            before = await board.bytes()
            await board.check()
            reads = await measuring.reads()
            busy = await measuring.busy()
            writes = await measuring.writes()
            after = await board.bytes()
            await board.check()
            sizes = Sizes(before["users"], before["rank_index"], after["rank_index"])
            steady = await measuring.steady(steady_s) if steady_s else []
            if steady:
                await board.check()
            postgres = await board.version()
    finally:
        await app.database.close()
    return Result(users, postgres, load_s, build_s, sizes, reads, busy, writes, steady)


class _Measuring:
    """Measures the figures of one board."""

    def __init__(self, board: Board, progress: Progress, seconds: float) -> None:
        self._board = board
        self._progress = progress
        self._seconds = seconds

    async def reads(self) -> Reads:
        """Measures reads while nothing else is done."""
        rank: dict[int, Latency] = {}
        context: dict[int, Latency] = {}
        plain: dict[int, Latency] = {}
        for depth in DEPTHS:
            async with self._progress.during(f"ranks at {depth} %"):
                band = await self._board.band(depth)
                rank[depth] = await timed(self._ask_standing, band, self._seconds)
                context[depth] = await timed(self._ask_context, band, self._seconds)
                plain[depth] = await timed(self._board.plain_rank, band, self._seconds)
        async with self._progress.during(f"{TOGETHER} contexts together"):
            band = await self._board.band(50)
            batches = [[ContextQuery(i) for _, i in random.choices(band, k=TOGETHER)] for _ in range(100)]
            together = await timed(self._board.answers, batches, self._seconds)
        return Reads(rank, context, plain, together)

    async def busy(self) -> Busy:
        """Measures a context at half depth while scores are set."""
        async with self._progress.during(f"contexts at 50 % while {STEADY_RATE:,} scores a second are set"):
            band = await self._board.band(50)
            spared = {user_id for _, user_id in band}  # they are to stay at this depth
            async with self._kept():
                rate, context = await asyncio.gather(
                    self._set_scores(3 * self._seconds, STEADY_BATCH, STEADY_RATE, spared),
                    timed(self._ask_context, band, 3 * self._seconds),
                )
        return Busy(context, rate)

    async def writes(self) -> Writes:
        """How fast scores are set, in rounds without and with the index."""
        async with self._progress.during("setting scores, to warm up"):
            await self._set_scores(self._seconds / 2)
        rates_with, rates_without, builds_s = [], [], []
        self._board.ranks.turns.clear()
        for number in range(1, ROUNDS + 1):
            async with self._progress.during(f"setting scores without the index, round {number} of {ROUNDS}"):
                await self._board.ranks.discard()
                await self._board.checkpoint()
                rates_without.append(await self._set_scores(self._seconds))
            builds_s.append(await self._board.build())
            async with self._progress.during(f"setting scores with the index, round {number} of {ROUNDS}"):
                await self._board.checkpoint()
                async with self._kept():
                    rates_with.append(await self._set_scores(self._seconds))
        return Writes(rates_with, rates_without, builds_s, self._keeping())

    async def steady(self, seconds: float) -> list[Look]:
        """Sets scores for a long time and records what grows, while a service maintains its data."""
        looks: list[Look] = []
        band = await self._board.band(50)
        spared = {user_id for _, user_id in band}
        service = App(self._board.app.settings)
        async with service.running():
            started = time.monotonic()
            writing = asyncio.create_task(self._set_scores(seconds, STEADY_BATCH, STEADY_RATE, spared))
            try:
                while not writing.done():
                    context = await timed(self._ask_context, band, min(seconds, LOOK_EVERY_S), pause_s=0.05)
                    now, rows = await self._board.bytes(), await self._board.log_rows()
                    pending = service.metrics.registry.get_sample_value("leaderboard_rank_index_pending") or 0
                    at_s = time.monotonic() - started
                    looks.append(Look(at_s, rows, now["log"], now["rank_index"], int(pending), context))
                    self._progress.say(
                        f"{STEADY_RATE:,} scores/s set: {rows:,} log rows in {now['log']:,} bytes, rank index"
                        f" {now['rank_index']:,} bytes, {pending:,.0f} changes pending,"
                        f" context {context.p50_ms:.2f} ms"
                    )
                await writing
            finally:
                writing.cancel()
        return looks

    # Helpers

    async def _ask_standing(self, place: Place) -> None:
        await self._board.answers([StandingQuery(place[1])])

    async def _ask_context(self, place: Place) -> None:
        await self._board.answers([ContextQuery(place[1])])

    async def _set_scores(
        self, seconds: float, batch: int = BATCH, rate: float = math.inf, spared: Collection[int] = ()
    ) -> float:
        """Sets scores of random users on LANES connections, at `rate` at most; returns the rate reached."""
        started = time.perf_counter()

        async def lane() -> int:
            done = 0
            due = started
            while time.perf_counter() < started + seconds:
                ids = [i for i in random.sample(range(1, self._board.users + 1), batch) if i not in spared]
                written = await self._board.app.database.scores.set(
                    [NewScore(i, random.choice(self._board.scores)) for i in ids]
                )
                done += sum(isinstance(outcome, ScoreSet) for outcome in written.results)
                due = max(due + LANES * batch / rate, time.perf_counter())
                await asyncio.sleep(due - time.perf_counter())
            return done

        done = await asyncio.gather(*(lane() for _ in range(LANES)))
        return sum(done) / (time.perf_counter() - started)

    @asynccontextmanager
    async def _kept(self) -> AsyncIterator[None]:
        """Maintains the rank index meanwhile, as every process of a service does."""
        interval_s = self._board.app.settings.sync_interval_ms / 1000
        keeping = asyncio.create_task(RankIndexMaintainer(self._board.ranks, Metrics(), interval_s).run())
        try:
            yield
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    def _keeping(self) -> Keeping:
        folds = [taken for turn, taken in self._board.ranks.turns if turn.applied]
        found = [turn for turn, _ in self._board.ranks.turns]
        return Keeping(
            Latency.of(folds) if len(folds) > 1 else None,
            max((turn.pending for turn in found), default=0),
            sum(not turn.valid for turn in found),
        )
