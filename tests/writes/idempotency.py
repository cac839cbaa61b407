"""What the tests of idempotency keys share."""

from collections.abc import Callable

import asyncpg

from tests.system import ApiProcess

ONCE = ("", "a-key")
Serve = Callable[..., ApiProcess]


async def changes(db: asyncpg.Connection) -> int:
    """Returns the number of rows in the change log."""
    return int(await db.fetchval("SELECT count(*) FROM changes"))
