"""How the rows of PostgreSQL's answers become the nouns of the domain."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg

from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.model import User
from leaderboard.snapshot import Snapshot, SnapshotPosition

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class AtSnapshot(Generic[T_co]):
    """An answer and the moment of truth it was read at."""

    value: T_co
    position: SnapshotPosition


async def one_row(connection: Any, sql: str, *arguments: Any) -> asyncpg.Record:
    """The row of a statement that always returns one."""
    row: asyncpg.Record | None = await connection.fetchrow(sql, *arguments)
    if row is None:
        raise DatabaseUnavailable("a row that belongs to the schema is missing; was log_state emptied by hand?")
    return row


def position_of(row: asyncpg.Record) -> SnapshotPosition:
    """The moment that a statement was executed at. Raises DatabaseReadOnly on a standby."""
    if row["epoch"] is None:
        raise DatabaseReadOnly("this PostgreSQL server is a standby; only a primary can serve as truth")
    return SnapshotPosition(row["epoch"], Snapshot.parse(row["snapshot"]))


def users_of(row: asyncpg.Record) -> tuple[list[User], list[int]]:
    """The users of four arrays that run in step, and the ids that have no user."""
    users, gone = [], []
    columns = (row["user_ids"], row["user_names"], row["image_urls"], row["total_scores"])
    for user_id, user_name, image_url, total_score in zip(*columns, strict=True):
        if total_score is None:
            gone.append(user_id)
        else:
            users.append(User(user_id, user_name, image_url, total_score))
    return users, gone
