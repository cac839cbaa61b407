"""Turns rows of PostgreSQL into the types of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg

from leaderboard.board_rules import BoardRules, parse_stored, score_of, unscale
from leaderboard.database.connector import Connection
from leaderboard.errors import BoardNotFound, DatabaseReadOnly, DatabaseUnavailable, SeasonNotFound
from leaderboard.model import Standing, User, ranked
from leaderboard.queries import SeasonRef
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


def rules_of(row: asyncpg.Record, season: SeasonRef | None) -> BoardRules | None:
    """Return the rules of the board of a row, None for `default`. Raises BoardNotFound and SeasonNotFound."""
    if season is None:
        return None
    if row["rules"] is None:
        raise BoardNotFound(season.board)
    if row["season_id"] is None:
        raise SeasonNotFound(season.board, season.number or 0)
    return parse_stored(row["rules"])


def users_of(row: asyncpg.Record, rules: BoardRules | None = None) -> tuple[list[User], list[int]]:
    """Return the users of five parallel arrays, and the ids that have no user.

    With `rules`, a score is as clients of that board see it: a Decimal if the board has decimals.
    """
    users, deleted = [], []
    columns = (row["user_ids"], row["user_names"], row["image_urls"], row["sort_keys"], row["external_ids"])
    for user_id, user_name, image_url, sort_key, external_id in zip(*columns, strict=True):
        if sort_key is None:
            deleted.append(user_id)
        else:
            score: Any = sort_key if rules is None else unscale(rules, score_of(rules, sort_key))
            users.append(User(user_id, user_name, image_url, score, external_id))
    return users, deleted


def standings_of(row: asyncpg.Record, first_rank: int, rules: BoardRules | None) -> list[Standing]:
    """Return the users of five parallel arrays with ranks; `first_rank` is the first one's position.

    Where ranks are shared, `shared_rank` of the row is the first one's, and the others with its score have it too.
    """
    users = users_of(row, rules)[0]
    standings: list[Standing] = []
    for position, user in enumerate(users, first_rank):
        rank = position
        if rules is not None and rules.ranks == "shared":
            if not standings:
                rank = row["shared_rank"]
            elif user.total_score == standings[-1].total_score:
                rank = standings[-1].rank
        standings.append(ranked(rank, user))
    return standings
