"""Reads the best users, and creates users."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from leaderboard.database.connections import Connections
from leaderboard.database.idempotency_keys import IdempotencyKey
from leaderboard.database.rows import AtSnapshot, Committed, committed_position, one_row, position_of, users_of
from leaderboard.database.sql import load_queries
from leaderboard.database.writing import NotWritten, write
from leaderboard.model import User
from leaderboard.snapshot import SnapshotPosition
from leaderboard.tuning import Tuning


class NewUser(msgspec.Struct, frozen=True):
    """A user to create."""

    user_name: str
    image_url: str | None
    total_score: int
    key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class BestUsers:
    """The best users, best first, and how many users there are in all."""

    users: list[User]
    total: int


class Users:
    """Reads and writes the table `users`."""

    def __init__(self, connections: Connections, tuning: Tuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("users")
        self._now = load_queries("server")["now"]

    async def top(self, n: int) -> AtSnapshot[list[User]]:
        """Return the best `n` users, best first."""
        async with self._connections.acquire() as connection:
            row = await one_row(connection, self._sql["top"], None, None, n)
            return AtSnapshot(users_of(row)[0], position_of(row))

    async def top_and_total(self, n: int) -> AtSnapshot[BestUsers]:
        """Return the best `n` users and how many users there are in all."""
        max_pending = self._tuning.ranks.max_pending
        async with self._connections.acquire() as connection:
            row = await one_row(connection, self._sql["top_and_total"], n, max_pending)
            return AtSnapshot(BestUsers(users_of(row)[0], row["total"]), position_of(row))

    async def create(self, batch: Sequence[NewUser]) -> Committed[User | NotWritten]:
        """Create users in one transaction; a result is the User, or NAME_TAKEN.

        Raises IdempotencyKeyInUse if an item's key exists already or is being inserted, and what `write` raises.
        """
        first: dict[str, NewUser] = {}
        for item in batch:
            first.setdefault(item.user_name, item)
        keys = [item.key for item in first.values()]
        rows = await write(
            self._connections,
            self._tuning.writes.attempts,
            self._sql["create_users"],
            list(first),
            [item.image_url for item in first.values()],
            [item.total_score for item in first.values()],
            f"{self._tuning.writes.unique_wait_ms}ms",
            [key and key.key for key in keys],
            [key and key.caller for key in keys],
            [key and key.fingerprint for key in keys],
        )
        ids = {row["user_name"]: row["user_id"] for row in rows if row["user_id"] is not None}
        results: list[User | NotWritten] = []
        for item in batch:
            # Only the first of several with one name can have got it.
            if first[item.user_name] is item and item.user_name in ids:
                results.append(User(ids[item.user_name], item.user_name, item.image_url, item.total_score))
            else:
                results.append(NotWritten.NAME_TAKEN)
        position = committed_position(rows)
        if isinstance(position, SnapshotPosition) and batch:
            # A name can be taken by a user that is newer than the statement's snapshot.
            async with self._connections.acquire() as connection:
                position = position_of(await one_row(connection, self._now))
        return Committed(results, position)
