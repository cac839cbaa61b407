"""Views that follow the table by the change log, and writers that change the table step by step."""

from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from leaderboard.database.change_log import ChangeLog, Changes
from leaderboard.snapshot import Snapshot
from leaderboard.tuning import LogTuning, RankIndexTuning
from tests.system import OneConnection

PRUNE_NOW = LogTuning(keep_s=0)

BARRIER = (None, None, None)
PLENTY = 1_000_000

Row = tuple[str, str | None, int]


async def users_in(connection: asyncpg.Connection) -> dict[int, Row]:
    rows = await connection.fetch("SELECT user_id, user_name, image_url, total_score FROM users")
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


@dataclass
class View:
    """The users as of a snapshot, all or those with at least a score. Only `catch_up` changes them."""

    snapshot: Snapshot
    users: dict[int, Row]
    floor: int | None = None
    caught_up: int = field(default=0, compare=False)
    reloaded: int = field(default=0, compare=False)

    def holds(self, score: int) -> bool:
        return self.floor is None or score >= self.floor

    async def catch_up(self, connection: asyncpg.Connection) -> None:
        """Catches up, or else reads all users, and compares with the table in the same snapshot."""
        async with connection.transaction(isolation="repeatable_read"):
            changes = await log_on(connection).changes_since(self.snapshot, self.floor, PLENTY)
            table = await users_in(connection)
        expected = {user_id: row for user_id, row in table.items() if self.holds(row[2])}
        assert changes.position.snapshot.covers(self.snapshot)
        if changes.reaches:
            self.caught_up += 1
            self._apply(changes)
            assert self.users == expected, (self.snapshot, changes)
        else:
            self.reloaded += 1
            self.users = expected
        self.snapshot = changes.position.snapshot

    def _apply(self, changes: Changes) -> None:
        for user in changes.changed:
            if self.holds(user.total_score):
                self.users[user.user_id] = (user.user_name, user.image_url, user.total_score)
            else:
                self.users.pop(user.user_id, None)
        for user_id in changes.deleted:
            self.users.pop(user_id, None)


def log_on(connection: asyncpg.Connection) -> ChangeLog:
    """Returns the change log as read on this connection."""
    return ChangeLog(cast("Any", OneConnection(connection)), RankIndexTuning())


async def new_view(connection: asyncpg.Connection, floor: int | None) -> View:
    view = View(Snapshot(3, 3), {}, floor)
    async with connection.transaction(isolation="repeatable_read"):
        changes = await log_on(connection).changes_since(view.snapshot, floor, PLENTY)
        view.users = {i: row for i, row in (await users_in(connection)).items() if view.holds(row[2])}
    view.snapshot = changes.position.snapshot
    return view


IDS = range(1, 7)
SCORES = range(8)


class Writer:
    """A connection that starts, ends and rolls back transactions, and changes users, one step at a time.

    It skips a user whose advisory lock another writer holds, so that writers never block each other.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._savepoints = 0
        self._open = False

    async def do(self, action: str, user_id: int, score: int) -> None:
        match action:
            case "commit" | "roll back" if self._open:
                await self._connection.execute("COMMIT" if action == "commit" else "ROLLBACK")
                self._open, self._savepoints = False, 0
            case "savepoint" if self._open:
                self._savepoints += 1
                await self._connection.execute(f"SAVEPOINT s{self._savepoints}")
            case "release" if self._savepoints:
                await self._connection.execute(f"RELEASE s{self._savepoints}")
                self._savepoints -= 1
            case "undo" if self._savepoints:
                await self._connection.execute(f"ROLLBACK TO s{self._savepoints}")
            case "change" | "change alone":
                await self._change(user_id, score, alone=action == "change alone")

    async def _change(self, user_id: int, score: int, *, alone: bool) -> None:
        mine = not self._open
        if mine:
            await self._connection.execute("BEGIN")
            self._open = True
        if await self._connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", user_id):
            if score == 0:
                await self._connection.execute("DELETE FROM users WHERE user_id = $1", user_id)
            else:
                await self._connection.execute(
                    "INSERT INTO users (user_id, user_name, total_score) VALUES ($1::int, 'user ' || $1::int, $2)"
                    " ON CONFLICT (user_id) DO UPDATE SET total_score = excluded.total_score",
                    user_id,
                    score,
                )
        if mine and alone:
            await self.do("commit", 0, 0)


actions = st.sampled_from(
    ["change", "change", "change", "change alone", "commit", "commit", "roll back", "savepoint", "undo", "release"]
)
steps = st.tuples(st.integers(0, 2), actions, st.sampled_from(IDS), st.sampled_from(SCORES))
schedules = st.lists(steps, min_size=15, max_size=40)
schedule_settings = hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def end_all(writers: list[Writer]) -> None:
    for writer in writers:
        await writer.do("roll back", 0, 0)


async def log_length(db: asyncpg.Connection) -> int:
    return int(await db.fetchval("SELECT count(*) FROM changes"))
