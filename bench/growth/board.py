"""The board that is measured: its users, its rank index, and whether that says what counting everybody says."""

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

import asyncpg

from bench.growth.result import DEPTHS
from bench.progress import Progress
from leaderboard.app import App
from leaderboard.database.connections import Connections
from leaderboard.database.rank_index import IndexState, RankIndex
from leaderboard.database.rows import one_row
from leaderboard.database.sql import named_queries
from leaderboard.model import Context, Standing
from leaderboard.queries import ContextQuery, StandingQuery
from leaderboard.tuning import RankIndexTuning

_CHUNK = 100_000
_CHECKED = 2
"""Of so many users at each depth the rank is held against the plain count."""

Place = tuple[int, int]
"""Score and id of a user."""


class WrongAnswer(Exception):
    """The rank index said something else than the plain count."""


class WatchedIndex(RankIndex):
    """A rank index that remembers what each turn of keeping it found, and how long that took."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections, RankIndexTuning())
        self.turns: list[tuple[IndexState, float]] = []

    async def maintain(self) -> IndexState | None:
        started = time.perf_counter()
        tended = await super().maintain()
        if tended is not None:
            self.turns.append((tended, time.perf_counter() - started))
        return tended


class Board:
    """One board, through the stores, and through a connection of its own for what the stores do not do."""

    def __init__(self, app: App, connection: asyncpg.Connection, users: int, progress: Progress) -> None:
        self.app = app
        self.users = users
        self.ranks = WatchedIndex(app.database.connections)
        self.scores: list[int] = []
        """Some, such as the users have."""
        self._connection = connection
        self._progress = progress
        text = resources.files(__package__).joinpath("growth.sql").read_text("utf-8")
        self._sql = named_queries("growth.sql", text)

    async def fill(self) -> float:
        """Create the users; how long that took."""
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
        """Build the rank index; how long that took."""
        async with self._progress.during("building the rank index"):
            started = time.perf_counter()
            if not await self.ranks.build():
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
                raise WrongAnswer(f"counted otherwise than the rank index says: {wrong}")

    async def band(self, depth: int) -> list[Place]:
        """Some users at this depth, in no order."""
        width = max(100, self.users // 1000)
        before = self.users * depth // 100 - width // 2
        rows = await self._connection.fetch(self._sql["band"], max(0, before), width, 1000)
        return [(row["total_score"], row["user_id"]) for row in rows]

    async def answers(self, questions: Sequence[StandingQuery | ContextQuery]) -> list[Standing | Context | None]:
        """What the rank index says. Raises RuntimeError when it cannot be used."""
        seen = await self.ranks.standings(questions, count=False)
        if seen is None:
            raise RuntimeError("the rank index cannot be used")
        return seen.value

    async def plain_rank(self, place: Place) -> int:
        """The rank of a user by counting everybody better."""
        return int((await self._one("plain_rank", *place))[0])

    async def log_rows(self) -> int:
        """How many rows the change log has."""
        return int((await self._one("log_rows"))[0])

    async def checkpoint(self) -> None:
        """Have everything written to disk."""
        await self._connection.execute(self._sql["checkpoint"])

    async def _one(self, query: str, *arguments: Any) -> asyncpg.Record:
        return await one_row(self._connection, self._sql[query], *arguments)
