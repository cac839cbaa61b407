"""Finds the rank of any user, at a cost that does not grow with its depth.

Counting all better users takes a second at two million users. The rank index stores how many users stand before
each of some thousand *checkpoints* as of one snapshot. A rank is the count at the last checkpoint before the user,
plus what came and went before that checkpoint since (from the change log), plus the users between the checkpoint
and the user, counted in the table. One statement reads all of it, so the rank is exact while others write.
docs/architecture.md explains how the index is kept up to date: apply the log, rebalance, build.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

import asyncpg

from leaderboard.database.connections import Connections
from leaderboard.database.connector import Connection, Isolation
from leaderboard.database.rows import AtSnapshot, one_row, position_of, users_of
from leaderboard.database.sql import load_queries
from leaderboard.model import NEIGHBOURS, Context, Page, Standing, ranked
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, StandingQuery
from leaderboard.tuning import RankIndexTuning

WRITER_LOCK = 7002
"""The class of the advisory locks of processes that write an index; a season has one each."""
_DEFAULT = 1
"""The season of the board `default`."""
_REPAIR_S = 600
"""The longest that building the index, or applying a long log, may take."""
_RECOUNTED_BUCKETS = 50


class RankIndexInvalid(Exception):
    """The rank index cannot be used now: it is not built, or too much has changed since."""


@dataclass(frozen=True, slots=True)
class IndexState:
    """What `apply_log` found, and whether it applied the log.

    `log_valid` is False if the log was restored from another server's dump. `valid`: readers could use the index.
    `pending`: log rows that were not applied. `locked`: no other process was writing the index.
    """

    log_valid: bool
    valid: bool
    pending: int
    locked: bool = True
    applied: bool = False

    @property
    def needs_repair(self) -> bool:
        """Whether the process that found this should call `repair`."""
        return self.log_valid and self.locked and not self.valid


Repair = Literal["log applied", "built", "left to another process"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The users from one checkpoint to the next: how many the index says, and how many were counted.

    `first` is the sort key and the user id of the checkpoint.
    """

    indexed: int
    counted: int
    first: tuple[int, int]


