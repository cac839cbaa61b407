"""Changes a score of any board, by one rule for `default` and the others, and reads the rank after it."""

from leaderboard.board_rules import DEFAULT_BOARD, Number
from leaderboard.errors import InvalidField, LeaderboardError
from leaderboard.model import EntrySet, ScoreSet, UserRef
from leaderboard.queries import SeasonRef
from leaderboard.rules import check_score
from leaderboard.service.entries import EntryWrites
from leaderboard.service.idempotency import Once
from leaderboard.service.reads import Reads
from leaderboard.service.writes import Writes


class Scores:
    """The scores of all boards, as one process among several changes them."""

    def __init__(self, reads: Reads, writes: Writes, entries: EntryWrites) -> None:
        self._reads = reads
        self._writes = writes
        self._entries = entries

    async def change(
        self,
        board: str,
        user: UserRef,
        number: Number,
        *,
        adds: bool,
        once: Once | None = None,
        user_name: str | None = None,
    ) -> EntrySet:
        """Set a score, or add to it.

        Raises InvalidField for a number that the board does not take, and what `EntryWrites.set_score` raises.
        """
        if board == DEFAULT_BOARD:
            return await self._set_default(user, number, adds, once, user_name)
        write = self._entries.add if adds else self._entries.set_score
        return await write(board, user, number, once, user_name)

    async def rank(self, board: str, entry: EntrySet) -> int | None:
        """Return the rank of an entry that was changed, None if it cannot be read.

        An error would read as if the write had failed, and an increment would be sent again.
        """
        season = None if board == DEFAULT_BOARD else SeasonRef(board, entry.season)
        try:
            return (await self._reads.standing(entry.user_id, season)).result.rank
        except LeaderboardError:
            return None

    async def _set_default(
        self, user: UserRef, number: Number, adds: bool, once: Once | None, user_name: str | None
    ) -> EntrySet:
        if adds:
            raise InvalidField({"increment": "is refused, because the board 'default' keeps the last score"})
        if not isinstance(number, int):
            raise InvalidField({"score": "must be an integer, not a number with a fraction"})
        try:
            score = check_score(number)
        except ValueError as error:
            raise InvalidField({"score": str(error)}) from None
        return _entry_of_default(await self._writes.set_score(user, score, once, user_name))


def _entry_of_default(done: ScoreSet) -> EntrySet:
    """Return what setting a score on `default` did, in the form of the other boards."""
    improved = done.total_score > done.previous_score
    names = done.user_name, done.image_url
    return EntrySet(done.user_id, *names, done.total_score, done.previous_score, improved, 1, done.external_id)
