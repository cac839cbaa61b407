"""Writes entries of boards other than `default`: sets scores, adds to them, and removes entries.

The path of an entry is that of a score (`writes.py`): a batch is committed by one statement, then published, while
the next batch commits. The statement compares the version of the rules by which a score became a sort key. An
entry that it could not write for a passing reason goes with another batch.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from functools import partial
from typing import Any, NamedTuple

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits, cancel_is_safe
from leaderboard.board_rules import DEFAULT_BOARD, BoardRules, Number, key_rules, scale, unscale
from leaderboard.database.boards import Board
from leaderboard.database.database import Database
from leaderboard.database.entries import EntryWritten, NewEntry, NewUsersEntry, Outcome
from leaderboard.database.idempotency_keys import FirstWrite, IdempotencyKey
from leaderboard.errors import (
    BoardInUse,
    BoardNotFound,
    InvalidField,
    LockedOut,
    NotOnBoard,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import EntrySet, ExternalId, UserRef
from leaderboard.service.boards import BoardService
from leaderboard.service.commit import CommittedBatch, commit
from leaderboard.service.idempotency import Idempotency, Once, idempotency_key
from leaderboard.service.user_ids import UserIds
from leaderboard.sync.visibility import Visibility
from leaderboard.tuning import WriteTuning

_MAX_BATCH = 1000
_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)
"""Does not round any number that fits into a body."""


class _Change(NamedTuple):
    """A score to set on a board, or a number to add to one."""

    board: str
    number: Number
    adds: bool

    @property
    def field(self) -> str:
        """The name of the field with the number."""
        return "increment" if self.adds else "score"


class EntryWrites:
    """The writes of entries by one process."""

    def __init__(
        self,
        database: Database,
        boards: BoardService,
        visibility: Visibility,
        health: Health,
        idempotency: Idempotency,
        user_ids: UserIds,
        metrics: Metrics,
        limits: QueueLimits,
        tuning: WriteTuning,
    ) -> None:
        self._database = database
        self._boards = boards
        self._visibility = visibility
        self._health = health
        self._idempotency = idempotency
        self._user_ids = user_ids
        self._metrics = metrics
        self._tuning = tuning
        self._queue: Batcher[NewEntry, EntryWritten] = Batcher(
            "entries", self._write, limits, BatchLimits(_MAX_BATCH)
        )
        self._new_users: Batcher[NewUsersEntry, EntryWritten] = Batcher(
            "entries of new users", self._write_with_users, limits, BatchLimits(_MAX_BATCH)
        )

    async def set_score(
        self, board: str, user: UserRef, score: Number, once: Once | None = None, user_name: str | None = None
    ) -> EntrySet:
        """Set a score; a board that keeps the best ignores a worse one.

        A user of that external id who does not exist is created with `user_name`. Raises BoardNotFound,
        UserNotFound, UsernameTaken if a user would be created with a taken name, InvalidField for a score that
        the board does not take, LockedOut, and with `once` what `Idempotency.once` raises.
        """
        return await self._write_once(user, _Change(board, score, adds=False), once, user_name)

    async def add(
        self, board: str, user: UserRef, increment: Number, once: Once | None = None, user_name: str | None = None
    ) -> EntrySet:
        """Add to a score; a user without an entry begins with the increment.

        Creates users and raises as `set_score` does.
        """
        return await self._write_once(user, _Change(board, increment, adds=True), once, user_name)

    async def remove(self, name: str, user: UserRef) -> None:
        """Remove a user's entry from the current season.

        Raises BoardNotFound, NotOnBoard, and BoardInUse for `default`.
        """
        self._health.check_writable()
        if name == DEFAULT_BOARD:
            raise BoardInUse("a user cannot leave the board 'default'; hide or delete the user")
        await self._user_ids.with_number(user, partial(self._remove, name), by_memory=False)

    async def _remove(self, name: str, user_id: int) -> None:
        for _ in range(2):
            board = await self._boards.get(name)
            committed = await self._database.entries.remove(board.board_id, user_id)
            self._health.note_postgres(committed.position)
            await self._visibility.wait_until_visible(committed.position)
            (removed,) = committed.results
            if removed is None:
                await self._boards.end(board)
            elif removed:
                return
            else:
                raise NotOnBoard(user_id, name)
        raise BoardNotFound(name)

    async def _write_once(
        self, user: UserRef, change: _Change, once: Once | None, user_name: str | None
    ) -> EntrySet:
        self._health.check_writable()
        if once is None:
            return await self._change(user, change, None, user_name)
        asked = user if isinstance(user, int) else (user, user_name)
        request = "add" if change.adds else "set", change.board, asked, _same_for_equal(change.number)
        key = idempotency_key(*once, request)
        return await self._idempotency.once(
            key,
            lambda: self._change(user, change, key, user_name),
            lambda first: _first_entry(change.board, first),
        )

    async def _change(
        self, user: UserRef, change: _Change, key: IdempotencyKey | None, user_name: str | None
    ) -> EntrySet:
        """Do a change; a user of an external id who does not exist is created with `user_name`."""
        if isinstance(user, int):
            return await self._write_entry(change, key, user)
        create = None if user_name is None else partial(self._create_with_user, change, key, user, user_name)
        return await self._user_ids.with_number(user, partial(self._write_entry, change, key), create)

    async def _write_entry(self, change: _Change, key: IdempotencyKey | None, user_id: int) -> EntrySet:
        return await self._submit(change, lambda board, value: self._send(board, user_id, value, change, key))

    async def _create_with_user(
        self, change: _Change, key: IdempotencyKey | None, external_id: ExternalId, name: str
    ) -> EntrySet | None:
        """Create a user with its entry; None if another caller has created the user meanwhile."""
        try:
            return await self._submit(
                change, lambda board, value: self._send_with_user(board, external_id, name, value, key)
            )
        except _CreatedMeanwhile:
            return None

    async def _send(
        self, board: Board, user_id: int, value: int, change: _Change, key: IdempotencyKey | None
    ) -> EntryWritten:
        """Write an entry of a user. Raises UserNotFound."""
        item = NewEntry(board.board_id, board.version, user_id, value, change.adds, key)
        written = await self._queue.submit(item)
        if written.outcome is Outcome.NO_USER:
            raise UserNotFound(user_id)
        return written

    async def _send_with_user(
        self, board: Board, external_id: ExternalId, user_name: str, value: int, key: IdempotencyKey | None
    ) -> EntryWritten:
        """Create a user with its entry. Raises UsernameTaken, and _CreatedMeanwhile."""
        item = NewUsersEntry(board.board_id, board.version, value, external_id, user_name, key)
        written = await self._new_users.submit(item)
        if written.outcome is Outcome.ID_TAKEN:
            raise _CreatedMeanwhile
        if written.outcome is Outcome.NAME_TAKEN:
            raise UsernameTaken(user_name)
        if written.user_id is not None:
            self._user_ids.remember(external_id, written.user_id)
        return written

    async def _submit(self, change: _Change, send: Callable[[Board, int], Awaitable[EntryWritten]]) -> EntrySet:
        """Let `send` write the value by the present rules of the board, until it could be written."""
        deadline = time.monotonic() + self._tuning.row_wait_s
        while True:
            board = await self._boards.known(change.board)
            try:
                value = _value(board, change)
            except InvalidField:
                # Another process may have changed the rules since.
                current = await self._boards.get(change.board)
                if (current.board_id, current.version) == (board.board_id, board.version):
                    raise
                continue
            written = await send(board, value)
            match written.outcome:
                case Outcome.WRITTEN | Outcome.SAME:
                    return _entry_set(board.rules, written)
                case Outcome.OUT_OF_BOUNDS:
                    raise InvalidField({change.field: _out_of_bounds(board.rules, change.number)})
                case Outcome.OTHER_RULES:
                    await self._boards.get(change.board)
                case Outcome.NO_SEASON:
                    board = await self._boards.get(change.board)
                    if board.season_ends_at is not None and board.season_ends_at <= board.now:
                        await self._boards.end(board)
            if time.monotonic() > deadline:
                raise LockedOut("another transaction has locked the entry of the user, or its user")
            if written.outcome is Outcome.AGAIN:
                # Waiting for the row itself would hold up all others.
                with cancel_is_safe():
                    await asyncio.sleep(random.uniform(*self._tuning.row_retry_s))

    async def _write(self, batch: Batch[NewEntry]) -> Sequence[EntryWritten | Exception]:
        self._metrics.batch_items.labels("entries").observe(len(batch.items))
        return await self._publish(batch, await commit(batch.items, self._database.entries.write, self._health))

    async def _write_with_users(self, batch: Batch[NewUsersEntry]) -> Sequence[EntryWritten | Exception]:
        self._metrics.batch_items.labels("entries of new users").observe(len(batch.items))
        write = self._database.entries.write_with_users
        return await self._publish(batch, await commit(batch.items, write, self._health))

    async def _publish(
        self, batch: Batch[Any], committed: CommittedBatch[EntryWritten]
    ) -> Sequence[EntryWritten | Exception]:
        """Let the next batch start, and wait until this one is visible."""
        batch.start_next()
        for position in committed.positions:
            self._health.note_postgres(position)
        await asyncio.gather(*map(self._visibility.wait_until_visible, committed.positions))
        return committed.results

    def queues(self) -> Sequence[Batcher[Any, EntryWritten]]:
        """Return the queues."""
        return (self._queue, self._new_users)

    async def close(self) -> None:
        """Finish what was begun."""
        for queue in self.queues():
            await queue.close()


class _CreatedMeanwhile(Exception):
    """A user that was to be created exists."""


def _same_for_equal(number: Number) -> str:
    """Return a text that equal numbers share: 0.5, 0.50 and 5e-1 are one request, as 5 and 5.0 are."""
    return str(_EXACT.normalize(Decimal(number)))


def _value(board: Board, change: _Change) -> int:
    """Return the value to write, of which more is better.

    Raises BoardInUse for `default`, and InvalidField for what the board does not take.
    """
    rules = board.rules
    if board.board_id == 1:
        raise BoardInUse("the board 'default' takes scores at /users/{id}/score")
    if change.adds and rules.keeps == "best":
        raise InvalidField({"increment": "is refused, because the board keeps the best score; set a score"})
    if not change.adds and rules.keeps == "sum":
        raise InvalidField({"score": "is refused, because the board adds scores up; send an increment"})
    try:
        scaled = scale(rules, change.number)
    except ValueError as error:
        raise InvalidField({change.field: str(error)}) from None
    return scaled if rules.better == "higher" else -scaled


def _first_entry(board: str, first: FirstWrite) -> EntrySet:
    """Return the result of an entry that was written before. Raises BoardNotFound and UserNotFound."""
    if first.rules is None or first.sort_key is None:
        raise BoardNotFound(board)
    if first.user_name is None:
        raise UserNotFound(first.user_id)
    bits = key_rules(first.rules).tie_bits
    previous = None if first.previous_score is None else first.previous_score >> bits
    value = first.sort_key >> bits
    names = first.user_name, first.image_url, first.external_id
    written = EntryWritten(Outcome.WRITTEN, first.season_number, first.user_id, *names, previous, value)
    return _entry_set(first.rules, written)


def _entry_set(rules: BoardRules, written: EntryWritten) -> EntrySet:
    return EntrySet(
        written.user_id or 0,
        written.user_name or "",
        written.image_url,
        _shown(rules, written.value or 0),
        None if written.previous is None else _shown(rules, written.previous),
        written.previous is None or (written.value or 0) > written.previous,
        written.season_number or 0,
        written.external_id,
    )


def _shown(rules: BoardRules, value: int) -> Number:
    return unscale(rules, value if rules.better == "higher" else -value)


def _out_of_bounds(rules: BoardRules, number: Number) -> str:
    words = (("at least", rules.lowest), ("at most", rules.highest))
    bounds = [f"{word} {bound}" for word, bound in words if bound is not None]
    allowed = " and ".join(bounds) or "within the range of this board"
    return f"{number} would lead to a score out of bounds; {allowed} is allowed"
