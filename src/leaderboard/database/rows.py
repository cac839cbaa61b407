"""Turns rows of PostgreSQL into the types of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import asyncpg

from leaderboard.database.connector import Connection
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.model import User
from leaderboard.snapshot import CommitPosition, Position, Snapshot, SnapshotPosition

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class AtSnapshot(Generic[T_co]):
    """A value and the snapshot it was read from."""

    value: T_co
    position: SnapshotPosition


@dataclass(frozen=True, slots=True)
class Committed(Generic[T_co]):
    """The results of a batch of writes, in order, and the position from which on they are visible.

    The position is a snapshot if nothing was written.
    """

    results: Sequence[T_co]
    position: Position


async def one_row(connection: Connection, sql: str, *arguments: object) -> asyncpg.Record:
    """Return the row of a statement that always returns one. Raises DatabaseUnavailable if there is none."""
    row: asyncpg.Record | None = await connection.fetchrow(sql, *arguments)
    if row is None:
        raise DatabaseUnavailable("a row that belongs to the schema is missing; was log_state emptied by hand?")
    return row


def position_of(row: asyncpg.Record) -> SnapshotPosition:
    """Return the position a statement read from. Raises DatabaseReadOnly on a standby."""
    if row["epoch"] is None:
        raise DatabaseReadOnly("this PostgreSQL server is a standby; a primary is needed")
    return SnapshotPosition(row["epoch"], Snapshot.parse(row["snapshot"]))


def committed_position(rows: Sequence[asyncpg.Record]) -> Position:
    """Return the position of a writing statement: its transaction, or its snapshot if it wrote nothing.

    Rows for items that were not written may have no transaction id, if PostgreSQL evaluated them before the first
    write.
    """
    position = position_of(rows[0])
    xid = next((row["xid"] for row in rows if row["xid"] is not None), None)
    return position if xid is None else CommitPosition(position.epoch, int(xid))


def users_of(row: asyncpg.Record) -> tuple[list[User], list[int]]:
    """Return the users of four parallel arrays, and the ids that have no user."""
    users, deleted = [], []
    columns = (row["user_ids"], row["user_names"], row["image_urls"], row["sort_keys"])
    for user_id, user_name, image_url, total_score in zip(*columns, strict=True):
        if total_score is None:
            deleted.append(user_id)
        else:
            users.append(User(user_id, user_name, image_url, total_score))
    return users, deleted
