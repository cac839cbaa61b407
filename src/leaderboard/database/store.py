"""Every question to PostgreSQL and every change in it, one statement each.

An answer carries the moment it was read at (`Seen`), a change the commit that made it, so that the caller can
wait until the cache shows as much. Ranks are a matter of their own: `rank_index.py`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import asyncpg
import msgspec

from leaderboard.database import importer, migrate
from leaderboard.database.connections import LOST, Connection, Connections
from leaderboard.database.rank_index import LOCK_KEY, MOST_UNFOLDED
from leaderboard.database.rows import AtSnapshot, one_row, position_of, users_of
from leaderboard.database.sql import load_queries
from leaderboard.errors import (
    DatabaseReadOnly,
    DatabaseRefused,
    DatabaseUnavailable,
    IdempotencyKeyInUse,
    LockedOut,
    OutcomeUnknown,
    Overloaded,
)
from leaderboard.model import ScoreSet, User
from leaderboard.snapshot import CommitPosition, Snapshot, SnapshotPosition

T_co = TypeVar("T_co", covariant=True)

_TRIES_ON_CONFLICT = 3
_PATIENCE = "50ms"
"""How long a batch waits for a name or an idempotency key that a transaction still open has taken."""
_FOREVER = "0"
_KEY_IS_KEPT = "idempotent_writes_key"
_WAIT_FOR_RANKS_S = 600
"""How long the log is kept for a rank index that nobody folds."""
_COUNT_S = 60.0
"""How long counting the idempotency keys may take."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a view lacks: users as they are now, ids of those that are gone, and how many `more` users there are.

    Not `usable`: the log no longer reaches back to the view, or says too much changed; the view rebuilds.
    Not `log_valid`: the log came with a dump from another server and wants `reset_log`.
    """

    position: SnapshotPosition
    usable: bool
    log_valid: bool
    changed: list[User]
    gone: list[int]
    more: int


@dataclass(frozen=True, slots=True)
class Board:
    """The best users, and how many there are in all."""

    users: list[User]
    total: int


@dataclass(frozen=True, slots=True)
class Written(Generic[T_co]):
    """What a batch of writes did, item by item, and the point that a view must reach to show it."""

    outcomes: Sequence[T_co]
    point: SnapshotPosition | CommitPosition


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What one write is known by, however often it is sent.

    `key` is a hash of the caller and the key that it sent, `fingerprint` one of what was asked for: 16 bytes each,
    in hexadecimal.
    """

    key: str
    caller: str
    fingerprint: str


class NewUser(msgspec.Struct, frozen=True):
    """A user to create."""

    user_name: str
    image_url: str | None
    total_score: int
    key: IdempotencyKey | None = None


class NewScore(msgspec.Struct, frozen=True):
    """A score to set."""

    user_id: int
    total_score: int
    key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class FirstWrite:
    """What a write with an idempotency key did.

    `same` is whether the same was asked for. `previous_score` is None where a user was created. `user_name` and
    `image_url` are those that the user has now; `user_name` is None where the user is gone.
    """

    same: bool
    user_id: int
    previous_score: int | None
    user_name: str | None
    image_url: str | None


@dataclass(frozen=True, slots=True)
class KeysKept:
    """How many idempotency keys there are, and which callers have as many as one may have."""

    total: int
    full: frozenset[str]


class Refusal(Enum):
    """Why one item of a batch was not written."""

    UNKNOWN = "unknown user"
    LOCKED = "somebody else holds the row"
    TAKEN = "name taken"


