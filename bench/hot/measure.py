"""Measures the contestants in rounds, one after the other at each kind of work.

So a machine that is slower for a while is slower for all of them.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median

import asyncpg

from bench import processes, wrk
from bench.growth.board import Board
from bench.hot import raw
from bench.hot.contestants import Contestant, boards, contestants
from bench.hot.result import NULL, OURS, PLAIN, TWO, Cell, Facts, Raw, Result, Shot
from bench.hot.watch import Watcher, WrongAnswer
from bench.hot.work import MANY, WORKS, Work
from bench.progress import Progress
from bench.servers import PATIENT
from bench.service import metrics, running
from bench.usage import Meter
from bench.wrk import Load
from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.rows import one_row
from leaderboard.database.sql import named_queries
from tests.system import ApiProcess, connect, eventually, redis

_COLD_STARTS = 3
_WARM_UP_S = 0.3
_QUIET = 2
"""How many polls in a row must find no active statement before the next contestant begins."""
_QUIET_PAUSE_S = 0.02
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and for how long."""

    users: int
    rounds: int
    seconds: float
    contestants: Sequence[str] = (NULL, PLAIN, OURS, TWO)
    works: Sequence[Work] = WORKS
    only_many: bool = False
    """One number of connections for all kinds of work."""
    limits: bool = True
    """Whether to measure also the stores alone, and the memory and start of one process."""


async def measure(settings: Settings, plan: Plan, progress: Progress) -> Result:
    """Fills an empty database and measures. Raises WrongAnswer."""
    began = time.monotonic()
    postgres = await _fill(settings, plan.users, progress)
    progress.say("copying the board")
    found = boards(settings, plan.contestants)
    for name in (OURS, TWO):
        if name in found:
            await _build(found[name], plan.users, progress)
    facts = None
    if plan.limits:
        progress.say("starting on an empty Redis")
        facts = [_cold_start(settings, plan.users) for _ in range(_COLD_STARTS)]
    progress.say("starting the contestants")
    with contestants(found) as rivals, tempfile.TemporaryDirectory() as folder:
        connection = await connect(settings)
        try:
            arena = _Arena(connection, rivals, plan, Path(folder), progress, await Meter.of(settings))
            cells, limits = await arena.measure()
        finally:
            await connection.close()
        api_bytes = max(processes.largest_bytes(rival.pid) for rival in rivals if rival.name == OURS)
    took_s = time.monotonic() - began
    return Result(
        plan.users,
        postgres,
        plan.rounds,
        plan.seconds,
        took_s,
        cells,
        limits if plan.limits else None,
        _typical(facts, api_bytes) if facts else None,
    )


