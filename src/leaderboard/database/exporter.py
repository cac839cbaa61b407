"""Reads all entries of a season, best first, as a stream."""

from collections.abc import AsyncIterator

from leaderboard.board_rules import BoardRules
from leaderboard.database.connector import Connection
from leaderboard.database.rows import one_row, rules_of
from leaderboard.database.sql import load_queries
from leaderboard.queries import SeasonRef

Entry = tuple[str, int, str | None, str | None]
"""user_name, value, image_url, external_id. The value is the score; on boards, the one of which more is better."""

_AT_ONCE = 1000


class Exporter:
    """The entries of one season, at the snapshot of the connection's transaction."""

    def __init__(
        self, connection: Connection, season_number: int | None, rules: BoardRules, sql: str, *arguments: object
    ) -> None:
        self._connection = connection
        self._sql = sql
        self._arguments = arguments
        self.season_number = season_number
        """None for `default`."""
        self.rules = rules

    @classmethod
    async def of(cls, connection: Connection, season: SeasonRef | None) -> "Exporter":
        """Return the exporter of a season, None for `default`. Raises BoardNotFound and SeasonNotFound."""
        queries = load_queries("export")
        if season is None:
            return cls(connection, None, BoardRules(), queries["users"])
        row = await one_row(connection, queries["find_season"], season.board, season.number)
        rules = rules_of(row, season) or BoardRules()
        return cls(connection, row["season_number"], rules, queries["entries"], row["season_id"], row["tie_bits"])

    async def has_external_ids(self) -> bool:
        """Return whether any user has an external id."""
        return bool(await self._connection.fetchval(load_queries("export")["has_external_ids"]))

    async def entries(self) -> AsyncIterator[Entry]:
        """Yield the entries that are not hidden."""
        async for row in self._connection.cursor(self._sql, *self._arguments, prefetch=_AT_ONCE):
            yield row["user_name"], row["value"], row["image_url"], row["external_id"]
