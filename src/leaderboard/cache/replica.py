"""This process's copy of the cache, in the board's order, so that an answer is a slice of it.

It is at a state of the cache, named by that state's token, and is read only when Redis has just said that this is
the state that may be read now. It is moved by the same moves as the cache itself, which are kept beside it for a
while, or loaded anew. So it is no view of its own that could be ahead of the cache or behind it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leaderboard.cache.tops import Tops
from leaderboard.model import (
    NEIGHBOURS,
    Answer,
    Context,
    EncodedTop,
    Question,
    Standing,
    StandingQuery,
    Top,
    TopQuery,
    User,
    ranked,
)


@dataclass(frozen=True, slots=True)
class Move:
    """What one catching up did to the cache: who is gone, who is new or other; at most `keep` users stay."""

    keep: int
    gone: Sequence[int]
    changed: Sequence[User]


class Copy:
    """The users of one state of the cache, best first. `everyone`: it has all there are, of `total`."""

    def __init__(self, token: bytes, users: Iterable[User]) -> None:
        self.token = token
        self.everyone = False
        self.total = 0
        self._users = {user.user_id: user for user in users}
        # Two lists of the same order: users, and their places to search in.
        self._board = sorted(self._users.values(), key=_place)
        self._places = list(map(_place, self._board))
        self._tops = Tops()

    def __len__(self) -> int:
        return len(self._board)

    def users(self) -> list[User]:
        """All of them, best first."""
        return list(self._board)

    def move(self, move: Move) -> None:
        """Do what was done to the cache."""
        for user_id in move.gone:
            self._remove(user_id)
        for user in move.changed:
            self._remove(user.user_id)
            self._users[user.user_id] = user
            place = _place(user)
            index = bisect_left(self._places, place)
            self._places.insert(index, place)
            self._board.insert(index, user)
        for user in self._board[move.keep :]:
            del self._users[user.user_id]
        del self._board[move.keep :], self._places[move.keep :]
        self._tops.clear()

    def _remove(self, user_id: int) -> None:
        user = self._users.pop(user_id, None)
        if user is not None:
            index = bisect_left(self._places, _place(user))
            del self._board[index], self._places[index]

    def answer(self, question: Question) -> Answer | None:
        """None if there is no such user here, or the answer would reach further down."""
        if isinstance(question, TopQuery):
            return self._top(question.n)
        user = self._users.get(question.user_id)
        if user is None:
            return None
        index = bisect_left(self._places, _place(user))
        if isinstance(question, StandingQuery):
            return ranked(index + 1, user)
        if not (self.everyone or index + NEIGHBOURS < len(self._board)):
            return None
        first = max(0, index - NEIGHBOURS)
        standings = self._standings(first, index + NEIGHBOURS + 1)
        at = index - first
        return Context(standings[at], standings[:at], standings[at + 1 :], self.total)

    def _top(self, n: int) -> EncodedTop | None:
        if not (self.everyone or n <= len(self._board)):
            return None
        top = self._tops.get(n)
        if top is None:
            top = EncodedTop.of(Top(self._standings(0, n)))
            self._tops.put(n, top)
        return top

    def _standings(self, first: int, end: int) -> list[Standing]:
        return [
            # Not by `ranked`: a call for each of eleven would be a good part of what a context takes.
            Standing(rank, user.user_id, user.user_name, user.image_url, user.total_score)
            for rank, user in enumerate(self._board[first:end], first + 1)
        ]


def _place(user: User) -> int:
    """Where a user stands, ascending is best first: as one number, because numbers are found faster than pairs."""
    return (-user.total_score << 32) + user.user_id
