"""How the rows of PostgreSQL's answers become the nouns of the domain."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg

from leaderboard.errors import TruthReadOnly, TruthUnavailable
from leaderboard.model import User
from leaderboard.snapshot import Moment, Snapshot

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Seen(Generic[T_co]):
    """An answer and the moment of truth it was read at."""

    value: T_co
    moment: Moment


async def one_row(connection: Any, sql: str, *arguments: Any) -> asyncpg.Record:
    """The row of a statement that always returns one."""
    row: asyncpg.Record | None = await connection.fetchrow(sql, *arguments)
    if row is None:
        raise TruthUnavailable("a row that belongs to the schema is missing; was log_state emptied by hand?")
    return row


def moment_of(row: asyncpg.Record) -> Moment:
    """The moment that a statement was executed at. Raises TruthReadOnly on a standby."""
    if row["epoch"] is None:
        raise TruthReadOnly("this PostgreSQL server is a standby; only a primary can serve as truth")
    return Moment(row["epoch"], Snapshot.parse(row["snapshot"]))


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
