"""Creates boards and their entries by SQL, many at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import asyncpg

from bench.growth.board import Board
from bench.progress import Progress
from bench.servers import PATIENT
from leaderboard.app import App
from leaderboard.board_rules import BoardRules, key_rules, to_json
from leaderboard.config import Settings
from leaderboard.database.rows import one_row
from leaderboard.database.sql import named_queries
from leaderboard.tuning import LogTuning
from tests.system import connect, until

_CHUNK = 100_000
"""How many entries one statement creates, about."""


class Filler:
    """Creates boards over a connection of its own, whose statements may take long."""

    def __init__(self, connection: asyncpg.Connection, progress: Progress) -> None:
        self._connection = connection
        self._progress = progress
        text = resources.files(__package__).joinpath("boards.sql").read_text("utf-8")
        self._sql = named_queries("boards.sql", text)
        rules = BoardRules()
        keys = key_rules(rules)
        self._rules = (to_json(rules), rules.keeps, keys.tie_bits, keys.lowest, keys.highest)

    async def add_boards(self, first: int, last: int, entries: int, users: int) -> None:
        """Creates the boards from number `first` to `last`, with `entries` of the `users` on each."""
        step = max(1, _CHUNK // entries)
        for start in range(first, last + 1, step):
            end = min(start + step - 1, last)
            async with self._progress.during(f"creating boards of {entries:,} entries, up to {end:,} of {last:,}"):
                await self._connection.execute(self._sql["add_boards"], start, end, *self._rules)
                async with self._connection.transaction():
                    await self._connection.execute(self._sql["trust"])
                    await self._connection.execute(self._sql["stop_log"])
                    await self._connection.execute(self._sql["add_entries"], start, end, entries, users)
                    await self._connection.execute(self._sql["add_barriers"], start, end)
                    await self._connection.execute(self._sql["resume_log"])

    async def add_large_board(self, name: str, entries: int) -> int:
        """Creates a board that the first `entries` users are on; returns its season."""
        await self._connection.execute(self._sql["add_board"], name, *self._rules)
        season_id: int = await self.value("season", name)
        for first in range(1, entries + 1, _CHUNK):
            last = min(first + _CHUNK - 1, entries)
            doing = f"filling {name}, up to {last:,} of {entries:,} entries"
            async with self._progress.during(doing), self._connection.transaction():
                await self._connection.execute(self._sql["trust"])
                await self._connection.execute(self._sql["enter_users"], season_id, first, last)
        return season_id

    async def settle(self) -> None:
        """Finishes the work that writes left behind: vacuum and checkpoint."""
        async with self._progress.during("vacuuming"):
            for statement in ("settle_users", "settle_scores", "settle_log", "checkpoint"):
                await self._connection.execute(self._sql[statement])

    async def execute(self, query: str, *arguments: Any) -> None:
        """Runs a statement of boards.sql."""
        await self._connection.execute(self._sql[query], *arguments)

    async def value(self, query: str, *arguments: Any) -> Any:
        """Returns the first column of the only row of a statement of boards.sql."""
        return (await one_row(self._connection, self._sql[query], *arguments))[0]

    async def column(self, query: str, *arguments: Any) -> list[Any]:
        """Returns the first column of all rows of a statement of boards.sql."""
        return [row[0] for row in await self._connection.fetch(self._sql[query], *arguments)]


@asynccontextmanager
async def connected(settings: Settings, progress: Progress) -> AsyncIterator[Filler]:
    """Connects to the database of these settings."""
    connection = await connect(settings)
    try:
        yield Filler(connection, progress)
    finally:
        await connection.close()


@asynccontextmanager
async def filled_with_users(
    settings: Settings, users: int, progress: Progress
) -> AsyncIterator[tuple[Board, Filler]]:
    """Migrates an empty database, creates the users, and lends a connection for more."""
    app = App(settings)
    async with progress.during("migrating"):
        await app.database.migrate(lambda _: None)
    await app.database.open()
    try:
        async with app.database.connections.dedicated(PATIENT) as connection:
            board = Board(app, connection, users, progress)
            await board.fill()
            yield board, Filler(connection, progress)
    finally:
        await app.database.close()


async def prune(settings: Settings, progress: Progress) -> None:
    """Prunes the change log of what was created, as a service does after some seconds."""
    database = App(settings).database
    await database.open()
    try:
        async with progress.during("pruning the change log"), connected(settings, progress) as filler:

            async def pruned() -> bool:
                await database.change_log.prune(LogTuning(keep_s=0))
                return bool(await filler.value("pruned"))

            await until(pruned, "the change log is pruned")
    finally:
        await database.close()
