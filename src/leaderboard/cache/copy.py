"""This process's copy of the cache, in the board's order, so that an answer is a slice of it.

It is at a state of the cache, named by that state's token, and is read only when Redis has just said that this is
the state that may be read now. It is moved by the same moves as the cache itself, which are kept beside it for a
while, or loaded anew. So it is no view of its own that could be ahead of the cache or behind it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leaderboard.model import (
    NEIGHBOURS,
    Answer,
    AskContext,
    AskStanding,
    AskTop,
    Context,
    Question,
    Standing,
    Top,
    User,
    ranked,
)

_TOPS_KEPT = 100
_Place = tuple[int, int]


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
        self._places = sorted(map(_place, self._users.values()))
        self._tops: dict[int, Top] = {}

    def __len__(self) -> int:
        return len(self._places)

    def users(self) -> list[User]:
        """All of them, best first."""
        return [self._users[user_id] for _, user_id in self._places]

    def move(self, move: Move) -> None:
        """Do what was done to the cache."""
        for user_id in move.gone:
            self._remove(user_id)
        for user in move.changed:
            self._remove(user.user_id)
            self._users[user.user_id] = user
            insort(self._places, _place(user))
        for _, user_id in self._places[move.keep :]:
            del self._users[user_id]
        del self._places[move.keep :]
        self._tops.clear()

    def _remove(self, user_id: int) -> None:
        user = self._users.pop(user_id, None)
        if user is not None:
            del self._places[bisect_left(self._places, _place(user))]

    def answer(self, question: Question) -> Answer | None:
        """None if there is no such user here, or the answer would reach further down."""
        match question:
            case AskTop(n):
                return self._top(n)
            case AskStanding(user_id):
                index = self._index(user_id)
                return None if index is None else self._standing(index)
            case AskContext(user_id):
                index = self._index(user_id)
                if index is None or not (self.everyone or index + NEIGHBOURS < len(self._places)):
                    return None
                above = list(map(self._standing, range(max(0, index - NEIGHBOURS), index)))
                below = list(map(self._standing, range(index + 1, min(len(self), index + 1 + NEIGHBOURS))))
                return Context(self._standing(index), above, below, self.total)

    def _top(self, n: int) -> Top | None:
        if not (self.everyone or n <= len(self._places)):
            return None
        top = self._tops.get(n)
        if top is None:
            top = Top(list(map(self._standing, range(min(n, len(self._places))))))
            if len(self._tops) < _TOPS_KEPT:
                self._tops[n] = top
        return top

    def _index(self, user_id: int) -> int | None:
        user = self._users.get(user_id)
        return None if user is None else bisect_left(self._places, _place(user))

    def _standing(self, index: int) -> Standing:
        return ranked(index + 1, self._users[self._places[index][1]])


def _place(user: User) -> _Place:
    return -user.total_score, user.user_id
