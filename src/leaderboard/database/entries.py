"""Writes entries of boards other than `default`, many in one statement."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from leaderboard.database.connections import Connections
from leaderboard.database.idempotency_keys import IdempotencyKey
from leaderboard.database.rows import Committed, committed_position
from leaderboard.database.sql import load_queries
from leaderboard.database.writing import write
from leaderboard.tuning import WriteTuning


class NewEntry(msgspec.Struct, frozen=True):
    """A value to write: a score of which more is better, or an increment of one if `adds`.

    `version` is that of the board's rules by which the value was made.
    """

    board_id: int
    version: int
    user_id: int
    value: int
    adds: bool = False
    key: IdempotencyKey | None = None


class Outcome(StrEnum):
    """What became of an entry."""

    WRITTEN = "written"
    SAME = "same"
    """There was nothing to change."""
    NO_SEASON = "no season"
    """There is no such board any more, or its season is past its end."""
    OTHER_RULES = "other rules"
    OUT_OF_BOUNDS = "out of bounds"
    NO_USER = "no user"
    AGAIN = "again"
    """Another transaction has locked the entry or its user, or is inserting it."""


@dataclass(frozen=True, slots=True)
class EntryWritten:
    """What writing an entry did; `previous` and `value` are scores of which more is better, or None."""

    outcome: Outcome
    season_number: int | None
    user_name: str | None
    image_url: str | None
    previous: int | None
    value: int | None


class Entries:
    """Writes the table `scores`."""

    def __init__(self, connections: Connections, tuning: WriteTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("entries")

    async def write(self, batch: Sequence[NewEntry]) -> Committed[EntryWritten]:
        """Write entries in one transaction. Of several for one board and user, only the first is tried.

        Raises IdempotencyKeyInUse if an item's key exists already or is being inserted, and what `write` raises.
        """
        first = {(item.board_id, item.user_id): item for item in reversed(batch)}
        items = [item for item in batch if first[item.board_id, item.user_id] is item]
        keys = [item.key for item in items]
        rows = await write(
            self._connections,
            self._tuning.attempts,
            self._sql["write_entries"],
            [item.board_id for item in items],
            [item.version for item in items],
            [item.user_id for item in items],
            [item.value for item in items],
            [item.adds for item in items],
            f"{self._tuning.unique_wait_ms}ms",
            [key and key.key for key in keys],
            [key and key.caller for key in keys],
            [key and key.fingerprint for key in keys],
        )
        written = {
            (item.board_id, item.user_id): EntryWritten(
                Outcome(row["outcome"]),
                row["number"],
                row["user_name"],
                row["image_url"],
                row["previous"],
                row["value"],
            )
            for item, row in zip(items, rows, strict=True)
        }
        not_tried = EntryWritten(Outcome.AGAIN, None, None, None, None, None)
        results = [
            written[item.board_id, item.user_id] if first[item.board_id, item.user_id] is item else not_tried
            for item in batch
        ]
        return Committed(results, committed_position(rows))

    async def remove(self, board_id: int, user_id: int) -> Committed[bool | None]:
        """Remove a user's entry; returns whether there was one, None if the board has no open season."""
        rows = await write(self._connections, self._tuning.attempts, self._sql["remove_entry"], board_id, user_id)
        (row,) = rows
        removed = None if row["season_id"] is None else bool(row["removed"])
        return Committed([removed], committed_position(rows))
