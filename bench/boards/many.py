"""Measures many boards of a thousand entries beside the board `default`, over HTTP."""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import processes, wrk
from bench.boards.fill import connected, filled_with_users, prune
from bench.boards.places import board_path, lines, places, user_ids
from bench.boards.plan import IDLE, MEMORY, SPREAD, WARM, Plan
from bench.boards.result import DEFAULT, Idle, Many, Memory
from bench.hot.measure import check
from bench.hot.result import Cell, Shot
from bench.hot.watch import Watcher
from bench.hot.work import CONTEXT_BEST, HALF_READS, MANY, SET_SCORE, TOP_10, Work
from bench.progress import Progress
from bench.service import beside, metrics, pid, running
from bench.usage import Meter, Used
from leaderboard.config import Settings
from leaderboard.model import User
from tests.system import ApiProcess, redis, sql, until

WORKS = (TOP_10, CONTEXT_BEST, SET_SCORE)
"""Reads come first, because writes make the tables larger."""
_OWN_SCORE = 1_000_000
_PLACES = 100_000
"""How many places a file has, from which each request takes one at random."""
_WARM_UP_S = 5.0
"""How long boards are read before idling is measured: the cache loads those that are read often."""
_SETTLE_S = 2.0
"""When no board was loaded for so long, the cache is idle."""
_PAUSE_S = 0.2
"""After a load, for the requests that wrk did not wait for."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How requests are spread: over how many boards, by Zipf's law or evenly.

    Without boards all requests are about `default`.
    """

    name: str
    boards: int = 0
    zipf: bool = False


def spreads(plan: Plan) -> Sequence[Spread]:
    """Returns the spreads to measure. The first is `default`."""
    found = [Spread(DEFAULT)]
    if SPREAD in plan.parts:
        found += [Spread(spread_name(boards), boards, zipf=True) for boards in plan.boards]
    if WARM in plan.parts:
        found.append(Spread(warm_name(plan), plan.warm))
    return found if len(found) > 1 else []


def spread_name(boards: int) -> str:
    """Returns the name of a spread by Zipf's law."""
    return "1 board" if boards == 1 else f"{boards:,} boards by Zipf"


def warm_name(plan: Plan) -> str:
    """Returns the name of the even spread over boards that are read all the time."""
    return f"one of {plan.warm:,} warm boards"


async def measure_many(settings: Settings, plan: Plan, progress: Progress) -> Many:
    """Fills an empty database and measures. Raises WrongAnswer."""
    one = beside(settings, 1) if IDLE in plan.parts else None
    async with filled_with_users(settings, plan.users, progress) as (board, filler):
        await board.build()
        await filler.add_boards(1, 1, plan.entries, plan.users)
    await prune(settings, progress)
    if one:
        progress.say("copying the database with one board")
        sql(
            settings.model_copy(update={"db_name": "postgres"}),
            f"CREATE DATABASE {one.db_name} TEMPLATE {settings.db_name}",
        )
    async with connected(settings, progress) as filler:
        await filler.add_boards(2, plan.most_boards, plan.entries, plan.users)
        await filler.settle()
    await prune(settings, progress)
    with tempfile.TemporaryDirectory() as folder:
        measuring = _Measuring(settings, plan, Path(folder), progress, await Meter.of(settings))
        idle = await measuring.idle(one) if one else None
        cells = await measuring.cells()
        memory = await measuring.memory() if MEMORY in plan.parts else None
    return Many(cells, measuring.cached, idle, memory)


