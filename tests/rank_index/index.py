"""A rank index with many checkpoints, and helpers that maintain and check it."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from leaderboard.app import database_from
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.rank_index import RankIndex, RankIndexInvalid
from leaderboard.model import Standing
from leaderboard.queries import StandingQuery
from leaderboard.tuning import LogTuning, RankIndexTuning, Tuning

USERS = 1000
WIDTH = 10

TUNING = RankIndexTuning(width=WIDTH, apply_after_s=0.0)
"""Many checkpoints on a small board, and every change is applied at once."""
PRUNE_NOW = LogTuning(keep_s=0)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    database = database_from(settings, Tuning(ranks=TUNING))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def add(db: asyncpg.Connection, scores: Sequence[int]) -> None:
    await db.execute(
        "INSERT INTO users (user_name, total_score) SELECT gen_random_uuid(), s FROM unnest($1::bigint[]) AS s",
        scores,
    )


async def set_score(db: asyncpg.Connection, user_id: int, score: int) -> None:
    await db.execute("UPDATE users SET total_score = $2 WHERE user_id = $1", user_id, score)


async def maintain(ranks: RankIndex) -> str:
    """Maintains the index once. Returns what was done."""
    state = await ranks.maintain()
    if state is None:
        return "conflict"
    if state.needs_repair:
        return await ranks.repair()
    return "log applied" if state.applied else "kept" if state.valid else "left"


async def rank(ranks: RankIndex, user_id: int, *, count: bool = False) -> int | None:
    """Returns the rank by the index, or with `count` by counting users if the index is not valid."""
    found = await ranks.standings([StandingQuery(user_id)], count=count)
    assert isinstance(found.value[0], Standing)
    return found.value[0].rank


async def is_valid(ranks: RankIndex) -> bool:
    try:
        await ranks.standings([StandingQuery(1)], count=False)
    except RankIndexInvalid:
        return False
    return True


async def sizes(db: asyncpg.Connection) -> list[int]:
    """Returns the number of users from each checkpoint to the next."""
    row = await db.fetchrow("SELECT counts, total FROM rank_index")
    assert row is not None
    return [after - before for before, after in itertools.pairwise([*row["counts"], row["total"]])]


async def assert_right(ranks: RankIndex, db: asyncpg.Connection) -> None:
    """Compares every checkpoint and every rank with the table. Meanwhile no user must change."""
    assert await ranks.recount_all() == []
    rows = await db.fetch("SELECT user_id, row_number() OVER (ORDER BY total_score DESC, user_id) FROM users")
    result = await ranks.standings([StandingQuery(user_id) for user_id, _ in rows], count=False)
    assert result is not None
    found = [standing.rank for standing in result.value if isinstance(standing, Standing)]
    assert found == [number for _, number in rows]


async def make_writes_of_the_index_wait(db: asyncpg.Connection) -> None:
    """Makes writes of the index wait until this session releases the advisory lock 77."""
    await db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN NEW; END';"
        "CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON rank_index FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    await db.execute("SELECT pg_advisory_lock(77)")


async def is_waited_for(db: asyncpg.Connection) -> object:
    return await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
