"""Boards and their seasons: makes, changes, lists and deletes them, and ends seasons.

A season past its end is ended by the first process that finds it: by a writer that meets it, or by a job of
`maintenance/seasons.py`. PostgreSQL's clock decides. Ends that were missed are skipped: the season that was
running ends once, and the next one ends at the first end in the future
(docs/decisions/0017-season-schedules.md).
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TypeVar

from leaderboard.board_rules import (
    DEFAULT_BOARD,
    FIXED_WITH_ENTRIES,
    BoardRules,
    refused_on_default,
)
from leaderboard.database.boards import Board, Configured, Season
from leaderboard.database.database import Database
from leaderboard.database.rows import AtSnapshot, Committed
from leaderboard.errors import BoardInUse, BoardNotFound, LockedOut, SeasonNotFound, UserNotFound
from leaderboard.health import Health
from leaderboard.model import UserRef
from leaderboard.service.user_ids import UserIds
from leaderboard.snapshot import Position
from leaderboard.sync.visibility import Visibility

_KEPT = 1000
"""How many boards this process remembers for writes."""
_TRIES = 20
"""How often a board is tried to change while its writes hold that up, 50 ms each."""

T = TypeVar("T")


class BoardService:
    """The boards, as one process among several reads and writes them."""

    def __init__(self, database: Database, visibility: Visibility, health: Health, user_ids: UserIds) -> None:
        self._database = database
        self._visibility = visibility
        self._health = health
        self._user_ids = user_ids
        self._known: dict[str, Board] = {}

    # Reading

    async def get(self, name: str) -> Board:
        """Return a board. Raises BoardNotFound."""
        board = await self._visible(await self._database.boards.get(name))
        if board is None:
            self._known.pop(name, None)
            raise BoardNotFound(name)
        self._remember(board)
        return board

    async def list(self, after: str, limit: int) -> Sequence[Board]:
        """Return the boards after that name, by name."""
        return await self._visible(await self._database.boards.list(after, limit))

    async def seasons(self, name: str, before: int | None, limit: int) -> Sequence[Season]:
        """Return the seasons of a board before that number, newest first. Raises BoardNotFound."""
        seasons = await self._visible(await self._database.boards.seasons(name, before, limit))
        if seasons is None:
            raise BoardNotFound(name)
        return seasons

    async def of_user(self, user: UserRef, after: str, limit: int) -> Sequence[str]:
        """Return the names of the boards with an entry of a user, by name. Raises UserNotFound."""
        return await self._user_ids.with_number(user, partial(self._of_user, after=after, limit=limit))

    async def _of_user(self, user_id: int, after: str, limit: int) -> Sequence[str]:
        names = await self._visible(await self._database.boards.of_user(user_id, after, limit))
        if names is None:
            raise UserNotFound(user_id)
        return names

    async def known(self, name: str) -> Board:
        """Return a board as this process last saw it, for a write that compares the version.

        Raises BoardNotFound.
        """
        return self._known.get(name) or await self.get(name)

    # Writing

    async def configure(self, name: str, rules: BoardRules) -> tuple[Board, bool]:
        """Create a board or change its rules; returns it, and whether it was created.

        Raises BoardInUse if its entries depend on the present rules, or for rules that `default` cannot have, and
        LockedOut if writes hold it up for a second.
        """
        self._health.check_writable()
        if name == DEFAULT_BOARD and (refused := refused_on_default(rules)):
            raise BoardInUse(f"the board 'default' takes only a title; refused: {', '.join(refused)}")
        committed = await _try_again(partial(self._configure, name, rules))
        await self._publish(committed.position)
        ((outcome, refused_rules),) = committed.results
        if outcome is Configured.REFUSED:
            raise BoardInUse(
                f"the board {name!r} has entries, which depend on {', '.join(refused_rules)};"
                " make another board, or delete this one"
            )
        if outcome is Configured.OUT_OF_BOUNDS:
            raise BoardInUse(f"the board {name!r} has scores outside of the new lowest and highest")
        return await self.get(name), outcome is Configured.CREATED

    async def _configure(self, name: str, rules: BoardRules) -> Committed[tuple[Configured, Sequence[str]]]:
        default = (await self._database.boards.get(DEFAULT_BOARD)).value
        ends_at = None if default is None else _next_end(rules, default.now)
        return await self._database.boards.configure(name, rules, ends_at, FIXED_WITH_ENTRIES)

    async def delete(self, name: str) -> None:
        """Delete a board with all its seasons.

        Raises BoardNotFound, BoardInUse for `default`, and LockedOut if writes hold it up for a second.
        """
        self._health.check_writable()
        if name == DEFAULT_BOARD:
            raise BoardInUse("the board 'default' cannot be deleted")
        committed = await _try_again(partial(self._database.boards.delete, name))
        self._known.pop(name, None)
        await self._publish(committed.position)
        if not committed.results[0]:
            raise BoardNotFound(name)

    async def end_season(self, name: str, number: int) -> Season:
        """End the season of that number if it is the current one; returns it when it has ended.

        Raises BoardNotFound, BoardInUse for `default`, and SeasonNotFound if there was no such season yet.
        """
        self._health.check_writable()
        if name == DEFAULT_BOARD:
            raise BoardInUse("the board 'default' has no seasons")
        board = await self.get(name)
        if board.season_number == number:
            await self.end(board)
        for season in await self.seasons(name, number + 1, 1):
            if season.number == number and season.ended_at is not None:
                return season
        raise SeasonNotFound(name, number)

    async def end(self, board: Board) -> None:
        """End the current season of `board`, unless another process was faster.

        Raises LockedOut after a second, and BoardNotFound.
        """
        ending = board.season_id
        while board.season_id == ending:
            next_end = _next_end(board.rules, board.now)
            committed = await _try_again(partial(self._database.boards.end_season, board, next_end))
            self._known.pop(board.name, None)
            if committed.results[0] is not None:
                if board.rules.keep_seasons is not None:
                    await self._database.boards.forget_seasons(board.board_id, board.rules.keep_seasons)
                await self._publish(committed.position)
                return
            board = await self.get(board.name)

    async def end_due(self) -> int:
        """End every season that is past its end; returns how many were.

        One that writes hold up is left to the next call, and the others are ended.
        """
        ended = 0
        for board in await self._database.boards.due():
            with suppress(LockedOut, BoardNotFound):
                await self.end(board)
                ended += 1
        return ended

    def _remember(self, board: Board) -> None:
        self._known.pop(board.name, None)
        self._known[board.name] = board
        if len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]

    async def _visible(self, found: AtSnapshot[T]) -> T:
        await self._publish(found.position)
        return found.value

    async def _publish(self, position: Position) -> None:
        self._health.note_postgres(position)
        await self._visibility.wait_until_visible(position)


def _next_end(rules: BoardRules, now: datetime) -> datetime | None:
    return None if rules.schedule is None else rules.schedule.next_end(now)


async def _try_again(change: Callable[[], Awaitable[T]]) -> T:
    """Make a change that locks out the writes of a board. Raises LockedOut after `_TRIES` tries.

    Each waits for 50 ms only, because the next writes queue behind it.
    """
    for _ in range(_TRIES - 1):
        with suppress(LockedOut):
            return await change()
    return await change()
