"""Boards and their seasons: makes, changes, lists and deletes them, and ends seasons.

A season past its end is ended by the first process that finds it: by a writer that meets it, or by a job of
`maintenance/seasons.py`. PostgreSQL's clock decides. Ends that were missed are skipped: the season that was
running ends once, and the next one ends at the first end in the future
(docs/decisions/0017-season-schedules.md).
"""

from collections.abc import Sequence
from typing import TypeVar

from leaderboard.board_rules import (
    DEFAULT_BOARD,
    FIXED_WITH_ENTRIES,
    BoardRules,
    refused_on_default,
)
from leaderboard.database.boards import Board, Configured, Season
from leaderboard.database.database import Database
from leaderboard.database.rows import AtSnapshot
from leaderboard.errors import BoardInUse, BoardNotFound, LockedOut, SeasonNotFound, UserNotFound
from leaderboard.health import Health
from leaderboard.snapshot import Position
from leaderboard.sync.visibility import Visibility

_KEPT = 1000
"""How many boards this process remembers for writes."""
_TRIES = 20
"""How often a season is tried to end while writes of its board hold it up, 50 ms each."""

T = TypeVar("T")


class BoardService:
    """The boards, as one process among several reads and writes them."""

    def __init__(self, database: Database, visibility: Visibility, health: Health) -> None:
        self._database = database
        self._visibility = visibility
        self._health = health
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

    async def of_user(self, user_id: int, after: str, limit: int) -> Sequence[str]:
        """Return the names of the boards with an entry of a user, by name. Raises UserNotFound."""
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

        Raises BoardInUse if its entries depend on the present rules, or for rules that `default` cannot have.
        """
        self._health.check_writable()
        if name == DEFAULT_BOARD and (refused := refused_on_default(rules)):
            raise BoardInUse(f"the board 'default' takes only a title; refused: {', '.join(refused)}")
        now = (await self._database.boards.get(DEFAULT_BOARD)).value
        ends_at = None if rules.schedule is None or now is None else rules.schedule.next_end(now.now)
        committed = await self._database.boards.configure(name, rules, ends_at, FIXED_WITH_ENTRIES)
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

    async def delete(self, name: str) -> None:
        """Delete a board with all its seasons. Raises BoardNotFound, and BoardInUse for `default`."""
        self._health.check_writable()
        if name == DEFAULT_BOARD:
            raise BoardInUse("the board 'default' cannot be deleted")
        committed = await self._database.boards.delete(name)
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

        Raises LockedOut after a second.
        """
        schedule = board.rules.schedule
        next_end = None if schedule is None else schedule.next_end(board.now)
        for attempt in range(1, _TRIES + 1):
            try:
                committed = await self._database.boards.end_season(board, next_end)
            except LockedOut:
                if attempt == _TRIES:
                    raise
                continue
            break
        self._known.pop(board.name, None)
        if board.rules.keep_seasons is not None:
            await self._database.boards.forget_seasons(board.board_id, board.rules.keep_seasons)
        await self._publish(committed.position)

    async def end_due(self) -> int:
        """End every season that is past its end; returns how many were."""
        due = await self._database.boards.due()
        for board in due:
            await self.end(board)
        return len(due)

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
