"""What an answer says of the state that it shows, as a demand that a board meets or does not."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from leaderboard.model import NEIGHBOURS
from tests.faults.committed import Board, Key
from tests.faults.history import Operation

BEST: Key = (-(2**32), 0)
"""Before all users."""


class Demand(NamedTuple):
    """What an answer says of the state it shows."""

    shown: Mapping[int, tuple[int | None, str | None]]
    """By user: score and name."""
    first: Key | None
    """Where the rows begin; None: nothing is said about the users that are not shown."""
    last: Key
    above: int
    """How many users stand above the first row."""
    below: bool
    """Whether users may stand below the last one."""

    def in_the_way(self, board: Board) -> Iterator[int]:
        """The users that are at a version that will not do."""
        for user_id, version in self.shown.items():
            if board.current(user_id)[1:] != version:
                yield user_id
        if self.first is not None:
            start = bisect_left(board.keys, self.first) if self.above else 0
            stop = bisect_right(board.keys, self.last) if self.below else len(board.keys)
            for _, user_id in board.keys[start:stop]:
                if user_id not in self.shown:
                    yield user_id

    def counts(self, board: Board) -> bool:
        return self.first is None or bisect_left(board.keys, self.first) == self.above


def demand(answer: Operation) -> Demand | str:
    """What the answer demands of a state, or why none at all can give it."""
    if answer.outcome == "missing":
        return Demand({answer.target: (None, None)}, None, BEST, 0, True)
    places = answer.places
    keys = [(-place.score, place.user_id) for place in places]
    shown: dict[int, tuple[int | None, str | None]] = {p.user_id: (p.score, p.name) for p in places}
    rank = places[0].rank if places else 1
    if keys != sorted(keys) or len(shown) < len(places):
        return "its rows are not in the board's order"
    if rank < 1 or any(place.rank != number for number, place in enumerate(places, rank)):
        return "its ranks do not follow each other"
    if answer.kind == "top":
        if rank != 1 or len(places) > answer.target:
            return "these are not the best n"
        first, last = (keys[0], keys[-1]) if keys else (BEST, BEST)
        return Demand(shown, first, last, 0, len(places) == answer.target)
    if answer.target not in shown:
        return "the user is not there"
    above = list(shown).index(answer.target)
    below = len(places) - 1 - above
    if answer.kind == "user":
        return Demand(shown, keys[0], keys[0], rank - 1, True) if len(places) == 1 else "there are others"
    if max(above, below) > NEIGHBOURS or (above < NEIGHBOURS and rank != 1):
        return "these are not its neighbours"
    return Demand(shown, keys[0], keys[-1], rank - 1, below == NEIGHBOURS)