class RankIndex:
    """Reads ranks, and writes the table `rank_index`."""

    def __init__(self, connections: Connections, tuning: RankIndexTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("rank_index")
        self._rebalancing = False

    # Reading

    async def standings(
        self, queries: Sequence[StandingQuery | ContextQuery], *, count: bool
    ) -> AtSnapshot[list[Standing | Context | None]]:
        """Return a result for each query from one snapshot, None for an unknown user.

        If the index is not valid, counts all better users with `count`, and raises RankIndexInvalid without.
        """
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(
                self._sql["standings"],
                None,
                None,
                [query.user_id for query in queries],
                [NEIGHBOURS if isinstance(query, ContextQuery) else 0 for query in queries],
                self._tuning.max_pending,
                count,
            )
            position = position_of(rows[0])
        if not rows[0]["valid"] and not count:
            raise RankIndexInvalid
        return AtSnapshot([_standing(query, row) for query, row in zip(queries, rows, strict=True)], position)

    async def page(self, query: PageQuery | PageAroundQuery) -> AtSnapshot[Page]:
        """Return consecutive users with their ranks. Around a rank past an end of the board: that end."""
        async with self._connections.acquire() as connection:
            if isinstance(query, PageQuery):
                name, asked = "page_after", (None, None, *(query.after or (None, None)), query.limit)
            else:
                name, asked = "page_around", (None, None, query.rank, query.limit)
            row = await one_row(connection, self._sql[name], *asked, self._tuning.max_pending)
            users = [ranked(rank, user) for rank, user in enumerate(users_of(row)[0], row["rank"])]
            return AtSnapshot(Page(users, row["total"]), position_of(row))

    # Keeping it up to date

    async def maintain(self) -> IndexState | None:
        """Apply the log if enough is pending; None if another process did so at this moment."""
        try:
            async with self._connections.acquire("REPEATABLE READ") as connection:
                apply_from = 0 if self._rebalancing else self._tuning.apply_from
                return await self._apply_log(connection, self._tuning.max_pending, apply_from)
        except asyncpg.SerializationError:
            return None

    async def repair(self) -> Repair:
        """Make an invalid index valid. Raises DatabaseUnavailable after ten minutes."""
        async with asyncio.timeout(_REPAIR_S):
            try:
                async with self._repairing("REPEATABLE READ") as connection:
                    if (await self._apply_log(connection, self._tuning.max_applied, 0)).applied:
                        return "log applied"
            except asyncpg.SerializationError:
                return "left to another process"
            # Pruning the log keeps the rows of a season without an index that is being built.
            await self.discard()
            async with self._repairing("READ COMMITTED") as connection:
                return "built" if await self._build(connection) else "left to another process"

    async def build(self) -> bool:
        """Count all users; returns False if another process is writing the index."""
        async with asyncio.timeout(_REPAIR_S), self._repairing("READ COMMITTED") as connection:
            return await self._build(connection)

    async def _build(self, connection: Connection) -> bool:
        tuning = self._tuning
        built = await connection.fetchval(self._sql["build"], _DEFAULT, tuning.width, tuning.max_checkpoints, WRITER_LOCK)
        return built is not None

    async def _apply_log(self, connection: Connection, max_rows: int, apply_from: int) -> IndexState:
        tuning = self._tuning
        row = await one_row(
            connection, self._sql["apply_log"], _DEFAULT, max_rows, apply_from, tuning.apply_after_s, WRITER_LOCK
        )
        state = IndexState(row["log_valid"], row["valid"], row["pending"], row["locked"], row["applied"])
        if state.applied:
            # One call does a bounded part of the work; the next turn does more.
            self._rebalancing = (
                await connection.fetchval(self._sql["rebalance"], _DEFAULT, tuning.width, tuning.max_checkpoints) is not None
            )
        return state

    def _repairing(self, isolation: Isolation) -> AbstractAsyncContextManager[Connection]:
        return self._connections.dedicated({"statement_timeout": f"'{_REPAIR_S}s'"}, isolation)

    async def discard(self) -> None:
        """Delete the index, so that it is built again."""
        async with self._connections.acquire() as connection:
            await connection.execute(self._sql["discard"], _DEFAULT)

    # Auditing

    async def recount(self) -> list[Bucket]:
        """Count some buckets, and return those that differ; none if the index is not valid."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["recount"], _DEFAULT, self._tuning.max_pending, _RECOUNTED_BUCKETS)
        return [bucket for bucket in map(_bucket, rows) if bucket.indexed != bucket.counted]

    async def recount_all(self) -> list[Bucket] | None:
        """Count all users, and return the buckets that differ; None if the index is not valid."""
        async with asyncio.timeout(_REPAIR_S), self._repairing("READ COMMITTED") as connection:
            rows = await connection.fetch(self._sql["recount_all"], _DEFAULT, self._tuning.max_pending)
        if any(row["indexed"] is None for row in rows):
            return None
        return [_bucket(row) for row in rows]


def _standing(query: StandingQuery | ContextQuery, row: asyncpg.Record) -> Standing | Context | None:
    if row["rank"] is None:
        return None
    users = users_of(row)[0]
    mine = next(i for i, user in enumerate(users) if user.user_id == query.user_id)
    standings = [ranked(row["rank"] - mine + i, user) for i, user in enumerate(users)]
    if isinstance(query, StandingQuery):
        return standings[0]
    return Context(standings[mine], standings[:mine], standings[mine + 1 :], row["total"])


def _bucket(row: asyncpg.Record) -> Bucket:
    return Bucket(row["indexed"], row["counted"], (row["sort_key"], row["user_id"]))
