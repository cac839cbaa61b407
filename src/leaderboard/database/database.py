"""PostgreSQL as one object: its tables as attributes, and what is about the server as a whole."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from leaderboard.database import schema, username_mode
from leaderboard.database.boards import Board, Boards
from leaderboard.database.change_log import ChangeLog
from leaderboard.database.connections import Connections
from leaderboard.database.connector import APPLICATION_NAME
from leaderboard.database.entries import Entries
from leaderboard.database.exporter import Exporter
from leaderboard.database.idempotency_keys import IdempotencyKeys
from leaderboard.database.importer import EntryImporter, Importer
from leaderboard.database.rank_index import RankIndex
from leaderboard.database.rows import one_row, position_of
from leaderboard.database.scores import Scores
from leaderboard.database.sql import load_queries
from leaderboard.database.users import Users
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.queries import SeasonRef
from leaderboard.snapshot import SnapshotPosition
from leaderboard.tuning import Tuning
from leaderboard.usernames import Usernames, key_function

MAX_LOG_ROWS = 1_000_000
"""A summary counts no more rows of the change log."""


@dataclass(frozen=True, slots=True)
class ServerSummary:
    """What PostgreSQL says about itself and the processes that use it.

    `connections`: how many of all processes are open, except this one's. `log_rows` are those of the change log,
    up to MAX_LOG_ROWS. `index_valid` and `index_pending`, the log rows that were not applied, are those of the
    rank index of the board `default`.
    """

    read_only: bool
    connections: int
    log_rows: int
    index_valid: bool
    index_pending: int


class Database:
    """The source of truth.

    Each method of it and of its attributes is one statement or one transaction.
    """

    def __init__(self, connections: Connections, tuning: Tuning, usernames: Usernames = "exact") -> None:
        """`usernames` says how names are compared, which the database has to agree with."""
        self.connections = connections
        self._sql = load_queries("server")
        self._usernames = usernames
        key_of = key_function(usernames)
        self.users = Users(connections, tuning, key_of)
        self.scores = Scores(connections, tuning.writes)
        self.boards = Boards(connections, tuning.writes)
        self.entries = Entries(connections, tuning.writes, key_of)
        self.idempotency_keys = IdempotencyKeys(connections)
        self.change_log = ChangeLog(connections, tuning.ranks)
        self.rank_index = RankIndex(connections, tuning.ranks)

    async def open(self) -> None:
        """Prepare the connections; connects only when first used."""
        await self.connections.open()

    async def close(self) -> None:
        """Close the connections, by force after a second."""
        await self.connections.close()

    async def now(self) -> SnapshotPosition:
        """Return the present snapshot."""
        async with self.connections.acquire() as connection:
            return position_of(await one_row(connection, self._sql["now"]))

    async def check_writable(self) -> None:
        """Raise DatabaseReadOnly if the server takes no writes."""
        async with self.connections.acquire() as connection:
            if await connection.fetchval(self._sql["read_only"]):
                raise DatabaseReadOnly("PostgreSQL takes no writes: its transactions are read-only")

    async def summary(self) -> ServerSummary:
        """Return what operators look at."""
        async with self.connections.acquire() as connection:
            row = await one_row(
                connection, self._sql["summary"], MAX_LOG_ROWS, self.rank_index.max_pending, APPLICATION_NAME
            )
        return ServerSummary(**row)

    async def migrate(self, report: Callable[[str], None]) -> int:
        """Bring the schema up to date; see `schema.migrate`. A database without users takes over USERNAMES.

        Raises UsernamesDiffer, before anything is changed, if the database has users and compares their names in
        another way.
        """
        async with self.connections.dedicated() as connection, self.connections.dedicated() as lock:
            await username_mode.check_before_migration(connection, self._usernames)
            steps = await schema.migrate(connection, lock, report)
            await username_mode.adopt(connection, self._usernames)
            return steps

    async def check_schema(self) -> int:
        """Return how many connections the server allows to clients that are not superusers.

        Raises SchemaOutdated if the database lacks a migration of this program, and UsernamesDiffer if it compares
        usernames in another way.
        """
        async with self.connections.dedicated(isolation="READ COMMITTED") as connection:
            await schema.check(connection)
            await username_mode.check(connection, self._usernames)
            allowed: int = await connection.fetchval(self._sql["connections_allowed"])
        return allowed

    @asynccontextmanager
    async def importing(self, board: Board | None = None) -> AsyncIterator[Importer]:
        """Lend an importer to a board, None for `default`, with its own connection.

        Raises DatabaseUnavailable behind a pooler.
        """
        async with self.connections.dedicated({"statement_timeout": "0"}) as connection:
            if self.connections.behind_pooler:
                raise DatabaseUnavailable(
                    "an import needs a session, and this is a pooler; point DB_HOST and DB_PORT at PostgreSQL"
                )
            key_of = key_function(self._usernames)
            yield Importer(connection, key_of) if board is None else EntryImporter(connection, board, key_of)

    @asynccontextmanager
    async def changing_usernames(self) -> AsyncIterator[username_mode.UsernameSwitch]:
        """Lend a switch between the ways of comparing usernames, with its own connection.

        Raises SchemaOutdated, and DatabaseUnavailable behind a pooler.
        """
        async with self.connections.dedicated({"statement_timeout": "0"}) as connection:
            if self.connections.behind_pooler:
                raise DatabaseUnavailable(
                    "this needs a session, and this is a pooler; point DB_HOST and DB_PORT at PostgreSQL"
                )
            await schema.check(connection)
            yield username_mode.UsernameSwitch(connection)

    @asynccontextmanager
    async def exporting(self, season: SeasonRef | None = None) -> AsyncIterator[Exporter]:
        """Lend an exporter of a season, None for `default`, at one snapshot and with its own connection.

        Raises BoardNotFound and SeasonNotFound.
        """
        settings = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
        async with self.connections.dedicated(settings, isolation="REPEATABLE READ, READ ONLY") as connection:
            yield await Exporter.of(connection, season)
