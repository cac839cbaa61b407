"""The change log, the table `user_changes`: what changed since a snapshot, and keeping the log short."""

from dataclasses import dataclass

import structlog

from leaderboard.database.connections import Connections
from leaderboard.database.connector import Connection
from leaderboard.database.rank_index import WRITER_LOCK
from leaderboard.database.rows import one_row, position_of, users_of
from leaderboard.database.sql import load_queries
from leaderboard.database.users import BestUsers
from leaderboard.model import User
from leaderboard.snapshot import Snapshot, SnapshotPosition
from leaderboard.tuning import LogTuning, RankIndexTuning

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed between the snapshot of a view and the present one, at `position`.

    `changed` are users as they are now, `deleted` ids of users that no longer exist, `added` how many more users
    there are. `reaches` is False if the log was pruned since, or says only that too much changed: then the view
    has to be rebuilt. `log_valid` is False if the log was restored from another server's dump: it has to be reset.
    """

    position: SnapshotPosition
    reaches: bool
    log_valid: bool
    changed: list[User]
    deleted: list[int]
    added: int


class ChangeLog:
    """Reads and prunes the change log. Triggers write it."""

    def __init__(self, connections: Connections, tuning: RankIndexTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("change_log")
        self._top_and_total = load_queries("users")["top_and_total"]

    async def changes_since(self, since: Snapshot, floor_score: int | None, limit: int) -> Changes:
        """Return what changed since a snapshot among users of `floor_score` or better, of all with None.

        With `limit` log rows or more, `reaches` is False.
        """
        async with self._connections.acquire() as connection:
            return await self._changes_since(connection, since, floor_score, limit)

    async def audit(
        self, since: Snapshot, floor_score: int | None, limit: int, n: int
    ) -> tuple[Changes, BestUsers]:
        """Return `catch_up` and the best `n` users, both from one snapshot."""
        async with self._connections.acquire("REPEATABLE READ, READ ONLY") as connection:
            changes = await self._changes_since(connection, since, floor_score, limit)
            row = await one_row(connection, self._top_and_total, n, self._tuning.max_pending)
            return changes, BestUsers(users_of(row)[0], row["total"])

    async def prune(self, tuning: LogTuning) -> int | None:
        """Delete one batch of old rows; returns how many, None when it is too early.

        Keeps rows younger than `keep_s`, and rows that the rank index has not applied for `max_index_wait_s`.
        """
        async with self._connections.acquire() as connection:
            deleted: int | None = await connection.fetchval(
                self._sql["prune"], tuning.keep_s, tuning.prune_batch, WRITER_LOCK, tuning.max_index_wait_s
            )
        return deleted

    async def reset(self) -> bool:
        """Empty the log if it was restored from another server's dump; returns whether it was."""
        async with self._connections.acquire() as connection:
            reset = await connection.fetchrow(self._sql["reset"]) is not None
        if reset:
            _log.warning("emptied a change log that was restored from another server's dump")
        return reset

    async def _changes_since(
        self, connection: Connection, since: Snapshot, floor_score: int | None, limit: int
    ) -> Changes:
        row = await one_row(connection, self._sql["changes_since"], str(since), limit, floor_score)
        changed, deleted = users_of(row)
        return Changes(position_of(row), row["reaches"], row["log_valid"], changed, deleted, row["added"])
