"""The users with a prefix are a range of the index that keeps names unique, with any collation of the database."""

import asyncpg
import pytest

from leaderboard.config import Settings
from leaderboard.database.sql import load_queries
from tests.system import connect

pytestmark = pytest.mark.anyio


async def explained(db: asyncpg.Connection) -> str:
    """Returns the plan of `find_users` that is made once for all arguments."""
    await db.execute("SET plan_cache_mode = force_generic_plan")
    await db.execute(f"PREPARE found (text, text, text, bigint, boolean) AS {load_queries('users')['find_users']}")
    rows = await db.fetch("EXPLAIN EXECUTE found ('user 1', 'user 2', '', 100, false)")
    return "\n".join(row[0] for row in rows)


async def test_names_are_sorted_by_code_point(settings: Settings) -> None:
    """With another collation, a prefix would not be a range."""
    db = await connect(settings)
    try:
        await db.execute("INSERT INTO users (user_name) VALUES ('a')")
        assert await db.fetchval("SELECT pg_collation_for(user_name) FROM users") == '"C"'
    finally:
        await db.close()


async def test_a_prefix_is_a_range_of_the_index_of_names(settings: Settings) -> None:
    db = await connect(settings)
    try:
        await db.execute("INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 20000) AS n")
        await db.execute("VACUUM ANALYZE users")
        plan = await explained(db)
        assert "Index Scan using users_user_name_key" in plan
        (condition,) = (line for line in plan.splitlines() if "Index Cond" in line)
        assert all(part in condition for part in ("user_name >= $1", "user_name < $2", "user_name > $3"))
        # Not all that match are sorted, only those that are returned.
        assert plan.index("Sort") < plan.index("Limit")
        assert "Sort" not in plan[plan.index("Limit") :]
    finally:
        await db.close()
