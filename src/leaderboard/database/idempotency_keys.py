"""The idempotency keys of writes, in the table `idempotent_writes`."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from leaderboard.board_rules import BoardRules, parse_stored
from leaderboard.database.connections import Connections
from leaderboard.database.rows import AtSnapshot, position_of
from leaderboard.database.sql import load_queries

_COUNT_S = 60.0
"""The longest that counting the keys may take."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Identifies one write, however often it is sent.

    `key` is a hash of the caller and its key, `fingerprint` one of the request: 16 bytes each, in hexadecimal.
    """

    key: str
    caller: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class FirstWrite:
    """What the first write with an idempotency key did.

    `same`: it had the same fingerprint. `previous_score` is None if it created a user, or a new entry.
    `user_name`, `image_url` and `external_id` are the present ones; `user_name` is None if the user was deleted.
    `sort_key`, `season_number` and `rules` are given for an entry of a board other than `default`, and then
    `previous_score` is a sort key; `rules` is None if the season was deleted.
    """

    same: bool
    user_id: int
    previous_score: int | None
    user_name: str | None
    image_url: str | None
    external_id: str | None = None
    sort_key: int | None = None
    season_number: int | None = None
    rules: BoardRules | None = None


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """How many idempotency keys exist, and which callers have as many as one may have."""

    total: int
    full: frozenset[str]


class IdempotencyKeys:
    """Reads, deletes and counts idempotency keys. The statements that write insert them."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._sql = load_queries("idempotency_keys")

    async def first_writes(self, keys: Sequence[IdempotencyKey]) -> AtSnapshot[list[FirstWrite | None]]:
        """Return what the first write with each key did, None for a new key."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(
                self._sql["first_writes"], [key.key for key in keys], [key.fingerprint for key in keys]
            )
            position = position_of(rows[0])
        found = {row["number"]: _first_write(row) for row in rows if row["number"] is not None}
        return AtSnapshot([found.get(number) for number in range(1, len(keys) + 1)], position)

    async def delete_old(self, kept_h: int, batch: int) -> int:
        """Delete up to `batch` keys older than `kept_h` hours; returns how many."""
        async with self._connections.acquire() as connection:
            deleted: int = await connection.fetchval(self._sql["delete_old"], kept_h, batch)
        return deleted

    async def count(self, per_caller: int) -> KeyCounts:
        """Count the keys; `full` has the callers with `per_caller` keys or more.

        Reads the whole table: a second for some millions of keys. Raises DatabaseUnavailable after a minute.
        """
        async with self._connections.acquire(timeout_s=_COUNT_S) as connection:
            rows = await connection.fetch(self._sql["count_keys"], per_caller, timeout=_COUNT_S)
        counts = {row["caller"]: row["kept"] for row in rows}
        return KeyCounts(counts.pop(None), frozenset(counts))


def _first_write(row: asyncpg.Record) -> FirstWrite:
    return FirstWrite(
        row["same"],
        row["user_id"],
        row["previous_score"],
        row["user_name"],
        row["image_url"],
        row["external_id"],
        row["sort_key"],
        row["season_number"],
        row["rules"] and parse_stored(row["rules"]),
    )
