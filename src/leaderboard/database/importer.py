"""Imports many rows on one connection: first into a temporary table, then from there into a board.

The first step finds every error of the input before anything is written. The second works in chunks, one
transaction each, so that neither locks nor the change log grow with the file.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import asyncpg

from leaderboard.board_rules import BoardRules, key_rules
from leaderboard.database.boards import Board
from leaderboard.database.sql import load_queries
from leaderboard.errors import InvalidInput
from leaderboard.usernames import KeyOf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Row = tuple[int, str, int, str | None] | tuple[int, str, int, str | None, str | None]
"""Line number, user_name, value, image_url, and the external id. Rows may lack the last one.

The value is the score; on boards, the one of which more is better.
"""
_COLUMNS = ("line", "user_name", "value", "image_url", "external_id")

CHUNK = 10_000
"""Rows that one statement writes. Above 20,000 the change log would write a barrier."""
_TRIES = 5
_LAST_LINE = 2**63 - 1
_NAMED = 5


class OnConflict(StrEnum):
    """What to do with a row whose user is on the board already."""

    SKIP = "skip"
    UPDATE = "update"
    """Give the user the row's score, unless the board keeps the best and has a better one.

    If the input has images, users who exist get the row's image, or none.
    """
    FAIL = "fail"
    """Write no row at all."""


class NamesTaken(InvalidInput):
    """Users are on the board, and `OnConflict.FAIL` was given.

    `lines` has the first few of them by line, `in_all` says how many there are.
    """

    def __init__(self, lines: dict[int, str], in_all: int, are: str) -> None:
        named = ", ".join(f"{name!r} (line {line})" for line, name in lines.items())
        more = f" and {in_all - len(lines)} more" if in_all > len(lines) else ""
        super().__init__(f"nothing was imported, because these users {are}: {named}{more}")
        self.lines = lines
        self.in_all = in_all


class BoardChanged(InvalidInput):
    """The season or the rules by which the input was read are not the board's current ones any more."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A row that is not imported, because line `first_line` of the input has its username or external id.

    `same` is which of the two. Without `first_line`, another user has the username.
    """

    row: Row
    first_line: int | None
    same: str = "username"


@dataclass(frozen=True, slots=True)
class WriteProgress:
    """How many rows have been read so far, and what happened to the rows that are committed."""

    rows: int = 0
    imported: int = 0
    updated: int = 0
    skipped: int = 0


class Importer:
    """One import to the board `default`: `begin`, `load` any number of times, `drop_repeated`, `write`.

    Owns the connection, which must be a session of PostgreSQL: a pooler in transaction mode would lose the
    temporary tables.
    """

    def __init__(self, connection: asyncpg.Connection, key_of: KeyOf) -> None:
        self._connection = connection
        self._key_of = key_of
        self._has_keys = key_of("") is not None
        self._sql = load_queries("import")
        self._width = 4
        self.rules = BoardRules()
        self.rows = 0
        """How many rows there are to write."""

    async def begin(self) -> None:
        """Create the temporary tables, which exist until the connection is closed."""
        await self._connection.execute(self._sql["create_incoming"])

    async def load(self, rows: Sequence[Row]) -> None:
        """Add rows, with ascending line numbers."""
        widths = {self._width, *map(len, rows)}
        self._width = max(widths)
        records: Iterable[tuple[object, ...]] = rows
        if len(widths) > 1:
            records = [row if len(row) == self._width else (*row, None) for row in rows]
        columns = list(_COLUMNS[: self._width])
        if self._has_keys:
            columns.append("name_key")
            records = [(*record, self._key_of(row[1])) for record, row in zip(records, rows, strict=True)]
        await self._connection.copy_records_to_table("incoming", records=records, columns=columns)
        self.rows += len(rows)

    async def drop_repeated(self, dropped: Callable[[Repeated], None]) -> None:
        """Drop all but the first row of each user, as names are compared; call `dropped` for each.

        A user with an external id that no user has, but with the name of one, is dropped too. To be called after
        `load`.
        """
        has_ids = self._width == len(_COLUMNS)
        find_taken = "find_taken_keys" if self._has_keys else "find_taken_names"
        before, after = (("name_external_ids", find_taken), ("find_repeated_ids",)) if has_ids else ((), ())
        steps = ("index_incoming", "analyze_incoming", "create_repeated", *before, "find_repeated", *after)
        for step in steps:
            await self._connection.execute(self._sql[step])
        async with self._connection.transaction():
            async for found in self._connection.cursor(self._sql["repeated"], prefetch=1000):
                line, first_line, same, *cells = found
                row: Any = (line, *cells)[: self._width]
                dropped(Repeated(row, first_line, same))
                self.rows -= 1
        await self._connection.execute(self._sql["delete_repeated"])

    async def write(
        self, on_conflict: OnConflict, has_images: bool, report: Callable[[WriteProgress], None]
    ) -> None:
        """Write the rows in the order of their lines, and call `report` after every chunk.

        With `has_images`, UPDATE sets images too, and removes those of users whose row has none.

        With SKIP and UPDATE each chunk is committed, and a second run completes an interrupted one. With FAIL
        everything is one transaction; raises NamesTaken if any user is on the board. Raises BoardChanged.
        """
        if on_conflict is OnConflict.FAIL:
            await self._write_all_or_nothing(report)
            return
        line = rows = imported = 0
        while rows < self.rows:
            last, count = await self._next_chunk(line)
            imported += await self._commit_chunk(line, last, on_conflict, has_images)
            line, rows = last, rows + count
            existing = rows - imported
            if on_conflict is OnConflict.UPDATE:
                report(WriteProgress(rows, imported, updated=existing))
            else:
                report(WriteProgress(rows, imported, skipped=existing))

    async def count_existing(self, on_conflict: OnConflict) -> int:
        """Return for how many rows the user is on the board. Raises NamesTaken if that stops the import.

        To be called after `drop_repeated`.
        """
        if on_conflict is OnConflict.FAIL:
            await self._raise_if_taken()
        else:
            await self._find_by_key()
        taken = await self._taken()
        return taken[0]["in_all"] if taken else 0

    async def _commit_chunk(self, line: int, last: int, on_conflict: OnConflict, has_images: bool) -> int:
        """Write one chunk; returns how many entries are new."""
        for attempt in range(1, _TRIES + 1):
            try:
                async with self._transaction():
                    await self._find_by_key(line, last)
                    if on_conflict is OnConflict.UPDATE:
                        return await self._add_and_update(line, last, has_images)
                    return await self._add(line, last)
            except asyncpg.DeadlockDetectedError:
                if attempt == _TRIES:
                    raise
        raise AssertionError("unreachable")

    async def _write_all_or_nothing(self, report: Callable[[WriteProgress], None]) -> None:
        for attempt in range(1, _TRIES + 1):
            await self._raise_if_taken()
            try:
                async with self._transaction():
                    await self._connection.execute(self._sql["lock_all_or_nothing"])
                    line = rows = 0
                    while rows < self.rows:
                        last, count = await self._next_chunk(line)
                        await self._add_strictly(line, last)
                        line, rows = last, rows + count
                        report(WriteProgress(rows))
            except (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError):
                # A user came to the board since the check.
                if attempt == _TRIES:
                    raise
            else:
                report(WriteProgress(rows, imported=rows))
                return

    async def _raise_if_taken(self) -> None:
        await self._find_by_key()
        taken = await self._taken()
        if taken:
            raise NamesTaken({row["line"]: row["user_name"] for row in taken}, taken[0]["in_all"], self._are)

    async def _find_by_key(self, line: int = -1, last: int = _LAST_LINE) -> None:
        """Give the rows of these lines the names that users with their keys have. Rows without keys stay."""
        if self._has_keys:
            await self._connection.execute(self._sql["find_by_key"], line, last)

    async def _next_chunk(self, line: int) -> tuple[int, int]:
        """Return the last line of the chunk after `line`, and how many rows it has."""
        (chunk,) = await self._connection.fetch(self._sql["next_chunk"], line, CHUNK)
        return chunk["last_line"], chunk["count"]

    @asynccontextmanager
    async def _transaction(self) -> "AsyncIterator[None]":
        async with self._connection.transaction():
            await self._connection.execute(self._sql["set_up_transaction"])
            yield

    # What differs between `default` and the other boards. Each writes or reads a chunk of lines.

    _are = "exist"

    async def _add(self, line: int, last: int) -> int:
        return await self._add_users(line, last, with_scores=True)

    async def _add_and_update(self, line: int, last: int, has_images: bool) -> int:
        added = await self._add(line, last)
        await self._connection.execute(self._sql["update_users"], line, last, has_images, True)
        return added

    async def _add_strictly(self, line: int, last: int) -> None:
        await self._connection.execute(self._sql["add_users_strictly"], line, last)

    async def _taken(self) -> "Sequence[asyncpg.Record]":
        return await self._connection.fetch(self._sql["taken_names"], _NAMED)

    async def _add_users(self, line: int, last: int, *, with_scores: bool) -> int:
        added: int = await self._connection.fetchval(self._sql["add_users"], line, last, with_scores)
        # Another transaction may have created a user of the same key since.
        await self._find_by_key(line, last)
        return added


class EntryImporter(Importer):
    """One import to the current season of another board, which creates the users that do not exist."""

    _are = "are on the board"

    def __init__(self, connection: asyncpg.Connection, board: Board, key_of: KeyOf) -> None:
        super().__init__(connection, key_of)
        self._board = board
        self._tie_bits = key_rules(board.rules).tie_bits
        self.rules = board.rules

    async def begin(self) -> None:
        await super().begin()
        await self._connection.execute(self._sql["create_placed"])

    @asynccontextmanager
    async def _transaction(self) -> "AsyncIterator[None]":
        async with super()._transaction():
            await self._lock_season()
            yield

    async def _lock_season(self) -> None:
        """Keep the season from ending before the transaction does. Raises BoardChanged."""
        board = self._board
        season = await self._connection.fetchrow(self._sql["open_season"], board.board_id)
        if season is None or season["season_id"] != board.season_id:
            raise BoardChanged(f"the season {board.season_number} of the board {board.name!r} has ended")
        if season["version"] != board.version:
            raise BoardChanged(f"the rules of the board {board.name!r} have been changed")

    async def _add(self, line: int, last: int) -> int:
        await self._add_users(line, last, with_scores=False)
        await self._place(line, last, existing=False)
        return await self._add_entries()

    async def _add_and_update(self, line: int, last: int, has_images: bool) -> int:
        await self._add_users(line, last, with_scores=False)
        if has_images:
            await self._connection.execute(self._sql["update_users"], line, last, True, False)
        await self._place(line, last, existing=True)
        added = await self._add_entries()
        await self._connection.execute(
            self._sql["update_entries"], self._board.season_id, self._tie_bits, self.rules.keeps == "best"
        )
        return added

    async def _add_strictly(self, line: int, last: int) -> None:
        await self._add_users(line, last, with_scores=False)
        await self._place(line, last, existing=False)
        await self._connection.execute(self._sql["add_entries_strictly"], self._board.season_id)

    async def _taken(self) -> Sequence[asyncpg.Record]:
        return await self._connection.fetch(self._sql["taken_entries"], _NAMED, self._board.season_id)

    async def _place(self, line: int, last: int, *, existing: bool) -> None:
        """Compute the sort keys of a chunk, in the temporary table `placed`."""
        await self._connection.execute(self._sql["empty_placed"])
        await self._connection.execute(
            self._sql["place"],
            line,
            last,
            self._board.season_id,
            self._tie_bits,
            self._board.season_started_at,
            existing,
        )

    async def _add_entries(self) -> int:
        added: int = await self._connection.fetchval(self._sql["add_entries"], self._board.season_id)
        return added
