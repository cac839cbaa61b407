"""Writes entries of boards other than `default`, many in one statement."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import asyncpg
import msgspec

from leaderboard.database.connections import Connections
from leaderboard.database.idempotency_keys import IdempotencyKey
from leaderboard.database.rows import Committed, committed_position
from leaderboard.database.sql import load_queries
from leaderboard.database.writing import write
from leaderboard.model import ExternalId
from leaderboard.tuning import WriteTuning
from leaderboard.usernames import KeyOf


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


class NewUsersEntry(msgspec.Struct, frozen=True):
    """The first entry of a user that is created with it: a value as in NewEntry."""

    board_id: int
    version: int
    value: int
    external_id: ExternalId
    user_name: str
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
    ID_TAKEN = "id taken"
    """A user has the external id of a user to create."""
    NAME_TAKEN = "name taken"


@dataclass(frozen=True, slots=True)
class EntryWritten:
    """What writing an entry did; `previous` and `value` are scores of which more is better, or None."""

    outcome: Outcome
    season_number: int | None
    user_id: int | None
    user_name: str | None
    image_url: str | None
    external_id: str | None
    previous: int | None
    value: int | None


_NOT_TRIED = EntryWritten(Outcome.AGAIN, None, None, None, None, None, None, None)


class Entries:
    """Writes the table `scores`."""

    def __init__(self, connections: Connections, tuning: WriteTuning, key_of: KeyOf) -> None:
        self._connections = connections
        self._key_of = key_of
        self._tuning = tuning
        self._sql = load_queries("entries")

    async def write(self, batch: Sequence[NewEntry]) -> Committed[EntryWritten]:
        """Write entries in one transaction. Of several for one board and user, only the first is tried.

        Raises IdempotencyKeyInUse if an item's key exists already or is being inserted, and what `write` raises.
        """
        first = {(item.board_id, item.user_id): item for item in reversed(batch)}
        items = [item for item in batch if first[item.board_id, item.user_id] is item]
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
            *_key_columns([item.key for item in items]),
        )
        written = {(item.board_id, item.user_id): _written(row) for item, row in zip(items, rows, strict=True)}
        results = [
            written[item.board_id, item.user_id] if first[item.board_id, item.user_id] is item else _NOT_TRIED
            for item in batch
        ]
        return Committed(results, committed_position(rows))

    async def write_with_users(self, batch: Sequence[NewUsersEntry]) -> Committed[EntryWritten]:
        """Create users with an entry each in one transaction. Of several with one id or name, one is tried.

        Raises as `write`.
        """
        items: list[NewUsersEntry] = []
        external_ids: set[str] = set()
        names: set[str] = set()
        name_keys: list[str | None] = []
        for item in batch:
            name_key = self._key_of(item.user_name)
            name = item.user_name if name_key is None else name_key
            if item.external_id not in external_ids and name not in names:
                items.append(item)
                name_keys.append(name_key)
                external_ids.add(item.external_id)
                names.add(name)
        rows = await write(
            self._connections,
            self._tuning.attempts,
            self._sql["write_entries_of_new_users"],
            [item.board_id for item in items],
            [item.version for item in items],
            [item.value for item in items],
            [item.external_id for item in items],
            [item.user_name for item in items],
            f"{self._tuning.unique_wait_ms}ms",
            *_key_columns([item.key for item in items]),
            name_keys,
        )
        written = {id(item): _written(row) for item, row in zip(items, rows, strict=True)}
        return Committed([written.get(id(item), _NOT_TRIED) for item in batch], committed_position(rows))

    async def remove(self, board_id: int, user_id: int) -> Committed[bool | None]:
        """Remove a user's entry; returns whether there was one, None if the board has no open season."""
        rows = await write(self._connections, self._tuning.attempts, self._sql["remove_entry"], board_id, user_id)
        (row,) = rows
        removed = None if row["season_id"] is None else bool(row["removed"])
        return Committed([removed], committed_position(rows))


def _key_columns(keys: Sequence[IdempotencyKey | None]) -> tuple[list[str | None], ...]:
    """Return the keys, callers and fingerprints of items, None for those without a key."""
    return (
        [None if key is None else key.key for key in keys],
        [None if key is None else key.caller for key in keys],
        [None if key is None else key.fingerprint for key in keys],
    )


def _written(row: asyncpg.Record) -> EntryWritten:
    return EntryWritten(
        Outcome(row["outcome"]),
        row["number"],
        row["user_id"],
        row["user_name"],
        row["image_url"],
        row["external_id"],
        row["previous"],
        row["value"],
    )
