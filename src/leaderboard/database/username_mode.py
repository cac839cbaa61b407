"""How usernames are compared in a database: checks it, and changes it while services run.

The table `username_mode` says it, for all processes. A constraint says it too: with `exact` no user has a key,
with `caseless` every user has one. So a process with the other setting cannot create or rename a user.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import asyncpg

from leaderboard.database.sql import load_queries
from leaderboard.errors import LockedOut, UsernamesDiffer
from leaderboard.usernames import Usernames, name_key

_BATCH = 5000
"""Users in one transaction. Above 20,000 the change log would write a barrier."""
_FEW = 500
"""The last users without keys get them while no other process writes."""
_TRIES = 20
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Twin:
    """A user whose name has the key of another user's name."""

    user_id: int
    user_name: str
    score: int
    """On the board `default`."""
    hidden: bool


@dataclass(frozen=True, slots=True)
class Twins:
    """Names that would be one name. `groups` are the users of the first of them, by key."""

    in_all: int = 0
    groups: dict[str, list[Twin]] = field(default_factory=dict)


async def check(connection: asyncpg.Connection, usernames: Usernames) -> None:
    """Raise UsernamesDiffer unless the database compares usernames in this way."""
    mode = await connection.fetchval(load_queries("username_mode")["mode"])
    if mode != usernames:
        raise UsernamesDiffer(
            f"USERNAMES is {usernames}, but this database compares usernames {mode}: set USERNAMES={mode}, or"
            f" change the database with `leaderboard usernames {usernames}`"
        )


async def check_before_migration(connection: asyncpg.Connection, usernames: Usernames) -> None:
    """Raise UsernamesDiffer as `check` does, but not for a database without users or without a mode."""
    sql = load_queries("username_mode")
    if await connection.fetchval(sql["has_mode"]) and await connection.fetchval(sql["has_users"]):
        await check(connection, usernames)


async def adopt(connection: asyncpg.Connection, usernames: Usernames) -> None:
    """Let a database without users compare usernames in this way. Raises UsernamesDiffer as `check` does."""
    sql = load_queries("username_mode")
    if await connection.fetchval(sql["mode"]) != usernames and not await connection.fetchval(sql["has_users"]):
        await UsernameSwitch(connection).change(usernames)
    await check(connection, usernames)


class UsernameSwitch:
    """Changes how usernames are compared. Owns the connection, which must be a session of PostgreSQL.

    If it is interrupted, names are still compared as before, and some users may have keys already. That harms
    nothing; the next change begins anew.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._sql = load_queries("username_mode")

    async def mode(self) -> Usernames:
        """Return how usernames are compared."""
        mode: Usernames = await self._connection.fetchval(self._sql["mode"])
        return mode

    async def find_twins(self, listed: int, progress: Callable[[int], None] = lambda _: None) -> Twins:
        """Return the users whose names would be one with `caseless`. Changes nothing.

        Those of `listed` names are returned, at most. `progress` is called with how many users have been read.
        """
        await self._connection.execute(self._sql["create_keys"])
        await self._connection.execute(self._sql["empty_keys"])
        last = read = 0
        columns = ("user_id", "user_name", "name_key")
        while rows := await self._connection.fetch(self._sql["next_users"], last, _BATCH):
            records = [(row["user_id"], row["user_name"], name_key(row["user_name"])) for row in rows]
            await self._connection.copy_records_to_table("username_keys", records=records, columns=columns)
            last, read = rows[-1]["user_id"], read + len(rows)
            progress(read)
        await self._connection.execute(self._sql["analyze_keys"])
        groups: dict[str, list[Twin]] = {}
        in_all = 0
        for row in await self._connection.fetch(self._sql["twins"], listed):
            in_all = row["in_all"]
            twin = Twin(row["user_id"], row["user_name"], row["total_score"], row["hidden"])
            groups.setdefault(row["name_key"], []).append(twin)
        return Twins(in_all, groups)

    async def change(
        self, usernames: Usernames, listed: int = 100, progress: Callable[[int], None] = lambda _: None
    ) -> Twins:
        """Compare usernames in this way from now on. With twins nothing is changed, and they are returned.

        Reads and writes go on meanwhile; writes of users wait while the last of them get their keys. `progress` is
        called as by `find_twins`. Raises LockedOut if another process changes it too, or others lock `users` all
        the time.
        """
        if not await self._connection.fetchval(self._sql["lock_switch"]):
            raise LockedOut("another process changes how usernames are compared")
        if await self.mode() == usernames:
            return Twins()
        if usernames == "exact":
            await self._forbid_keys()
            return Twins()
        for _ in range(_TRIES):
            twins = await self.find_twins(listed, progress)
            if twins.in_all:
                return twins
            try:
                await self._require_keys()
            except asyncpg.UniqueViolationError:
                # A twin was created meanwhile.
                await self._forbid_keys()
            else:
                return Twins()
        raise LockedOut("users are renamed or created all the time with names that are one; nothing was changed")

    async def _require_keys(self) -> None:
        await self._patiently(self._allow_both)
        await self._clear_keys()
        last = 0
        while rows := await self._connection.fetch(self._sql["next_users"], last, _BATCH):
            await self._set_keys(rows)
            last = rows[-1]["user_id"]
        # Users who were created or renamed meanwhile.
        while len(rows := await self._connection.fetch(self._sql["users_without_key"], _BATCH)) > _FEW:
            await self._set_keys(rows)
        await self._patiently(self._begin_caseless)
        await self._connection.execute(self._sql["validate_constraint"])

    async def _forbid_keys(self) -> None:
        await self._patiently(self._begin_exact)
        await self._clear_keys()
        await self._connection.execute(self._sql["validate_constraint"])

    async def _allow_both(self) -> None:
        await self._connection.execute(self._sql["drop_constraint"])

    async def _begin_caseless(self) -> None:
        await self._connection.execute(self._sql["stop_writers"])
        await self._set_keys(await self._connection.fetch(self._sql["users_without_key"], None))
        await self._connection.execute(self._sql["require_keys"])
        await self._connection.execute(self._sql["set_mode"], "caseless")

    async def _begin_exact(self) -> None:
        await self._connection.execute(self._sql["drop_constraint"])
        await self._connection.execute(self._sql["require_no_keys"])
        await self._connection.execute(self._sql["set_mode"], "exact")

    async def _patiently(self, change: Callable[[], Awaitable[None]]) -> None:
        """Make a change in one transaction, which is tried again if it has waited for a lock for a second."""
        for attempt in range(1, _TRIES + 1):
            try:
                async with self._connection.transaction():
                    await self._connection.execute(self._sql["limit_wait"])
                    await change()
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                if attempt == _TRIES:
                    raise LockedOut("other transactions lock the table `users` all the time") from error
                await asyncio.sleep(_PAUSE_S)
            else:
                return

    async def _set_keys(self, rows: Sequence[asyncpg.Record]) -> None:
        names = [row["user_name"] for row in rows]
        ids = [row["user_id"] for row in rows]
        await self._connection.execute(self._sql["set_keys"], ids, names, [name_key(name) for name in names])

    async def _clear_keys(self) -> None:
        while await self._connection.fetchval(self._sql["clear_keys"], _BATCH):
            pass
