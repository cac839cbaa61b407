"""Writes entries of boards other than `default`: sets scores, adds to them, and removes entries.

The path of an entry is that of a score (`writes.py`): a batch is committed by one statement, then published, while
the next batch commits. The statement compares the version of the rules by which a score became a sort key. An
entry that it could not write for a passing reason goes with another batch.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits, cancel_is_safe
from leaderboard.board_rules import DEFAULT_BOARD, BoardRules, Number, key_rules, scale, unscale
from leaderboard.database.boards import Board
from leaderboard.database.database import Database
from leaderboard.database.entries import EntryWritten, NewEntry, Outcome
from leaderboard.database.idempotency_keys import FirstWrite, IdempotencyKey
from leaderboard.errors import BoardInUse, BoardNotFound, InvalidField, LockedOut, NotOnBoard, UserNotFound
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import EntrySet
from leaderboard.service.boards import BoardService
from leaderboard.service.commit import commit
from leaderboard.service.idempotency import Idempotency, Once, idempotency_key
from leaderboard.sync.visibility import Visibility
from leaderboard.tuning import WriteTuning

_MAX_BATCH = 1000
_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)
"""Does not round any number that fits into a body."""


class EntryWrites:
    """The writes of entries by one process."""

    def __init__(
        self,
        database: Database,
        boards: BoardService,
        visibility: Visibility,
        health: Health,
        idempotency: Idempotency,
        metrics: Metrics,
        limits: QueueLimits,
        tuning: WriteTuning,
    ) -> None:
        self._database = database
        self._boards = boards
        self._visibility = visibility
        self._health = health
        self._idempotency = idempotency
        self._metrics = metrics
        self._tuning = tuning
        self._queue: Batcher[NewEntry, EntryWritten] = Batcher(
            "entries", self._write, limits, BatchLimits(_MAX_BATCH)
        )

    async def set_score(self, board: str, user_id: int, score: Number, once: Once | None = None) -> EntrySet:
        """Set a score; a board that keeps the best ignores a worse one.

        Raises BoardNotFound, UserNotFound, InvalidField for a score that the board does not take, LockedOut, and
        with `once` what `Idempotency.once` raises.
        """
        return await self._write_once(board, user_id, score, once, adds=False)

    async def add(self, board: str, user_id: int, increment: Number, once: Once | None = None) -> EntrySet:
        """Add to a score; a user without an entry begins with the increment. Raises as `set_score` does."""
        return await self._write_once(board, user_id, increment, once, adds=True)

    async def remove(self, name: str, user_id: int) -> None:
        """Remove a user's entry from the current season.

        Raises BoardNotFound, NotOnBoard, and BoardInUse for `default`.
        """
        self._health.check_writable()
        if name == DEFAULT_BOARD:
            raise BoardInUse("a user cannot leave the board 'default'; hide or delete the user")
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
        self, board: str, user_id: int, number: Number, once: Once | None, *, adds: bool
    ) -> EntrySet:
        self._health.check_writable()
        if once is None:
            return await self._submit(board, user_id, number, adds=adds)
        key = idempotency_key(*once, ("add" if adds else "set", board, user_id, _same_for_equal(number)))
        return await self._idempotency.once(
            key,
            lambda: self._submit(board, user_id, number, key, adds=adds),
            lambda first: _first_entry(board, user_id, first),
        )

    async def _submit(
        self, name: str, user_id: int, number: Number, key: IdempotencyKey | None = None, *, adds: bool
    ) -> EntrySet:
        deadline = time.monotonic() + self._tuning.row_wait_s
        while True:
            board = await self._boards.known(name)
            try:
                item = _new_entry(board, user_id, number, key, adds=adds)
            except InvalidField:
                # Another process may have changed the rules since.
                current = await self._boards.get(name)
                if (current.board_id, current.version) == (board.board_id, board.version):
                    raise
                continue
            written = await self._queue.submit(item)
            match written.outcome:
                case Outcome.WRITTEN | Outcome.SAME:
                    return _entry_set(board.rules, user_id, written)
                case Outcome.NO_USER:
                    raise UserNotFound(user_id)
                case Outcome.OUT_OF_BOUNDS:
                    raise InvalidField({_field(adds=adds): _out_of_bounds(board.rules, number)})
                case Outcome.OTHER_RULES:
                    await self._boards.get(name)
                case Outcome.NO_SEASON:
                    board = await self._boards.get(name)
                    if board.season_ends_at is not None and board.season_ends_at <= board.now:
                        await self._boards.end(board)
            if time.monotonic() > deadline:
                raise LockedOut(f"another transaction has locked the entry of the user {user_id}")
            if written.outcome is Outcome.AGAIN:
                # Waiting for the row itself would hold up all others.
                with cancel_is_safe():
                    await asyncio.sleep(random.uniform(*self._tuning.row_retry_s))

    async def _write(self, batch: Batch[NewEntry]) -> Sequence[EntryWritten | Exception]:
        self._metrics.batch_items.labels("entries").observe(len(batch.items))
        committed = await commit(batch.items, self._database.entries.write, self._health)
        batch.start_next()
        for position in committed.positions:
            self._health.note_postgres(position)
        await asyncio.gather(*map(self._visibility.wait_until_visible, committed.positions))
        return committed.results

    def queues(self) -> Sequence[Batcher[NewEntry, EntryWritten]]:
        """Return the queues."""
        return (self._queue,)

    async def close(self) -> None:
        """Finish what was begun."""
        await self._queue.close()


def _same_for_equal(number: Number) -> str:
    """Return a text that equal numbers share: 0.5, 0.50 and 5e-1 are one request, as 5 and 5.0 are."""
    return str(_EXACT.normalize(Decimal(number)))


def _field(*, adds: bool) -> str:
    return "increment" if adds else "score"


def _new_entry(board: Board, user_id: int, number: Number, key: IdempotencyKey | None, *, adds: bool) -> NewEntry:
    """Return the entry to write.

    Raises BoardInUse for `default`, and InvalidField for what the board does not take.
    """
    rules = board.rules
    if board.board_id == 1:
        raise BoardInUse("the board 'default' takes scores at /users/{id}/score")
    if adds and rules.keeps == "best":
        raise InvalidField({"increment": "is refused, because the board keeps the best score; set a score"})
    if not adds and rules.keeps == "sum":
        raise InvalidField({"score": "is refused, because the board adds scores up; send an increment"})
    try:
        scaled = scale(rules, number)
    except ValueError as error:
        raise InvalidField({_field(adds=adds): str(error)}) from None
    value = scaled if rules.better == "higher" else -scaled
    return NewEntry(board.board_id, board.version, user_id, value, adds, key)


def _first_entry(board: str, user_id: int, first: FirstWrite) -> EntrySet:
    """Return the result of an entry that was written before. Raises BoardNotFound and UserNotFound."""
    if first.rules is None or first.sort_key is None:
        raise BoardNotFound(board)
    if first.user_name is None:
        raise UserNotFound(user_id)
    bits = key_rules(first.rules).tie_bits
    previous = None if first.previous_score is None else first.previous_score >> bits
    value = first.sort_key >> bits
    written = EntryWritten(Outcome.WRITTEN, first.season_number, first.user_name, first.image_url, previous, value)
    return _entry_set(first.rules, user_id, written)


def _entry_set(rules: BoardRules, user_id: int, written: EntryWritten) -> EntrySet:
    return EntrySet(
        user_id,
        written.user_name or "",
        written.image_url,
        _shown(rules, written.value or 0),
        None if written.previous is None else _shown(rules, written.previous),
        written.previous is None or (written.value or 0) > written.previous,
        written.season_number or 0,
    )


def _shown(rules: BoardRules, value: int) -> Number:
    return unscale(rules, value if rules.better == "higher" else -value)


def _out_of_bounds(rules: BoardRules, number: Number) -> str:
    words = (("at least", rules.lowest), ("at most", rules.highest))
    bounds = [f"{word} {bound}" for word, bound in words if bound is not None]
    allowed = " and ".join(bounds) or "within the range of this board"
    return f"{number} would lead to a score out of bounds; {allowed} is allowed"
