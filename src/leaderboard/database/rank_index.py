"""The rank of anybody, at a cost that does not grow with how deep it is.

To count everybody better takes a second at two million users. So the *rank index* keeps, for *fences* some hundred
users apart in the order of the board, how many users stood before each as of one snapshot. A rank is then

    the count at the last fence before the user
    + what has come and gone before that fence since the index's snapshot, which the change log tells
    + the users between the fence and the user, counted in `users` itself,

and these three, the neighbours and the total of users are read by one statement, so that they are of one instant:
exact, whatever is being written meanwhile. Nobody who writes has to touch a counter that others want too; the log,
which is there for the cache as well, is the difference between the index and the present.

The index is one row. What follows keeps it good, all of it in the background and by any process:

  *fold*    Under load some times a second, else every two seconds, the counts are moved to the present: the log
            rows that the index does not see are added to it, and its snapshot is replaced. A count is a sum, not a
            state, so each change must be added exactly once: what is added is what the old snapshot does not see
            and the new one sees.
  *refit*   After a fold, fences are set into what has grown and taken out where few are left, as users come or
            scores move. At twenty thousand fences their distance grows instead. What is counted for a new fence
            is right only in the snapshot that the other counts are of, so both run in one REPEATABLE READ
            transaction, which fails (40001) if somebody else has folded since.
  *build*   Everything is counted, by one statement, while reads and writes go on: when there is no index, when the
            log says only that too much changed to be listed (a barrier), and when a fold would lack rows or have
            too many. What was written meanwhile is then folded at once, however much it is.

Whether the index may be used, its reader checks in the same statement. It was written here and did not come with a
dump (`written_here`); nothing has been deleted from the log that it does not see (`pruned`); there is no barrier
among what it does not see, and less than MOST_UNFOLDED rows. Unlike the cache it need not mind which life of the
database this is: the transaction that wrote it came after everything that its snapshot sees, so where the row
survives a crash, that does. While the index cannot be used, everybody better is counted.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg

from leaderboard.database.connections import Connection, Connections, Isolation
from leaderboard.database.rows import AtSnapshot, one_row, position_of, users_of
from leaderboard.database.sql import load_queries
from leaderboard.model import (
    NEIGHBOURS,
    Context,
    ContextQuery,
    Page,
    PageQuery,
    PageQuestion,
    Standing,
    StandingQuery,
    ranked,
)

WIDTH = 200
"""Users from one fence to the next: so many rows of an index are counted for a rank, on average half of them."""
MOST_FENCES = 20_000
"""About so many fences there are at most; their distance grows with the board instead."""
MOST_UNFOLDED = 50_000
"""With so many log rows to read, everything is counted instead."""
MOST_FOLDED = 2_000_000
"""With so many to fold, the index is built anew. What is written while it is built has to be less."""
FOLD_FROM = 500
"""So many log rows that are not folded are worth a fold, or a twentieth of the fences."""
FOLD_AFTER_S = 2.0
"""Fewer are folded when the last fold was so long ago, because the log is not pruned of them before."""
LOCK_KEY = 0x1EADE2B0A4D
"""PostgreSQL's advisory lock of those who write the index; whoever prunes the log takes it shared."""
_REPAIR_S = 600
"""How long building, or folding very much, may take."""
_RECOUNTED = 50
"""Buckets that an audit counts."""


@dataclass(frozen=True, slots=True)
class Tended:
    """What one turn of keeping the index found, and whether it folded.

    Not `log_valid`: the log came with a dump and has to be emptied first. `usable`: readers could use the index
    before this turn; `unfolded`: how many log rows it lacked. `locked`: nobody else was at it.
    """

    log_valid: bool
    usable: bool
    unfolded: int
    locked: bool = True
    folded: bool = False

    @property
    def wants_repair(self) -> bool:
        """Whether `repair` is called for, by whoever found this."""
        return self.log_valid and self.locked and not self.usable


Repair = Literal["folded", "built", "left"]
"""Left: somebody else is at it."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The users from one fence to the next, as the index has it and as they were counted.

    `first` is the place (score, id) of the fence.
    """

    said: int
    found: int
    first: tuple[int, int]


