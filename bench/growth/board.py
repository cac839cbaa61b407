"""The board that is measured: its users, and its rank index, which is compared with plain counts."""

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

import asyncpg

from bench.growth.result import DEPTHS
from bench.progress import Progress
from leaderboard.app import App
from leaderboard.database.connections import Connections
from leaderboard.database.rank_index import DEFAULT_SEASON, IndexState, RankIndex
from leaderboard.database.rows import one_row
from leaderboard.database.sql import named_queries
from leaderboard.model import Context, Standing
from leaderboard.queries import ContextQuery, StandingQuery
from leaderboard.tuning import RankIndexTuning

_CHUNK = 100_000
_CHECKED = 2
"""For so many users at each depth the rank is compared with a plain count."""

Place = tuple[int, int]
"""Score and id of a user."""


class WrongAnswer(Exception):
    """The rank index and a plain count differ."""


class WatchedIndex(RankIndex):
    """A rank index that records the result and the duration of each round of maintenance."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections, RankIndexTuning())
        self.turns: list[tuple[IndexState, float]] = []

    async def maintain(self, season_id: int = DEFAULT_SEASON) -> IndexState | None:
        started = time.perf_counter()
        tended = await super().maintain(season_id)
        if tended is not None:
            self.turns.append((tended, time.perf_counter() - started))
        return tended


class Board:
    """One board. It uses the service's stores, and its own connection for everything else."""

    def __init__(self, app: App, connection: asyncpg.Connection, users: int, progress: Progress) -> None:
        self.app = app
        self.users = users
        self.ranks = WatchedIndex(app.database.connections)
        self.scores: list[int] = []
        """A sample of the users' scores."""
        self._connection = connection
        self._progress = progress
        text = resources.files(__package__).joinpath("growth.sql").read_text("utf-8")
        self._sql = named_queries("growth.sql", text)

    async def fill(self) -> float:
        """Creates the users and returns the duration in seconds."""
        started = time.perf_counter()
        await self._connection.execute(self._sql["seed"])
        for first in range(1, self.users + 1, _CHUNK):
            last = min(first + _CHUNK - 1, self.users)
            async with self._progress.during(f"creating users, up to {last:,} of {self.users:,}"):
                await self._connection.execute(self._sql["add_users"], first, last)
        async with self._progress.during("vacuuming"):
            await self._connection.execute(self._sql["settle"])
            await self.checkpoint()
        self.scores = [row["total_score"] for row in await self._connection.fetch(self._sql["scores"])]
        return time.perf_counter() - started

    async def build(self) -> float:
        """Builds the rank index and returns the duration in seconds."""
        async with self._progress.during("building the rank index"):
            started = time.perf_counter()
            if not await self.ranks.build():
                raise RuntimeError("another process is building the rank index")
            return time.perf_counter() - started

    async def bytes(self) -> asyncpg.Record:
        """Returns the sizes of the tables in bytes."""
        return await self._one("bytes")

    async def version(self) -> str:
        """Returns the version of PostgreSQL."""
        return str((await self._one("version"))[0])

    async def check(self) -> None:
        """Compares ranks and totals with plain counts, while nothing is written. Raises WrongAnswer."""
        async with self._progress.during("comparing ranks with plain counts"):
            places = [place for depth in DEPTHS for place in (await self.band(depth))[:_CHECKED]]
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                total = (await self._one("plain_total"))[0]
                ranks = [await self.plain_rank(place) for place in places]
                standings = await self.answers([StandingQuery(user_id) for _, user_id in places])
                contexts = await self.answers([ContextQuery(user_id) for _, user_id in places])
            for place, rank, standing, context in zip(places, ranks, standings, contexts, strict=True):
                assert isinstance(standing, Standing)
                assert isinstance(context, Context)
                found = (standing.rank, context.user.rank, context.total)
                if found != (rank, rank, total):
                    raise WrongAnswer(f"user {place[1]}: {found} instead of rank {rank} of {total}")
            wrong = await self.ranks.recount_all()
            if wrong is None or wrong:
                raise WrongAnswer(f"the counts of the rank index are wrong: {wrong}")

    async def band(self, depth: int) -> list[Place]:
        """Returns some users at this depth, in random order."""
        width = max(100, self.users // 1000)
        before = self.users * depth // 100 - width // 2
        rows = await self._connection.fetch(self._sql["band"], max(0, before), width, 1000)
        return [(row["total_score"], row["user_id"]) for row in rows]

    async def answers(self, questions: Sequence[StandingQuery | ContextQuery]) -> list[Standing | Context | None]:
        """Returns what the rank index answers. Raises RuntimeError when it is invalid."""
        seen = await self.ranks.standings(questions, count=False)
        if seen is None:
            raise RuntimeError("the rank index is invalid")
        return seen.value

    async def plain_rank(self, place: Place) -> int:
        """Returns the rank of a user by counting all users above."""
        return int((await self._one("plain_rank", *place))[0])

    async def log_rows(self) -> int:
        """Returns the number of rows of the change log."""
        return int((await self._one("log_rows"))[0])

    async def checkpoint(self) -> None:
        """Has everything written to disk."""
        await self._connection.execute(self._sql["checkpoint"])

    async def _one(self, query: str, *arguments: Any) -> asyncpg.Record:
        return await one_row(self._connection, self._sql[query], *arguments)
