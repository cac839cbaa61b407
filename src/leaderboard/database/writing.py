"""Runs a writing statement: tries again after a conflict, and tells apart what a failure means."""

from enum import Enum
from typing import Any

import asyncpg

from leaderboard.database.connections import Connections
from leaderboard.database.failures import LOST
from leaderboard.errors import (
    DatabaseRefused,
    DatabaseUnavailable,
    IdempotencyKeyInUse,
    LockedOut,
    OutcomeUnknown,
    Overloaded,
)

NO_LIMIT = "0"
"""PostgreSQL's `lock_timeout` for waiting without a limit."""
_KEY_CONSTRAINT = "idempotent_writes_key"


class NotWritten(Enum):
    """Why one item of a batch was not written."""

    UNKNOWN_USER = "unknown user"
    LOCKED = "another transaction has locked the row"
    NAME_TAKEN = "name taken"
    ID_TAKEN = "external id taken"
    ID_FIXED = "the user has another external id"
    AGAIN = "another write was in the way, which the next try will see"


async def write(connections: Connections, attempts: int, sql: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run a writing statement and return its rows; at most `attempts` times if it collides with others.

    Raises LockedOut after its lock timeout, IdempotencyKeyInUse, Overloaded, DatabaseRefused,
    DatabaseUnavailable if nothing was written, and OutcomeUnknown if the connection was lost meanwhile.
    """
    for attempt in range(1, attempts + 1):
        sent = False
        try:
            async with connections.acquire() as connection:
                sent = True
                return await connection.fetch(sql, *arguments)
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
            if attempt == attempts:
                raise Overloaded(f"this write collided with others {attempts} times") from error
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != _KEY_CONSTRAINT:
                raise DatabaseRefused(f"PostgreSQL refused: {error}") from error
            raise IdempotencyKeyInUse("another request with this idempotency key was faster") from error
        except asyncpg.LockNotAvailableError as error:
            if _KEY_CONSTRAINT in (error.context or ""):
                raise IdempotencyKeyInUse("another request with this idempotency key is under way") from error
            raise LockedOut("another transaction has locked what this write changes") from error
        except DatabaseUnavailable as error:
            if sent and isinstance(error.__cause__, (*LOST, TimeoutError)):
                raise OutcomeUnknown(
                    "the connection to PostgreSQL was lost before the write was confirmed"
                ) from error
            raise
    raise AssertionError("unreachable")