class _Measuring:
    """Measures boards that were created."""

    def __init__(self, settings: Settings, plan: Plan, folder: Path, progress: Progress, meter: Meter) -> None:
        self._settings = settings
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._meter = meter
        self.cached: dict[str, int] = {}
        """How many boards were in the cache after the last load of each spread."""

    async def idle(self, one: Settings) -> Idle:
        """Measures what a service uses without requests, beside one on a database with one board."""
        boards = self._plan.most_boards
        of_one, _ = await self._idle(one, 1)
        of_many, cached = await self._idle(self._settings, boards)
        return Idle(boards, cached, of_one, of_many)

    async def _idle(self, settings: Settings, boards: int) -> tuple[Used, int]:
        """Returns what was used, and how many boards were in the cache."""
        redis(settings).flushall()
        with self._service(settings) as api:
            # So that boards are in the cache, as in a service that has answered for a while.
            await self._load(api, Spread("", boards, zipf=True), TOP_10, _WARM_UP_S, 0)
            async with self._progress.during("waiting until no boards are loaded"):
                await until(lambda: loads_nothing(settings), "no boards are loaded")
            async with self._progress.during(f"no requests, {boards:,} boards"):
                before = self._meter.read(pid(api))
                await asyncio.sleep(self._plan.idle_s)
                return self._meter.read(pid(api)).since(before), _cached(api)

    async def cells(self) -> list[Cell]:
        """Measures each kind of work for each spread, in rounds."""
        found = [Cell(spread.name, work.name, MANY, []) for work in WORKS for spread in spreads(self._plan)]
        if not found:
            return []
        by_name = {spread.name: spread for spread in spreads(self._plan)}
        works = {work.name: work for work in WORKS}
        redis(self._settings).flushall()
        with self._service(self._settings) as api:
            own = msgspec.json.decode(api.create("watched", _OWN_SCORE).content, type=User)
            for spread in by_name.values():
                self._progress.say(f"warming up: {spread.name}")
                for work in WORKS:
                    await self._load(api, spread, work, self._plan.seconds, 0)
            for number in range(1, self._plan.rounds + 1):
                async with connected(self._settings, self._progress) as filler:
                    await filler.settle()
                for cell in found:
                    shot = await self._shot(
                        api, own, by_name[cell.contestant], works[cell.work], self._plan.seconds, number
                    )
                    check(cell, shot.load)
                    cell.shots.append(shot)
                    self.cached[cell.contestant] = _cached(api)
                    self._progress.say(
                        f"round {number} of {self._plan.rounds}: {cell.work}, {cell.contestant}:"
                        f" {shot.rate:,.0f}/s"
                    )
        return found

    async def memory(self) -> Memory:
        """Measures a process after many boards were in use."""
        boards = self._plan.in_use
        redis(self._settings).flushall()
        with self._service(self._settings) as api:
            before = metrics(api)
            async with self._progress.during(f"{boards:,} boards in use"):
                load = await self._load(api, Spread("", boards), HALF_READS, 5 * self._plan.seconds, 1)
            after = metrics(api)
            check(Cell(f"{boards:,} boards", HALF_READS.name, MANY, []), load)
            waited = after["leaderboard_visible_seconds_sum"] - before["leaderboard_visible_seconds_sum"]
            times = after["leaderboard_visible_seconds_count"] - before["leaderboard_visible_seconds_count"]
            return Memory(
                boards,
                _cached(api),
                processes.largest_bytes(pid(api)),
                int(redis(self._settings).info("memory")["used_memory"]),
                load.requests / load.seconds,
                waited / times * 1000 if times else None,
            )

    # Helpers

    @contextmanager
    def _service(self, settings: Settings) -> Iterator[ApiProcess]:
        self._progress.say("starting a service")
        with running(ApiProcess(settings)) as api:
            yield api

    async def _shot(
        self, api: ApiProcess, own: User, spread: Spread, work: Work, seconds: float, number: int
    ) -> Shot:
        board, ids = "", await self._best()
        if spread.boards:
            board, ids = board_path(1), user_ids(1, self._plan.entries, self._plan.users)
        with Watcher(api.url, work, ids, own, f"{number}-", board) as watcher:
            before = self._meter.read(pid(api))
            load = await self._load(api, spread, work, seconds, number)
            used = self._meter.read(pid(api)).since(before)
            watcher.close()
        await asyncio.sleep(_PAUSE_S)
        return Shot(load, used, watcher.looks)

    async def _load(self, api: ApiProcess, spread: Spread, work: Work, seconds: float, seed: int) -> wrk.Load:
        environment: dict[str, object] = {"writes": work.writes, "users": self._plan.users, "seed": seed}
        if work.top:
            environment["top"] = work.top
        if spread.boards:
            environment["places"] = self._places(spread)
        elif work.of:
            ids = self._folder / "ids"
            ids.write_text("\n".join(map(str, await self._best())))
            environment["ids"] = ids
        return await wrk.run(api.url, MANY, seconds, **environment)

    def _places(self, spread: Spread) -> Path:
        file = self._folder / f"places-{spread.boards}-{spread.zipf}"
        if not file.exists():
            plan = self._plan
            found = places(
                spread.boards, plan.entries, plan.users, zipf=spread.zipf, seed=spread.boards, count=_PLACES
            )
            file.write_text(lines(found))
        return file

    async def _best(self) -> list[int]:
        async with connected(self._settings, self._progress) as filler:
            return await filler.column("best")


def _cached(api: ApiProcess) -> int:
    """Returns how many boards are in the cache, besides `default`."""
    return int(metrics(api).get("leaderboard_cached_seasons", 0))


async def loads_nothing(settings: Settings) -> bool:
    """Returns whether no user was added to any board in the cache for `_SETTLE_S`."""
    before = _added(settings)
    await asyncio.sleep(_SETTLE_S)
    return _added(settings) == before


def _added(settings: Settings) -> int:
    commands = redis(settings).info("commandstats")
    return int(commands["cmdstat_zadd"]["calls"]) if "cmdstat_zadd" in commands else 0