class RankIndex:
    """Ranks, and what keeps them fast."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._sql = load_queries("rank")
        self._refitting = False

    # Questions

    async def standings(
        self, questions: Sequence[StandingQuery | ContextQuery], *, count: bool
    ) -> AtSnapshot[list[Standing | Context | None]] | None:
        """For each question its answer, None where there is no such user; all of one moment.

        When the index cannot be used: None, or with `count` the same, by counting everybody better.
        """
        reaches = [NEIGHBOURS if isinstance(question, ContextQuery) else 0 for question in questions]
        async with self._connections.pooled() as connection:
            rows = await connection.fetch(
                self._sql["standings"],
                [question.user_id for question in questions],
                reaches,
                MOST_UNFOLDED,
                count,
            )
            moment = position_of(rows[0])
        if not rows[0]["usable"] and not count:
            return None
        return AtSnapshot([_answer(question, row) for question, row in zip(questions, rows, strict=True)], moment)

    async def page(self, question: PageQuestion) -> AtSnapshot[Page]:
        """Some users in a row, with their ranks. Around a rank past an end of the board: that end."""
        async with self._connections.pooled() as connection:
            if isinstance(question, PageQuery):
                after = question.after or (None, None)
                row = await one_row(connection, self._sql["page_after"], *after, question.limit, MOST_UNFOLDED)
            else:
                asked = (question.rank, question.limit)
                row = await one_row(connection, self._sql["page_around"], *asked, MOST_UNFOLDED)
            return AtSnapshot(Page(_ranked(row), row["total"]), position_of(row))

    # What keeps it good

    async def tend(self) -> Tended | None:
        """Fold if it is called for; None if somebody else did at this moment."""
        try:
            async with self._connections.pooled("REPEATABLE READ") as connection:
                return await self._fold(connection, MOST_UNFOLDED, 0 if self._refitting else FOLD_FROM)
        except asyncpg.SerializationError:
            return None

    async def repair(self) -> Repair:
        """Make an index that cannot be used one that can; within ten minutes, or DatabaseUnavailable is raised."""
        async with asyncio.timeout(_REPAIR_S):
            try:
                async with self._repairing("REPEATABLE READ") as connection:
                    if (await self._fold(connection, MOST_FOLDED, 0)).folded:
                        return "folded"
            except asyncpg.SerializationError:
                return "left"
            async with self._repairing("READ COMMITTED") as connection:
                return "built" if await self._build(connection) else "left"

    async def build(self) -> bool:
        """Count everything; False if somebody else is writing the index."""
        async with asyncio.timeout(_REPAIR_S), self._repairing("READ COMMITTED") as connection:
            return await self._build(connection)

    async def _build(self, connection: asyncpg.Connection) -> bool:
        return await connection.fetchval(self._sql["build"], WIDTH, MOST_FENCES, LOCK_KEY) is not None

    async def _fold(self, connection: Any, most: int, fold_from: int) -> Tended:
        row = await one_row(connection, self._sql["fold"], most, fold_from, FOLD_AFTER_S, LOCK_KEY)
        tended = Tended(row["log_valid"], row["usable"], row["unfolded"], row["locked"], row["folded"])
        if tended.folded:
            refitted = await connection.fetchval(self._sql["refit"], WIDTH, MOST_FENCES)
            # It goes only so far at once.
            self._refitting = refitted is not None
        return tended

    def _repairing(self, isolation: Isolation) -> AbstractAsyncContextManager[Connection]:
        return self._connections.alone({"statement_timeout": f"'{_REPAIR_S}s'"}, isolation)

    async def discard(self) -> None:
        """Throw the index away, so that it is built anew."""
        async with self._connections.pooled() as connection:
            await connection.execute(self._sql["discard"])

    # Auditing

    async def recount(self) -> list[Bucket]:
        """Count some buckets, and return where the index is wrong. Counts none when it cannot be used."""
        async with self._connections.pooled() as connection:
            rows = await connection.fetch(self._sql["recount"], MOST_UNFOLDED, _RECOUNTED)
        return [bucket for bucket in map(_bucket, rows) if bucket.said != bucket.found]

    async def recount_all(self) -> list[Bucket] | None:
        """Count everybody, and return where the index is wrong; None when it cannot be used."""
        async with asyncio.timeout(_REPAIR_S), self._repairing("READ COMMITTED") as connection:
            rows = await connection.fetch(self._sql["recount_all"], MOST_UNFOLDED)
        if any(row["said"] is None for row in rows):
            return None
        return [_bucket(row) for row in rows]


def _answer(question: StandingQuery | ContextQuery, row: asyncpg.Record) -> Standing | Context | None:
    if row["rank"] is None:
        return None
    users = users_of(row)[0]
    mine = next(i for i, user in enumerate(users) if user.user_id == question.user_id)
    standings = [ranked(row["rank"] - mine + i, user) for i, user in enumerate(users)]
    if isinstance(question, StandingQuery):
        return standings[0]
    return Context(standings[mine], standings[:mine], standings[mine + 1 :], row["total"])


def _ranked(row: asyncpg.Record) -> list[Standing]:
    return [ranked(rank, user) for rank, user in enumerate(users_of(row)[0], row["rank"])]


def _bucket(row: asyncpg.Record) -> Bucket:
    return Bucket(row["said"], row["found"], (row["total_score"], row["user_id"]))
