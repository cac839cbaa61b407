"""The operations with PostgreSQL and Redis, as a process of the service that runs for one command.

A write goes through the same classes as one by HTTP: it is logged and durable, and visible to all processes when
the command ends.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from typing import Any

from leaderboard.app import App
from leaderboard.board_rules import Number
from leaderboard.cli.operations import CacheSummary, IndexSummary, Summary
from leaderboard.cli.options import season_ref
from leaderboard.database.database import ServerSummary
from leaderboard.errors import (
    CacheError,
    InvalidParameter,
    NotOnBoard,
    Unavailable,
    UsernameNotFound,
    UserNotFound,
)
from leaderboard.http.board_answers import ChangedEntry, changed_entry
from leaderboard.http.status import ServiceStatus
from leaderboard.model import Account, Context, Standing, Top, UserRef
from leaderboard.queries import SeasonRef

_AT_ONCE = 1000
_NO_NONCE = ""


class StoreOperations:
    """The operations of one command, with the parts of a process."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._service = app.service

    async def top(self, n: int, board: str, season: SeasonRef | None) -> Top:
        """Return the best `n` users. Raises InvalidParameter, BoardNotFound and SeasonNotFound."""
        most = self._app.settings.max_top_n
        if not 1 <= n <= most:
            raise InvalidParameter("n", str(n), f"an integer from 1 to {most}")
        found = json.loads((await self._service.reads.top(n, season)).result.body, parse_float=Decimal)
        return Top(list(map(_standing, found["users"])))

    async def find(self, user_name: str) -> Account:
        """Return the user of a name. Raises UserNotFound."""
        account = await self._service.users.find(user_name)
        if account is None:
            raise UsernameNotFound(user_name)
        return account

    async def account(self, user: UserRef) -> Account:
        """Return a user. Raises UserNotFound."""
        return await self._service.users.get(user)

    async def context(self, user: UserRef, board: str) -> Context | None:
        """Return a user with its neighbours, None if it is not on the board. Raises BoardNotFound."""
        try:
            return (await self._service.reads.context(user, season_ref(board))).result
        except (UserNotFound, NotOnBoard):
            return None

    async def boards_of(self, user: UserRef) -> Sequence[str]:
        """Return the names of the boards that a user is on. Raises UserNotFound."""
        names: list[str] = []
        while True:
            found = await self._service.boards.of_user(user, names[-1] if names else "", _AT_ONCE)
            names += found
            if len(found) < _AT_ONCE:
                return names

    async def change_score(self, user: UserRef, board: str, number: Number, *, adds: bool) -> ChangedEntry:
        """Set a score, or add to it. Raises InvalidField for a number that the board does not take."""
        entry = await self._service.scores.change(board, user, number, adds=adds)
        return changed_entry(entry, await self._service.scores.rank(board, entry))

    async def set_hidden(self, user: UserRef, *, hidden: bool) -> Account:
        """Hide a user on all boards, or show it again. Raises UserNotFound."""
        return await self._service.users.update(user, hidden=hidden)

    async def board_names(self) -> Sequence[str]:
        """Return the names of the first 1,000 boards."""
        return [board.name for board in (await self._app.database.boards.list("", _AT_ONCE)).value]

    async def summary(self) -> Summary:
        """Return what PostgreSQL and Redis say. One that cannot be reached is no error."""
        seen = _Seen()
        notes: list[str] = []
        stored = await self._stored(seen, notes)
        cache = await self._cache(seen, notes)
        status = ServiceStatus(
            seen, version("leaderboard"), stale_reads=self._app.settings.stale_reads, ready_without_writes_s=0
        )
        return Summary(
            source="stores",
            health=status.report(),
            connections=stored.connections if stored else None,
            cache=cache,
            log_rows=stored.log_rows if stored else None,
            rank_index=IndexSummary(stored.index_valid, stored.index_pending) if stored else None,
            notes=notes,
        )

    async def _stored(self, seen: "_Seen", notes: list[str]) -> ServerSummary | None:
        """Return what PostgreSQL says, None if it cannot be reached. Raises SchemaOutdated."""
        try:
            await self._app.database.check_schema()
            summary = await self._app.database.summary()
        except Unavailable as error:
            seen.postgres_up = False
            notes.append(str(error))
            return None
        seen.postgres_up, seen.writable = True, not summary.read_only
        return summary

    async def _cache(self, seen: "_Seen", notes: list[str]) -> CacheSummary | None:
        """Return what Redis says, None if it cannot be reached or has no cache."""
        store = self._app.cache
        try:
            state = await store.poll(_NO_NONCE, 0)
            names = await store.bulk_link.run(store.scripts.season_names())
        except CacheError as error:
            seen.redis_up = False
            notes.append(str(error))
            return None
        seen.redis_up = True
        if state is None:
            notes.append("there is no cache in Redis; reads go to PostgreSQL")
            return None
        return CacheSummary(state.count, len(names), round(state.age_s, 3), state.valid)


def _standing(members: Mapping[str, Any]) -> Standing:
    """Return a standing of the JSON of a top, whose score is a Decimal on a board with decimals."""
    names = members["userId"], members["username"], members["imageUrl"]
    return Standing(members["rank"], *names, members["score"], members.get("externalId"))


@dataclass
class _Seen:
    """What this command has seen of the stores, for `ServiceStatus`."""

    postgres_up: bool | None = None
    redis_up: bool | None = None
    writable: bool = False
    unwritable_s: float = 0.0
