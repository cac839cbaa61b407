"""The change log, the table `changes`: what changed since a snapshot, and keeping the log short."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import structlog

from leaderboard.database.connections import Connections
from leaderboard.database.connector import Connection
from leaderboard.database.rank_index import WRITER_LOCK
from leaderboard.database.rows import one_row, position_of, users_of
from leaderboard.database.sql import load_queries
from leaderboard.database.users import BestOfSeason, BestUsers, best_of_season
from leaderboard.model import User
from leaderboard.queries import SeasonRef
from leaderboard.snapshot import Snapshot, SnapshotPosition
from leaderboard.tuning import LogTuning, RankIndexTuning

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SeasonView:
    """A view of one season: the lowest sort key in it, None for all, and the snapshot that it shows.

    `since` is None if that is the snapshot of the whole cache.
    """

    season_id: int
    board_id: int
    lowest: int | None
    since: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class SeasonChanges:
    """What changed in a season, as in `Changes`; the score of a user is its sort key.

    `reaches` is also False if the board has changed: then the view has to be loaded again.
    """

    reaches: bool
    changed: list[User]
    deleted: list[int]
    added: int


_UNCHANGED = SeasonChanges(True, [], [], 0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed between the snapshot of a view and the present one, at `position`.

    `changed` are users as they are now, `deleted` ids of users that no longer exist, `added` how many more users
    there are. `reaches` is False if the log was pruned since, or says only that too much changed: then the view
    has to be rebuilt. `log_valid` is False if the log was restored from another server's dump: it has to be reset.
    All this is about the board `default`; `seasons` are the changes of the other views, in their order.
    """

    position: SnapshotPosition
    reaches: bool
    log_valid: bool
    changed: list[User]
    deleted: list[int]
    added: int
    seasons: list[SeasonChanges]

    @classmethod
    def none(cls, position: SnapshotPosition, seasons: int) -> "Changes":
        """Return that nothing has changed, and nothing in so many other views."""
        return cls(position, True, True, [], [], 0, [_UNCHANGED] * seasons)


class ChangeLog:
    """Reads and prunes the change log. Triggers write it."""

    def __init__(self, connections: Connections, tuning: RankIndexTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._sql = load_queries("change_log")
        # One statement, because all must be from one snapshot. $3 and $2 of its parts are $7 and $8 in it.
        default = self._sql["changes_since"].replace("$3", "$7")
        others = self._sql["season_changes_since"].replace("$2", "$8")
        self._with_seasons = f"SELECT * FROM ({default}) AS a CROSS JOIN ({others}) AS b"  # noqa: S608 # nosec B608
        users = load_queries("users")
        self.valid_in: str | None = None
        """The epoch in which the log was read last, None if it was not valid and has to be reset."""
        self._top_and_total, self._best_of_season = users["top_and_total"], users["best_of_season"]

    async def changes_since(
        self,
        since: Snapshot,
        floor_score: int | None,
        limit: int,
        seasons: Sequence[SeasonView] = (),
        season_limit: int = 0,
    ) -> Changes:
        """Return what changed since a snapshot among users of `floor_score` or better, of all with None.

        With `limit` log rows or more, `reaches` is False; of each of `seasons`, with `season_limit` rows.
        """
        async with self._connections.acquire() as connection:
            return await self._changes_since(connection, since, floor_score, limit, seasons, season_limit)

    async def audit(
        self, since: Snapshot, floor_score: int | None, limit: int, n: int
    ) -> tuple[Changes, BestUsers]:
        """Return `changes_since` and the best `n` users of `default`, both from one snapshot."""
        async with self._connections.acquire("REPEATABLE READ, READ ONLY") as connection:
            changes = await self._changes_since(connection, since, floor_score, limit)
            row = await one_row(connection, self._top_and_total, n, self._tuning.max_pending)
            return changes, BestUsers(users_of(row)[0], row["total"])

    async def audit_season(
        self, since: Snapshot, view: SeasonView, limit: int, season: SeasonRef, n: int
    ) -> tuple[Changes, BestOfSeason]:
        """Return `changes_since` with one view, and the best `n` users of its season, both from one snapshot.

        Raises BoardNotFound and SeasonNotFound.
        """
        async with self._connections.acquire("REPEATABLE READ, READ ONLY") as connection:
            changes = await self._changes_since(connection, since, None, limit, [view], limit)
            row = await one_row(
                connection, self._best_of_season, season.board, season.number, n, self._tuning.max_pending
            )
            return changes, best_of_season(row, season)

    async def prune(self, tuning: LogTuning) -> int | None:
        """Delete one batch of old rows; returns how many, None when it is too early.

        Keeps rows younger than `keep_s`, and rows that the rank index has not applied for `max_index_wait_s`.
        """
        async with self._connections.acquire() as connection:
            deleted: int | None = await connection.fetchval(
                self._sql["prune"], tuning.keep_s, tuning.prune_batch, WRITER_LOCK, tuning.max_index_wait_s
            )
        return deleted

    async def reset(self) -> bool:
        """Empty the log if it was restored from another server's dump; returns whether it was."""
        async with self._connections.acquire() as connection:
            reset = await connection.fetchrow(self._sql["reset"]) is not None
        if reset:
            _log.warning("emptied a change log that was restored from another server's dump")
        return reset

    async def _changes_since(
        self,
        connection: Connection,
        since: Snapshot,
        floor_score: int | None,
        limit: int,
        seasons: Sequence[SeasonView] = (),
        season_limit: int = 0,
    ) -> Changes:
        sql, arguments = self._sql["changes_since"], [str(since), limit]
        if seasons:
            sql = self._with_seasons
            arguments += [
                [view.season_id for view in seasons],
                [view.board_id for view in seasons],
                [view.lowest for view in seasons],
                [None if view.since is None else str(view.since) for view in seasons],
            ]
        arguments += [floor_score, season_limit] if seasons else [floor_score]
        row = await one_row(connection, sql, *arguments)
        changed, deleted = users_of(row)
        found = _season_changes(row, len(seasons)) if seasons else []
        position = position_of(row)
        self.valid_in = position.epoch if row["log_valid"] else None
        return Changes(position, row["reaches"], row["log_valid"], changed, deleted, row["added"], found)


def _season_changes(row: asyncpg.Record, seasons: int) -> list[SeasonChanges]:
    found = [_UNCHANGED] * seasons
    for n, reaches, added in zip(row["seasons"], row["seasons_reach"], row["seasons_added"], strict=True):
        found[n - 1] = SeasonChanges(reaches, [], [], added)
    columns = ("seasons", "user_ids", "user_names", "image_urls", "sort_keys", "external_ids")
    entries = zip(*[row[f"entry_{name}"] for name in columns], strict=True)
    for n, user_id, user_name, image_url, sort_key, external_id in entries:
        if (season := found[n - 1]) is _UNCHANGED:
            season = found[n - 1] = SeasonChanges(True, [], [], 0)
        if sort_key is None:
            season.deleted.append(user_id)
        else:
            season.changed.append(User(user_id, user_name, image_url, sort_key, external_id))
    return found
