"""What the driver raises when PostgreSQL fails, and the errors of this program that stand for it.

| the driver raises | becomes |
|---|---|
| LOST, NOT_NOW, TimeoutError | DatabaseUnavailable |
| ReadOnlySQLTransactionError | DatabaseReadOnly |
| CONFLICTS | stays as it is: the caller can try again |
| CheckViolationError of `users_name_key_mode` | UsernamesDiffer |
| any other PostgresError | DatabaseRefused |
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from leaderboard.errors import DatabaseReadOnly, DatabaseRefused, DatabaseUnavailable, UsernamesDiffer

_MODE_CONSTRAINT = "users_name_key_mode"

LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # The server has ended the session, and the connection's end has not arrived yet.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
)
"""The connection is gone."""

CONFLICTS = (
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
)
"""Another transaction was in the way."""

NOT_NOW = (
    asyncpg.InsufficientResourcesError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedTableError,
)
"""The server has no room, or no schema yet."""


@contextmanager
def while_connecting() -> Iterator[None]:
    """Turn every error of the server into DatabaseUnavailable."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be connected to: {error}") from error


@asynccontextmanager
async def while_using() -> AsyncIterator[None]:
    """Turn the driver's errors into those of this program, by the table above."""
    try:
        yield
    except TimeoutError as error:
        raise DatabaseUnavailable("PostgreSQL did not answer in time") from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise DatabaseReadOnly(f"PostgreSQL takes no writes: {error}") from error
    except (*LOST, *NOT_NOW) as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be used: {error}") from error
    except CONFLICTS:
        raise
    except asyncpg.PostgresError as error:
        if isinstance(error, asyncpg.CheckViolationError) and error.constraint_name == _MODE_CONSTRAINT:
            raise UsernamesDiffer(
                "the database compares usernames in the other way; restart this process with its USERNAMES"
            ) from error
        raise DatabaseRefused(f"PostgreSQL refused: {error}") from error