class Database:
    """PostgreSQL as the keeper of users, of their changes and of idempotency keys."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._read = load_queries("read")
        self._write = load_queries("write")
        self._log = load_queries("log")
        self._idempotency = load_queries("idempotency")

    async def open(self) -> None:
        """Prepare the connections; connects only when first asked something."""
        await self.connections.open()

    async def close(self) -> None:
        """Close the connections, forcibly after a second."""
        await self.connections.close()

    # Questions

    async def now(self) -> SnapshotPosition:
        """The present moment."""
        async with self.connections.pooled() as connection:
            return position_of(await one_row(connection, self._read["now"]))

    async def check_writable(self) -> None:
        """Raise DatabaseReadOnly if the server takes no writes."""
        async with self.connections.pooled() as connection:
            if await connection.fetchval(self._read["read_only"]):
                raise DatabaseReadOnly("PostgreSQL takes no writes: its transactions are read-only")

    async def best(self, n: int) -> AtSnapshot[list[User]]:
        """The best `n` users, best first."""
        async with self.connections.pooled() as connection:
            row = await one_row(connection, self._read["best"], n)
            return AtSnapshot(users_of(row)[0], position_of(row))

    async def board(self, n: int) -> AtSnapshot[Board]:
        """The best `n` users and how many there are in all."""
        async with self.connections.pooled() as connection:
            row = await one_row(connection, self._read["board"], n, MOST_UNFOLDED)
            return AtSnapshot(_board(row), position_of(row))

    # Changes

    async def set_scores(self, batch: Sequence[NewScore]) -> Written[ScoreSet | Refusal]:
        """Set scores in one transaction; each outcome is a ScoreSet, or UNKNOWN or LOCKED.

        Several scores of one user are chained: each sees the one before as previous, and the last one stays; it
        alone is written, and meets whatever constraints somebody has added. Rows that somebody else holds are
        skipped. Raises IdempotencyKeyInUse if an item's key is kept already or is being kept.
        """
        last: dict[int, int] = {}
        kept: list[tuple[str, str, str, int, int | None]] = []
        for item in batch:
            if item.key is not None:
                key = item.key
                kept.append((key.key, key.caller, key.fingerprint, item.user_id, last.get(item.user_id)))
            last[item.user_id] = item.total_score
        columns = zip(*kept, strict=True) if kept else [()] * 5
        patience = _PATIENCE if kept else _FOREVER
        rows = await self._change(
            self._write["set_scores"], list(last), list(last.values()), patience, *map(list, columns)
        )
        return self._scores_written(batch, rows)

    def _scores_written(
        self, batch: Sequence[NewScore], rows: Sequence[asyncpg.Record]
    ) -> Written[ScoreSet | Refusal]:
        found = {row["user_id"]: row for row in rows}
        previous = {row["user_id"]: row["previous_score"] for row in rows}
        outcomes: list[ScoreSet | Refusal] = []
        for item in batch:
            row = found[item.user_id]
            if row["previous_score"] is None:
                outcomes.append(Refusal.LOCKED if row["known"] else Refusal.UNKNOWN)
                continue
            outcomes.append(
                ScoreSet(
                    item.user_id, row["user_name"], row["image_url"], item.total_score, previous[item.user_id]
                )
            )
            previous[item.user_id] = item.total_score
        return Written(outcomes, _point(rows))

    async def create_users(self, batch: Sequence[NewUser]) -> Written[User | Refusal]:
        """Create users in one transaction; each outcome is the User, or TAKEN.

        Raises IdempotencyKeyInUse if an item's key is kept already or is being kept.
        """
        first: dict[str, NewUser] = {}
        for item in batch:
            first.setdefault(item.user_name, item)
        keys = [item.key for item in first.values()]
        rows = await self._change(
            self._write["create_users"],
            list(first),
            [item.image_url for item in first.values()],
            [item.total_score for item in first.values()],
            _PATIENCE,
            [key and key.key for key in keys],
            [key and key.caller for key in keys],
            [key and key.fingerprint for key in keys],
        )
        ids = {row["user_name"]: row["user_id"] for row in rows if row["user_id"] is not None}
        outcomes: list[User | Refusal] = []
        for item in batch:
            # Only the first of several with one name can have got it.
            if first[item.user_name] is item and item.user_name in ids:
                outcomes.append(User(ids[item.user_name], item.user_name, item.image_url, item.total_score))
            else:
                outcomes.append(Refusal.TAKEN)
        point = _point(rows)
        if isinstance(point, SnapshotPosition) and batch:
            # A name can be refused because of a user that is newer than the statement's snapshot.
            point = await self.now()
        return Written(outcomes, point)

    # Idempotency keys

    async def first_writes(self, keys: Sequence[IdempotencyKey]) -> AtSnapshot[list[FirstWrite | None]]:
        """For each key what was done with it, None if it is not kept."""
        async with self.connections.pooled() as connection:
            rows = await connection.fetch(
                self._idempotency["first_writes"], [key.key for key in keys], [key.fingerprint for key in keys]
            )
            moment = position_of(rows[0])
        found = {row["position"]: _first_write(row) for row in rows if row["position"] is not None}
        return AtSnapshot([found.get(position) for position in range(1, len(keys) + 1)], moment)

    async def forget_keys(self, kept_h: int, batch: int) -> int:
        """Delete up to `batch` idempotency keys older than `kept_h` hours; how many that was."""
        async with self.connections.pooled() as connection:
            deleted: int = await connection.fetchval(self._idempotency["forget"], kept_h, batch)
        return deleted

    async def count_keys(self, per_caller: int) -> KeysKept:
        """How many idempotency keys there are, and which callers have `per_caller` of them or more.

        Reads the whole table: a second for some millions of keys; DatabaseUnavailable is raised after a minute.
        """
        async with self.connections.pooled(timeout_s=_COUNT_S) as connection:
            rows = await connection.fetch(self._idempotency["count_keys"], per_caller, timeout=_COUNT_S)
        kept = {row["caller"]: row["kept"] for row in rows}
        return KeysKept(kept.pop(None), frozenset(kept))

    # The change log

    async def catch_up(self, since: Snapshot, floor_score: int | None, limit: int) -> Changes:
        """What a view at `since` that holds scores from `floor_score` up lacks now; gives up at `limit` rows."""
        async with self.connections.pooled() as connection:
            return await self._catch_up(connection, since, floor_score, limit)

    async def audit(self, since: Snapshot, floor_score: int | None, limit: int, n: int) -> tuple[Changes, Board]:
        """`catch_up` and `board`, both at the same moment."""
        async with self.connections.pooled("REPEATABLE READ, READ ONLY") as connection:
            changes = await self._catch_up(connection, since, floor_score, limit)
            return changes, _board(await one_row(connection, self._read["board"], n, MOST_UNFOLDED))

    async def prune_log(self, keep_s: float, batch: int) -> int | None:
        """Delete up to `batch` log rows older than `keep_s` that the rank index has folded.

        None when there is nothing to do for now.
        """
        async with self.connections.pooled() as connection:
            deleted: int | None = await connection.fetchval(
                self._log["prune"], keep_s, batch, LOCK_KEY, _WAIT_FOR_RANKS_S
            )
        return deleted

    async def reset_log(self) -> bool:
        """Empty a log that came from another server; says whether it had."""
        async with self.connections.pooled() as connection:
            return await connection.fetchrow(self._log["reset"]) is not None

    async def _catch_up(
        self, connection: Connection, since: Snapshot, floor_score: int | None, limit: int
    ) -> Changes:
        row = await one_row(connection, self._log["catch_up"], str(since), limit, floor_score)
        changed, gone = users_of(row)
        return Changes(position_of(row), row["usable"], row["log_valid"], changed, gone, row["more"])

    # Administration, each on a connection of its own

    async def migrate(self, report: Callable[[str], None]) -> int:
        """Bring the schema up to date; see `migrate.migrate`."""
        async with self.connections.alone() as connection, self.connections.alone() as lock:
            return await migrate.migrate(connection, lock, report)

    async def check_schema(self) -> int:
        """How many connections the server allows to all its clients, but superusers.

        Raises SchemaOutdated if the database lacks a migration of this program.
        """
        async with self.connections.alone(isolation="READ COMMITTED") as connection:
            await migrate.check(connection)
            allowed: int = await connection.fetchval(self._read["connections_allowed"])
        return allowed

    @asynccontextmanager
    async def importing(self) -> AsyncIterator[importer.Importer]:
        """An importer with a connection of its own. Raises DatabaseUnavailable behind a pooler."""
        async with self.connections.alone({"statement_timeout": "0"}) as connection:
            if self.connections.behind_pooler:
                raise DatabaseUnavailable(
                    "an import needs a session, and this is a pooler; point DB_HOST and DB_PORT at PostgreSQL"
                )
            yield importer.Importer(connection)

    # How a change is made

    async def _change(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a writing statement, again on a conflict. Once it is sent, a lost connection means: who knows.

        Raises LockedOut when it ran into its lock timeout, and IdempotencyKeyInUse.
        """
        for attempt in range(_TRIES_ON_CONFLICT):
            sent = False
            try:
                async with self.connections.pooled() as connection:
                    sent = True
                    return await connection.fetch(sql, *arguments)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                if attempt == _TRIES_ON_CONFLICT - 1:
                    raise Overloaded("this write collided with others again and again") from error
            except asyncpg.UniqueViolationError as error:
                if error.constraint_name != _KEY_IS_KEPT:
                    raise DatabaseRefused(f"PostgreSQL refused: {error}") from error
                raise IdempotencyKeyInUse("another request with this idempotency key was faster") from error
            except asyncpg.LockNotAvailableError as error:
                if _KEY_IS_KEPT in (error.context or ""):
                    raise IdempotencyKeyInUse("another request with this idempotency key is under way") from error
                raise LockedOut("another transaction holds what this write changes") from error
            except DatabaseUnavailable as error:
                if sent and isinstance(error.__cause__, (*LOST, TimeoutError)):
                    raise OutcomeUnknown("PostgreSQL was lost before it confirmed the write") from error
                raise
        raise AssertionError("unreachable")


def _board(row: asyncpg.Record) -> Board:
    return Board(users_of(row)[0], row["total"])


def _point(rows: Sequence[asyncpg.Record]) -> SnapshotPosition | CommitPosition:
    moment = position_of(rows[0])
    xid = next((row["xid"] for row in rows if row["xid"] is not None), None)
    return moment if xid is None else CommitPosition(moment.epoch, int(xid))


def _first_write(row: asyncpg.Record) -> FirstWrite:
    return FirstWrite(row["same"], row["user_id"], row["previous_score"], row["user_name"], row["image_url"])
