"""Brings the schema to this program's version: numbered files, forward only, every step recorded.

Two rules come from PostgreSQL. `CREATE INDEX CONCURRENTLY` cannot run in a transaction. So a step that builds an
index runs alone, and first drops the invalid index of an interrupted try. It also waits for every older
transaction to end, so a second migrator that waits for the lock in a statement would deadlock with it: the lock is
polled instead.

The lock belongs to a transaction on its own connection, because there is no session behind a pooler. Between its
statements that transaction has no snapshot, so building an index does not wait for it.
"""

import asyncio
from collections.abc import Callable, Mapping

import asyncpg

from leaderboard.database.sql import Step, load_queries, load_steps
from leaderboard.errors import DatabaseUnavailable, SchemaOutdated

_LOCK_KEY = 0x1EADE2B0A2D


async def migrate(
    connection: asyncpg.Connection,
    lock: asyncpg.Connection,
    report: Callable[[str], None],
    patience_s: float = 60,
) -> int:
    """Apply the missing steps and return how many; calls `report` with a line for each.

    `lock` is another connection, used for the lock only. Waits at most `patience_s` for another migrator, then
    raises DatabaseUnavailable.
    """
    sql = load_queries("schema")
    deadline = asyncio.get_running_loop().time() + patience_s
    await lock.execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 0")
    # As text: a prepared statement's portal would keep its snapshot, for which building an index waits.
    while await lock.execute(f"SELECT WHERE pg_try_advisory_xact_lock({_LOCK_KEY})") != "SELECT 1":
        if asyncio.get_running_loop().time() > deadline:
            raise DatabaseUnavailable(f"another migration has been running for {patience_s:.0f} s")
        await asyncio.sleep(0.1)
    try:
        await connection.execute(sql["create_record"])
        steps = await _missing(connection)
        for step in steps:
            await apply(connection, step, sql)
            report(f"applied {step.version:04d} {step.name}, step {step.step}")
        return len(steps)
    finally:
        await lock.execute("COMMIT")


async def check(connection: asyncpg.Connection) -> None:
    """Raise SchemaOutdated unless every step of this program is applied. A newer schema is accepted."""
    sql = load_queries("schema")
    missing = await _missing(connection) if await connection.fetchval(sql["has_record"]) else load_steps()
    if missing:
        raise SchemaOutdated(
            f"the database schema lacks {missing[0].version:04d}_{missing[0].name}; run `leaderboard migrate`"
        )


async def _missing(connection: asyncpg.Connection) -> list[Step]:
    rows = await connection.fetch(load_queries("schema")["applied"])
    applied = {(row["version"], row["step"]) for row in rows}
    return [step for step in load_steps() if (step.version, step.step) not in applied]


async def apply(connection: asyncpg.Connection, step: Step, sql: Mapping[str, str]) -> None:
    """Apply one step, and record it."""
    record = (step.version, step.step, step.name)
    if step.builds_index is None:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute(step.sql)
            await connection.execute(sql["record"], *record)
        return
    valid = await connection.fetchval(sql["index_is_valid"], step.builds_index)
    if valid is False:
        await connection.execute(f'DROP INDEX CONCURRENTLY "{step.builds_index}"')
    if not valid:
        await connection.execute(step.sql)
    await connection.execute(sql["record"], *record)
