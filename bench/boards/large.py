"""Measures boards of very different sizes: ending a season, and a context at half depth."""

import time

from bench.boards.fill import Filler, filled_with_users
from bench.boards.plan import DEPTH, ENDS, Plan
from bench.boards.result import Depth, Ends, Large
from bench.growth.board import Board, WrongAnswer
from bench.latency import Latency, timed
from bench.progress import Progress
from bench.service import running
from leaderboard.config import Settings
from leaderboard.model import Context
from leaderboard.queries import ContextQuery, SeasonRef
from tests.system import ApiProcess

LARGE, SMALL, FEW = "large", "small", "few"
"""The names of the boards."""
_TIMES = 10
"""How often the season of each board is ended."""
_CHECKED = 2
"""For so many users of a board the rank is compared with a plain count."""
_BAND = 1000
"""At least so many users are around the half of a board."""


async def measure_large(settings: Settings, plan: Plan, progress: Progress) -> Large:
    """Fills an empty database and measures. Raises WrongAnswer."""
    sizes = {LARGE: plan.large}
    if DEPTH in plan.parts:
        sizes[SMALL] = plan.small
    if ENDS in plan.parts:
        sizes[FEW] = plan.few
    async with filled_with_users(settings, plan.large, progress) as (board, filler):
        seasons = {name: await filler.add_large_board(name, size) for name, size in sizes.items()}
        await filler.settle()
        for name, season_id in seasons.items():
            async with progress.during(f"building the rank index of {name}"):
                await board.ranks.build(season_id)
        measuring = _Measuring(board, filler, progress, plan, seasons)
        depth = None
        if DEPTH in plan.parts:
            depth = Depth(await measuring.depth(LARGE, plan.large), await measuring.depth(SMALL, plan.small))
        ends = await measuring.ends(settings) if ENDS in plan.parts else None
    return Large(ends, depth)


class _Measuring:
    """Measures boards that were created."""

    def __init__(
        self, board: Board, filler: Filler, progress: Progress, plan: Plan, seasons: dict[str, int]
    ) -> None:
        self._board = board
        self._filler = filler
        self._progress = progress
        self._plan = plan
        self._seasons = seasons

    async def depth(self, name: str, entries: int) -> Latency:
        """Measures contexts at half depth while nothing else is done."""
        season_id, season = self._seasons[name], SeasonRef(name)

        async def ask(user_id: int) -> Context:
            (context,) = await self._board.answers([ContextQuery(user_id, season=season)])
            assert isinstance(context, Context)
            return context

        async with self._progress.during(f"contexts at half depth of {name}"):
            width = min(max(_BAND, entries // 1000), entries)
            users = await self._filler.column("half", season_id, (entries - width) // 2, width, _BAND)
            for user_id in users[:_CHECKED]:
                rank, context = await self._filler.value("plain_rank", season_id, user_id), await ask(user_id)
                if (context.user.rank, context.total) != (rank, entries):
                    raise WrongAnswer(f"{name}, user {user_id}: {context} instead of rank {rank} of {entries}")
            return await timed(ask, users, 2 * self._plan.seconds)

    async def ends(self, settings: Settings) -> Ends:
        """Measures how long it takes to end a season, of the large board and of the one with few entries."""
        taken: dict[str, list[float]] = {FEW: [], LARGE: []}
        with running(ApiProcess(settings)) as api:
            async with self._progress.during("ending seasons"):
                for name in taken:  # to warm up
                    await self._end(api, name)
                for _ in range(_TIMES):
                    for name, seconds in taken.items():
                        seconds.append(await self._end(api, name))
        return Ends(taken[LARGE], taken[FEW])

    async def _end(self, api: ApiProcess, name: str) -> float:
        """Ends the first season of a board, then takes that back; returns how long the end took, in seconds."""
        started = time.perf_counter()
        response = api.client.post(f"/boards/{name}/seasons", json={"season": 1})
        seconds = time.perf_counter() - started
        if response.status_code != 200:
            raise WrongAnswer(f"ending a season of {name}: {response.status_code} {response.text[:200]}")
        await self._filler.execute("reopen", name, self._seasons[name])
        return seconds
