"""Boards and their seasons: the tables `boards` and `seasons`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from leaderboard.board_rules import BoardRules, key_rules, parse_stored, to_json
from leaderboard.database.connections import Connections
from leaderboard.database.rows import AtSnapshot, Committed, committed_position, position_of
from leaderboard.database.sql import load_queries
from leaderboard.database.writing import write
from leaderboard.tuning import WriteTuning


@dataclass(frozen=True, slots=True)
class Board:
    """A board as it is registered, with its current season.

    `version` counts the changes of the rules. `season_ends_at` is None if the season does not end by itself. `now`
    is PostgreSQL's time when this was read.
    """

    board_id: int
    name: str
    rules: BoardRules
    version: int
    season_id: int
    season_number: int
    season_started_at: datetime
    season_ends_at: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Season:
    """A season of a board.

    `ended_at` is None for the current one, `ends_at` for one that does not end by itself.
    """

    number: int
    started_at: datetime
    ended_at: datetime | None
    ends_at: datetime | None


class Configured(StrEnum):
    """What configuring a board did."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    """Nothing: the board has entries, and rules that they depend on would change."""
    OUT_OF_BOUNDS = "out of bounds"
    """Nothing: an entry of the current season is outside of the new bounds."""


class Boards:
    """Reads and writes the registry of boards."""

    def __init__(self, connections: Connections, tuning: WriteTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("boards")

    # Reading

    async def get(self, name: str) -> AtSnapshot[Board | None]:
        """Return a board, None if there is none of that name."""
        async with self._connections.acquire() as connection:
            (row,) = await connection.fetch(self._sql["get_board"], name)
            return AtSnapshot(_board(row), position_of(row))

    async def list(self, after: str, limit: int) -> AtSnapshot[Sequence[Board]]:
        """Return the boards after that name, `limit` at most, by name."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["list_boards"], after, limit)
            boards = [board for row in rows if (board := _board(row)) is not None]
            return AtSnapshot(boards, position_of(rows[0]))

    async def due(self) -> Sequence[Board]:
        """Return the boards whose season is past its end."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["due_seasons"])
        return [board for row in rows if (board := _board(row)) is not None]

    async def seasons(self, name: str, before: int | None, limit: int) -> AtSnapshot[Sequence[Season] | None]:
        """Return the seasons of a board before that number, newest first; None if there is no such board."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["list_seasons"], name, before, limit)
        position = position_of(rows[0])
        if rows[0]["board_id"] is None:
            return AtSnapshot(None, position)
        seasons = [
            Season(row["number"], row["started_at"], row["ended_at"], row["ends_at"])
            for row in rows
            if row["number"] is not None
        ]
        return AtSnapshot(seasons, position)

    async def of_user(self, user_id: int, after: str, limit: int) -> AtSnapshot[Sequence[str] | None]:
        """Return the names of the boards with an entry of a user, by name; None for an unknown user."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["user_boards"], user_id, after, limit)
        names = [row["name"] for row in rows if row["name"] is not None]
        return AtSnapshot(names if rows[0]["known"] else None, position_of(rows[0]))

    # Writing

    async def configure(
        self, name: str, rules: BoardRules, season_ends_at: datetime | None, fixed: Sequence[str]
    ) -> Committed[tuple[Configured, Sequence[str]]]:
        """Create a board or change its rules; returns what was done, and the rules that were refused.

        `fixed` are the names of the rules that cannot change while there are entries. Raises what `write` raises.
        """
        stored = key_rules(rules)
        rows = await write(
            self._connections,
            self._tuning.attempts,
            self._sql["configure_board"],
            name,
            to_json(rules),
            rules.keeps,
            stored.tie_bits,
            stored.lowest,
            stored.highest,
            season_ends_at,
            list(fixed),
        )
        (row,) = rows
        return Committed([(Configured(row["outcome"]), row["refused"] or ())], committed_position(rows))

    async def delete(self, name: str) -> Committed[bool]:
        """Delete a board with its seasons; returns whether there was one. Raises what `write` raises.

        Its entries are deleted later, see `orphans`.
        """
        rows = await write(self._connections, self._tuning.attempts, self._sql["delete_board"], name)
        return Committed([rows[0]["deleted"]], committed_position(rows))

    async def end_season(self, board: Board, next_end: datetime | None) -> Committed[int | None]:
        """End the current season of `board`; returns the next one's number, None if nothing was done.

        That is so if another caller was faster, and if `next_end` is past when the writes under way have ended.
        Waits for the writes under way. Raises LockedOut after 50 ms, so that writers do not queue for long behind
        it, and what `write` raises.
        """
        rows = await write(
            self._connections,
            self._tuning.attempts,
            self._sql["end_season"],
            board.board_id,
            board.season_id,
            next_end,
        )
        return Committed([rows[0]["number"]], committed_position(rows))

    # Housekeeping

    async def forget_seasons(self, board_id: int, keep: int) -> None:
        """Remove the ended seasons of a board from the registry, except the newest `keep`."""
        async with self._connections.acquire() as connection:
            await connection.execute(self._sql["expired_seasons"], board_id, keep)

    async def orphans(self, limit: int) -> Sequence[int]:
        """Return the ids of seasons that are not registered any more and whose entries are to be deleted."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["orphans"], limit)
        return [row["season_id"] for row in rows]

    async def delete_orphans(self, season_id: int, limit: int) -> int:
        """Delete entries of a season that is not registered any more; returns how many, about `limit` at most."""
        async with self._connections.acquire() as connection:
            deleted: int | None = await connection.fetchval(self._sql["delete_orphans"], season_id, limit)
        return deleted or 0


def _board(row: asyncpg.Record) -> Board | None:
    if row["board_id"] is None:
        return None
    return Board(
        row["board_id"],
        row["name"],
        parse_stored(row["rules"]),
        row["version"],
        row["season_id"],
        row["number"],
        row["started_at"],
        row["season_ends_at"],
        row["now"],
    )
