"""Reads the best users, and creates users."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from leaderboard.database.connections import Connections
from leaderboard.database.idempotency_keys import IdempotencyKey
from leaderboard.database.rows import (
    AtSnapshot,
    Committed,
    committed_position,
    one_row,
    position_of,
    rules_of,
    standings_of,
    users_of,
)
from leaderboard.database.sql import load_queries
from leaderboard.database.writing import NotWritten, write
from leaderboard.errors import DatabaseRefused
from leaderboard.model import Account, ExternalId, Standing, User
from leaderboard.ordering import place
from leaderboard.queries import SeasonRef
from leaderboard.snapshot import SnapshotPosition
from leaderboard.tuning import Tuning
from leaderboard.usernames import KeyOf, no_key, prefix_key

_LAST_CHARACTER = chr(0x10FFFF)


class NewUser(msgspec.Struct, frozen=True):
    """A user to create."""

    user_name: str
    image_url: str | None
    total_score: int
    key: IdempotencyKey | None = None
    external_id: ExternalId | None = None


@dataclass(frozen=True, slots=True)
class BestUsers:
    """The best users, best first, and how many users there are in all."""

    users: list[User]
    total: int


@dataclass(frozen=True, slots=True)
class BestOfSeason:
    """The best users of a season, best first, and how many there are in all; their scores are sort keys.

    `rules` are those of the board, as they are stored.
    """

    season_id: int
    board_id: int
    tie_bits: int
    rules: str
    users: list[User]
    total: int


class Users:
    """Reads and writes the table `users`."""

    def __init__(self, connections: Connections, tuning: Tuning, key_of: KeyOf = no_key) -> None:
        self._connections = connections
        self._key_of = key_of
        self._tuning = tuning
        self._sql = load_queries("users")
        self._now = load_queries("server")["now"]

    async def top(self, n: int) -> AtSnapshot[list[User]]:
        """Return the best `n` users of the board `default`, best first."""
        async with self._connections.acquire() as connection:
            row = await one_row(connection, self._sql["top"], n)
            return AtSnapshot(users_of(row)[0], position_of(row))

    async def top_of_season(self, n: int, season: SeasonRef) -> AtSnapshot[list[Standing]]:
        """Return the best `n` users of a season, best first. Raises BoardNotFound and SeasonNotFound."""
        async with self._connections.acquire() as connection:
            row = await one_row(connection, self._sql["top_of_season"], season.board, season.number, n)
            return AtSnapshot(standings_of(row, 1, rules_of(row, season)), position_of(row))

    async def best_of_season(self, n: int, season: SeasonRef) -> AtSnapshot[BestOfSeason]:
        """Return the best `n` users of a season, for the cache. Raises BoardNotFound and SeasonNotFound."""
        max_pending = self._tuning.ranks.max_pending
        async with self._connections.acquire() as connection:
            row = await one_row(
                connection, self._sql["best_of_season"], season.board, season.number, n, max_pending
            )
        return AtSnapshot(best_of_season(row, season), position_of(row))

    async def top_and_total(self, n: int) -> AtSnapshot[BestUsers]:
        """Return the best `n` users and how many users there are in all."""
        max_pending = self._tuning.ranks.max_pending
        async with self._connections.acquire() as connection:
            row = await one_row(connection, self._sql["top_and_total"], n, max_pending)
            return AtSnapshot(BestUsers(users_of(row)[0], row["total"]), position_of(row))

    async def find(self, user_name: str) -> AtSnapshot[Account | None]:
        """Return the user of that name, hidden or not, None if there is none."""
        key = self._key_of(user_name)
        async with self._connections.acquire() as connection:
            if key is None:
                row = await one_row(connection, self._sql["find_user"], user_name)
            else:
                row = await one_row(connection, self._sql["find_user_by_key"], key)
            return AtSnapshot(_account(row), position_of(row))

    async def find_number(self, user_id: int) -> AtSnapshot[Account | None]:
        """Return the user of that id, hidden or not, None if there is none."""
        async with self._connections.acquire() as connection:
            row = await one_row(connection, self._sql["find_number"], user_id)
            return AtSnapshot(_account(row), position_of(row))

    async def find_external_ids(self, external_ids: Sequence[str]) -> AtSnapshot[dict[str, Account]]:
        """Return the users that have one of these external ids, hidden or not, by external id."""
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql["find_external_ids"], external_ids)
        found = {row["external_id"]: account for row in rows if (account := _account(row)) is not None}
        return AtSnapshot(found, position_of(rows[0]))

    async def with_prefix(
        self, prefix: str, after: str, limit: int, *, hidden: bool
    ) -> AtSnapshot[Sequence[Account]]:
        """Return the users whose names begin with `prefix` and are after `after`, `limit` at most, by name.

        Names, or their keys where they have some, are in the order of code points. Hidden users are among them
        only with `hidden`.
        """
        statement, after_key = "find_users", self._key_of(after)
        if after_key is not None:
            statement, prefix, after = "find_users_by_key", prefix_key(prefix), after_key
        arguments = prefix, _end_of_prefix(prefix), after, limit, hidden
        async with self._connections.acquire() as connection:
            rows = await connection.fetch(self._sql[statement], *arguments)
        accounts = [account for row in rows if (account := _account(row)) is not None]
        return AtSnapshot(accounts, position_of(rows[0]))

    async def update(
        self,
        user_id: int,
        user_name: str | None,
        image_url: str | UnsetType | None,
        hidden: bool | None,
        external_id: str | None = None,
    ) -> Committed[Account | NotWritten | None]:
        """Rename, hide or show a user, set its image or its external id; returns it, None if there is none.

        Returns NAME_TAKEN, ID_TAKEN or ID_FIXED where that is not possible. None changes nothing but the image.
        Raises what `write` raises.
        """
        try:
            rows = await write(
                self._connections,
                self._tuning.writes.attempts,
                self._sql["update_user"],
                user_id,
                user_name,
                image_url is not UNSET,
                None if image_url is UNSET else image_url,
                hidden,
                f"{self._tuning.writes.row_wait_s:g}s",
                external_id,
                None if user_name is None else self._key_of(user_name),
            )
        except DatabaseRefused as error:
            refused = _refused(error.__cause__)
            if refused is None:
                raise
            async with self._connections.acquire() as connection:
                position = position_of(await one_row(connection, self._now))
            return Committed([refused], position)
        return Committed([_account(rows[0])], committed_position(rows))

    async def erase(self, user_id: int) -> Committed[bool]:
        """Delete a user with its entries on all boards; returns whether there was one."""
        rows = await write(
            self._connections,
            self._tuning.writes.attempts,
            self._sql["erase_user"],
            user_id,
            f"{self._tuning.writes.row_wait_s:g}s",
        )
        return Committed([rows[0]["erased"]], committed_position(rows))

    async def create(self, batch: Sequence[NewUser]) -> Committed[User | NotWritten]:
        """Create users in one transaction; a result is the User, NAME_TAKEN, ID_TAKEN, or AGAIN.

        AGAIN is only for users with an external id, or with the name of one. Raises IdempotencyKeyInUse if an
        item's key exists already or is being inserted, and what `write` raises.
        """
        # Names by which the users are compared: their keys, if they have some.
        names: list[str] = []
        tried: dict[str, NewUser] = {}
        name_keys: list[str | None] = []
        external_ids: set[str] = set()
        for item in batch:
            name_key = self._key_of(item.user_name)
            name = item.user_name if name_key is None else name_key
            names.append(name)
            if name not in tried and item.external_id not in external_ids:
                tried[name] = item
                name_keys.append(name_key)
                if item.external_id is not None:
                    external_ids.add(item.external_id)
        keys = [item.key for item in tried.values()]
        rows = await write(
            self._connections,
            self._tuning.writes.attempts,
            self._sql["create_users"],
            [item.user_name for item in tried.values()],
            [item.image_url for item in tried.values()],
            [item.total_score for item in tried.values()],
            f"{self._tuning.writes.unique_wait_ms}ms",
            [key and key.key for key in keys],
            [key and key.caller for key in keys],
            [key and key.fingerprint for key in keys],
            [item.external_id for item in tried.values()],
            name_keys,
        )
        found = {row["user_name"]: row for row in rows}
        results = []
        for item, name in zip(batch, names, strict=True):
            first = tried.get(name)
            results.append(_created(item, first, None if first is None else found.get(first.user_name)))
        position = committed_position(rows)
        if isinstance(position, SnapshotPosition) and batch:
            # A name can be taken by a user that is newer than the statement's snapshot.
            async with self._connections.acquire() as connection:
                position = position_of(await one_row(connection, self._now))
        return Committed(results, position)


def _end_of_prefix(prefix: str) -> str:
    """Return the first text after all those with that prefix, in the order of code points.

    A prefix ends with an assigned character (`rules.clean_prefix`), so there is a next one. After all texts with
    the prefix "" is the last character, which begins no name.
    """
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else _LAST_CHARACTER


def _account(row: asyncpg.Record) -> Account | None:
    if row["user_id"] is None:
        return None
    names = row["user_name"], row["image_url"]
    return Account(row["user_id"], *names, row["total_score"], row["hidden"], row["external_id"])


def _created(item: NewUser, tried: NewUser | None, row: asyncpg.Record | None) -> User | NotWritten:
    """Return what became of an item; `tried` is the one of its name in the statement, with its row."""
    if tried is None or row is None:
        return NotWritten.AGAIN
    if tried is item:
        if row["user_id"] is not None:
            return User(row["user_id"], item.user_name, item.image_url, item.total_score, item.external_id)
        if item.external_id is None:
            return NotWritten.NAME_TAKEN
        taken = NotWritten.ID_TAKEN if row["id_taken"] else NotWritten.NAME_TAKEN
        return taken if row["id_taken"] or row["name_taken"] else NotWritten.AGAIN
    # Only the first of several with one name can have got it.
    got_it = row["user_id"] is not None or tried.external_id is None
    return NotWritten.NAME_TAKEN if got_it and item.external_id is None else NotWritten.AGAIN


def _refused(cause: BaseException | None) -> NotWritten | None:
    """Return what it means that PostgreSQL refused to change a user, None for another constraint."""
    if isinstance(cause, asyncpg.CheckViolationError) and cause.constraint_name == "users_external_id_fixed":
        return NotWritten.ID_FIXED
    if not isinstance(cause, asyncpg.UniqueViolationError):
        return None
    return NotWritten.ID_TAKEN if cause.constraint_name == "users_external_id" else NotWritten.NAME_TAKEN


def best_of_season(row: asyncpg.Record, season: SeasonRef) -> BestOfSeason:
    """Read the row of the statement `best_of_season`. Raises BoardNotFound and SeasonNotFound."""
    rules_of(row, season)
    users = sorted(users_of(row)[0], key=lambda user: place(user.total_score, user.user_id))
    return BestOfSeason(row["season_id"], row["board_id"], row["tie_bits"], row["rules"], users, row["total"])