class _Arena:
    """Measures started contestants."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        rivals: Sequence[Contestant],
        plan: Plan,
        folder: Path,
        progress: Progress,
        meter: Meter,
    ) -> None:
        self._connection = connection
        self._meter = meter
        self._rivals = {rival.name: rival for rival in rivals}
        self._plan = plan
        self._ids = folder / "ids"
        self._progress = progress
        text = resources.files(__package__).joinpath("hot.sql").read_text("utf-8")
        self._sql = named_queries("hot.sql", text)

    async def measure(self) -> tuple[list[Cell], Raw]:
        """Measures all of the plan."""
        cells, limits = self._cells(), Raw([], [])
        for cell in cells:
            if cell.connections == MANY:
                await self._shot(cell, _WARM_UP_S, 0)
        for number in range(1, self._plan.rounds + 1):
            await self._settle()
            for cell in cells:
                shot = await self._shot(cell, self._plan.seconds, number)
                cell.shots.append(shot)
                self._progress.say(
                    f"round {number} of {self._plan.rounds}: {cell.work}, {cell.connections} connections,"
                    f" {cell.contestant}: {shot.rate:,.0f}/s"
                )
            if self._plan.limits:
                await self._limits(limits)
        return cells, limits

    def _cells(self) -> list[Cell]:
        return [
            Cell(name, work.name, connections, [])
            for work in self._plan.works
            for connections in ((MANY,) if self._plan.only_many else work.connections)
            for name in self._plan.contestants
            # How two processes share few connections is random.
            if name != TWO or connections >= MANY
        ]

    async def _shot(self, cell: Cell, seconds: float, number: int) -> Shot:
        rival = self._rivals[cell.contestant]
        work = next(work for work in self._plan.works if work.name == cell.work)
        settings = rival.api.settings
        ids = [row[0] for row in await self._asked_in(settings, "best")]
        name = f"{cell.connections}-{number}-"
        environment: dict[str, object] = {"writes": work.writes, "users": self._plan.users, "seed": number}
        if work.top:
            environment["top"] = work.top
        if work.of == "best":
            self._ids.write_text("\n".join(map(str, ids)))
            environment["ids"] = self._ids
        elif work.of == "all":
            ids = random.choices(range(1, self._plan.users + 1), k=1000)
        if work.creates:
            environment["names"] = name
        with Watcher(rival.api.url, work, ids, rival.own, name) as watcher:
            before = self._meter.read(rival.pid)
            load = await wrk.run(rival.api.url, cell.connections, seconds, **environment)
            used = self._meter.read(rival.pid).since(before)
            watcher.close()
            await self._until_quiet(rival)
        check(cell, load)
        return Shot(load, used, watcher.looks)

    async def _settle(self) -> None:
        """Finishes the work that earlier writes left behind: vacuum and checkpoint."""
        for settings in {
            rival.api.settings.db_name: rival.api.settings for rival in self._rivals.values()
        }.values():
            await self._asked_in(settings, "settle")
        await self._connection.execute(self._sql["checkpoint"])

    async def _limits(self, limits: Raw) -> None:
        settings = self._rivals[PLAIN].api.settings
        seconds = self._plan.seconds
        statement = self._sql["set_scores"]
        limits.rows.append(await asyncio.to_thread(raw.rows, settings, statement, self._plan.users, seconds))
        limits.calls.append(await asyncio.to_thread(raw.calls, settings, seconds))
        self._progress.say(f"the stores alone: {limits.rows[-1]:,.0f} rows/s, {limits.calls[-1]:,.0f} calls/s")

    async def _asked_in(self, settings: Settings, query: str) -> list[asyncpg.Record]:
        connection = await connect(settings)
        try:
            return await connection.fetch(self._sql[query])
        finally:
            await connection.close()

    async def _until_quiet(self, rival: Contestant) -> None:
        """Waits until no statement of this contestant runs, so that the next one is not slowed down."""
        database = rival.api.settings.db_name
        # Statements of plain take seconds, so they are ended. Ours also has background work, which is not.
        active = self._sql["end_active" if rival.name == PLAIN else "active"]
        quiet, deadline = 0, time.monotonic() + _PATIENCE_S
        while quiet < _QUIET:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{rival.name} still has active statements after {_PATIENCE_S} s")
            quiet = 0 if (await one_row(self._connection, active, database))[0] else quiet + 1
            await asyncio.sleep(_QUIET_PAUSE_S)


def check(cell: Cell, load: Load) -> None:
    """Raises WrongAnswer if a request was refused or not answered. No requests at all is allowed."""
    if load.refused or load.broken or load.late:
        raise WrongAnswer(f"{cell.contestant}, {cell.work}, {cell.connections} connections: {load}")


async def _fill(settings: Settings, users: int, progress: Progress) -> str:
    """Creates the users and returns the version of PostgreSQL."""
    app = App(settings)
    async with progress.during("migrating"):
        await app.database.migrate(lambda _: None)
    await app.database.open()
    try:
        async with app.database.connections.dedicated(PATIENT) as connection:
            board = Board(app, connection, users, progress)
            await board.fill()
            return await board.version()
    finally:
        await app.database.close()


async def _build(settings: Settings, users: int, progress: Progress) -> None:
    """Builds the rank index, because a service has one except at its first start."""
    app = App(settings)
    await app.database.open()
    try:
        async with app.database.connections.dedicated(PATIENT) as connection:
            await Board(app, connection, users, progress).build()
    finally:
        await app.database.close()


@dataclass(frozen=True, slots=True)
class _ColdStart:
    seconds: float
    rebuild_s: float
    redis_bytes: int


def _cold_start(settings: Settings, users: int) -> _ColdStart:
    """Starts one process on an empty Redis, waits until the cache is full, and ends the process."""
    redis(settings).flushall()
    began = time.perf_counter()
    with running(ApiProcess(settings)) as api:
        full = min(users, settings.cache_size)
        eventually(
            lambda: metrics(api).get("leaderboard_cached_users", 0) >= full, _PATIENCE_S, "the cache is full"
        )
        seconds = time.perf_counter() - began
        found = metrics(api)
        rebuild_s = found["leaderboard_rebuild_seconds_sum"] / found["leaderboard_rebuild_seconds_count"]
        return _ColdStart(seconds, rebuild_s, redis(settings).info("memory")["used_memory"])


def _typical(starts: Sequence[_ColdStart], api_bytes: int) -> Facts:
    return Facts(
        median(start.seconds for start in starts),
        median(start.rebuild_s for start in starts),
        int(median(start.redis_bytes for start in starts)),
        api_bytes,
    )
