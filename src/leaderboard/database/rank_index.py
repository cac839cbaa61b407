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

from leaderboard.board_rules import BoardRules
from leaderboard.database.connections import Connections
from leaderboard.database.connector import Connection, Isolation
from leaderboard.database.rows import AtSnapshot, one_row, position_of, rules_of, standings_of
from leaderboard.database.sql import load_queries
from leaderboard.model import NEIGHBOURS, Context, Page, Standing
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, SeasonRef, StandingQuery
from leaderboard.tuning import RankIndexTuning

WRITER_LOCK = 7002
"""The class of the advisory locks of processes that write an index; a season has one each."""
DEFAULT_SEASON = 1
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


@dataclass(frozen=True, slots=True)
class IndexedSeason:
    """A season that has a rank index: its id, the name of its board, and its number there."""

    season_id: int
    board: str
    number: int


class RankIndex:
    """Reads ranks, and writes the table `rank_index`."""

    def __init__(self, connections: Connections, tuning: RankIndexTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("rank_index")
        self._rebalancing: set[int] = set()
        """The seasons whose checkpoints another turn shall add or remove."""

    @property
    def max_pending(self) -> int:
        """The most log rows that a rank reads which the index lacks; with more, all better users are counted."""
        return self._tuning.max_pending

    # Reading

    async def standings(
        self, queries: Sequence[StandingQuery | ContextQuery], *, count: bool
    ) -> AtSnapshot[list[Standing | Context | None]]:
        """Return a result for each query from one snapshot, None for a user without an entry.

        The queries are about one season. If its index is not valid, counts all better entries with `count`, and
        raises RankIndexInvalid without. Raises BoardNotFound and SeasonNotFound.
        """
        season = queries[0].season
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(
                self._sql["standings"],
                *_asked(season),
                [query.user_id for query in queries],
                [NEIGHBOURS if isinstance(query, ContextQuery) else 0 for query in queries],
                self._tuning.max_pending,
                count,
            )
            position = position_of(rows[0])
        rules = rules_of(rows[0], season)
        if not rows[0]["valid"] and not count:
            raise RankIndexInvalid
        results = [_standing(query, row, rules) for query, row in zip(queries, rows, strict=True)]
        return AtSnapshot(results, position)

    async def page(self, query: PageQuery | PageAroundQuery) -> AtSnapshot[Page]:
        """Return consecutive users with their ranks. Around a rank past an end of the board: that end.

        Raises BoardNotFound and SeasonNotFound.
        """
        asked: tuple[int | None, ...]
        if isinstance(query, PageQuery):
            name, asked = "page_after", query.after or (None, None)
        else:
            name, asked = "page_around", (query.rank,)
        async with self._connections.acquire() as connection:
            row = await one_row(
                connection, self._sql[name], *_asked(query.season), *asked, query.limit, self._tuning.max_pending
            )
        standings = standings_of(row, row["rank"], rules_of(row, query.season))
        keys = row["sort_keys"]
        # Positions are compared, because a rank may be shared with users of other pages.
        more = keys and row["rank"] + len(keys) <= row["total"]
        end = (keys[-1], row["user_ids"][-1]) if more else None
        return AtSnapshot(Page(standings, row["total"], end), position_of(row))

    # Keeping it up to date

    async def changed_seasons(self) -> Sequence[int]:
        """Return the seasons, besides `default`, that have an index and log rows."""
        return await self._seasons("changed_seasons")

    async def unindexed_seasons(self) -> Sequence[int]:
        """Return the seasons, besides `default`, that need an index and have no valid one."""
        return await self._seasons("unindexed_seasons")

    async def _seasons(self, name: str) -> Sequence[int]:
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql[name])
        return [row["season_id"] for row in rows]

    async def maintain(self, season_id: int = DEFAULT_SEASON) -> IndexState | None:
        """Apply the log if enough is pending; None if another process did so at this moment."""
        try:
            async with self._connections.acquire("REPEATABLE READ") as connection:
                apply_from = 0 if season_id in self._rebalancing else self._tuning.apply_from
                return await self._apply_log(connection, season_id, self._tuning.max_pending, apply_from)
        except asyncpg.SerializationError:
            return None

    async def repair(self, season_id: int = DEFAULT_SEASON) -> Repair:
        """Make an invalid index valid. Raises DatabaseUnavailable after ten minutes."""
        async with asyncio.timeout(_REPAIR_S):
            try:
                async with self._repairing("REPEATABLE READ") as connection:
                    if (await self._apply_log(connection, season_id, self._tuning.max_applied, 0)).applied:
                        return "log applied"
            except asyncpg.SerializationError:
                return "left to another process"
            # Pruning the log keeps the rows of a season without an index that is being built.
            await self.discard(season_id)
            async with self._repairing("READ COMMITTED") as connection:
                return "built" if await self._build(connection, season_id) else "left to another process"

    async def build(self, season_id: int = DEFAULT_SEASON) -> bool:
        """Count all entries; returns False if another process writes the index, or if the season was deleted."""
        async with asyncio.timeout(_REPAIR_S), self._repairing("READ COMMITTED") as connection:
            return await self._build(connection, season_id)

    async def _build(self, connection: Connection, season_id: int) -> bool:
        tuning = self._tuning
        try:
            built = await connection.fetchval(
                self._sql["build"], season_id, tuning.width, tuning.max_checkpoints, WRITER_LOCK
            )
        except asyncpg.ForeignKeyViolationError:
            return False
        return built is not None

    async def _apply_log(
        self, connection: Connection, season_id: int, max_rows: int, apply_from: int
    ) -> IndexState:
        tuning = self._tuning
        row = await one_row(
            connection, self._sql["apply_log"], season_id, max_rows, apply_from, tuning.apply_after_s, WRITER_LOCK
        )
        state = IndexState(row["log_valid"], row["valid"], row["pending"], row["locked"], row["applied"])
        if state.applied:
            # One call does a bounded part of the work; the next turn does more.
            rebalanced = await connection.fetchval(
                self._sql["rebalance"], season_id, tuning.width, tuning.max_checkpoints
            )
            if rebalanced is None:
                self._rebalancing.discard(season_id)
            else:
                self._rebalancing.add(season_id)
        return state

    def _repairing(self, isolation: Isolation) -> AbstractAsyncContextManager[Connection]:
        return self._connections.dedicated({"statement_timeout": f"'{_REPAIR_S}s'"}, isolation)

    async def discard(self, season_id: int = DEFAULT_SEASON) -> None:
        """Delete the index, so that it is built again."""
        async with self._connections.acquire() as connection:
            await connection.execute(self._sql["discard"], season_id)

    # Auditing

    async def indexed(self) -> Sequence[IndexedSeason]:
        """Return the seasons of boards but `default` that have a rank index."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["indexed"])
        return [IndexedSeason(row["season_id"], row["name"], row["number"]) for row in rows]

    async def recount(self, season_id: int = DEFAULT_SEASON) -> list[Bucket]:
        """Count some buckets, and return those that differ; none if the index is not valid."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(
                self._sql["recount"], season_id, self._tuning.max_pending, _RECOUNTED_BUCKETS
            )
        return [bucket for bucket in map(_bucket, rows) if bucket.indexed != bucket.counted]

    async def recount_all(self, season_id: int = DEFAULT_SEASON) -> list[Bucket] | None:
        """Count all users, and return the buckets that differ; None if the index is not valid."""
        async with asyncio.timeout(_REPAIR_S), self._repairing("READ COMMITTED") as connection:
            rows = await connection.fetch(self._sql["recount_all"], season_id, self._tuning.max_pending)
        if any(row["indexed"] is None for row in rows):
            return None
        return [_bucket(row) for row in rows]


def _asked(season: SeasonRef | None) -> tuple[str | None, int | None]:
    """Return the first two arguments of a statement about a season."""
    return (None, None) if season is None else (season.board, season.number)


def _standing(
    query: StandingQuery | ContextQuery, row: asyncpg.Record, rules: BoardRules | None
) -> Standing | Context | None:
    if row["rank"] is None:
        return None
    mine = row["user_ids"].index(query.user_id)
    standings = standings_of(row, row["rank"] - mine, rules)
    if isinstance(query, StandingQuery):
        return standings[0]
    return Context(standings[mine], standings[:mine], standings[mine + 1 :], row["total"])


def _bucket(row: asyncpg.Record) -> Bucket:
    return Bucket(row["indexed"], row["counted"], (row["sort_key"], row["user_id"]))
