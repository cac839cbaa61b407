"""What a response implies about the state it shows, as a condition on a board."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from chaos.history import Operation
from leaderboard.model import NEIGHBOURS
from tests.consistency.committed import Board, Key

BEST: Key = (-(2**32), 0)
"""Before all users."""


class Demand(NamedTuple):
    """A condition on the state of the board, implied by a response."""

    shown: Mapping[int, tuple[int | None, str | None]]
    """Score and name by user; None for a user that does not exist."""
    first: Key | None
    """The users from here to `last` are exactly those shown; None: nothing is implied about others."""
    last: Key
    above: int
    """How many users are before `first`."""
    below: bool
    """Whether users may be below the last one."""
    total: int | None = None
    """How many users the board has, if the response has a total."""

    def in_the_way(self, board: Board) -> Iterator[int]:
        """Yields the users whose version contradicts the condition."""
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
        """Returns True if the total and the number of users before the first are right."""
        if self.total is not None and len(board.keys) != self.total:
            return False
        return self.first is None or bisect_left(board.keys, self.first) == self.above


def demand(answer: Operation) -> Demand | str:
    """Returns the condition of a response, or why no state can satisfy it."""
    if answer.outcome == "missing":
        if answer.kind not in {"user", "context", "set"}:
            return "this always has a result"
        return Demand({answer.target: (None, None)}, None, BEST, 0, True)
    places = answer.places
    keys = [(-place.score, place.user_id) for place in places]
    rank = places[0].rank if places else 1
    if keys != sorted(keys) or len({place.user_id for place in places}) < len(places):
        return "its rows are not in the board's order"
    if rank < 1 or any(place.rank != number for number, place in enumerate(places, rank)):
        return "its ranks do not follow each other"
    match answer.kind:
        case "top":
            return _of_top(answer, keys)
        case "user":
            return _of_user(answer, keys)
        case "context":
            return _of_context(answer, keys)
        case _:
            return _of_page(answer, keys)


def _shown(answer: Operation) -> dict[int, tuple[int | None, str | None]]:
    return {place.user_id: (place.score, place.name) for place in answer.places}


def _of_top(answer: Operation, keys: list[Key]) -> Demand | str:
    places = answer.places
    if len(places) > answer.target or (places and places[0].rank != 1):
        return "these are not the best n"
    first, last = (keys[0], keys[-1]) if keys else (BEST, BEST)
    return Demand(_shown(answer), first, last, 0, len(places) == answer.target)


def _of_user(answer: Operation, keys: list[Key]) -> Demand | str:
    if [place.user_id for place in answer.places] != [answer.target]:
        return "this is not the user, or not the user alone"
    return Demand(_shown(answer), keys[0], keys[0], answer.places[0].rank - 1, True)


def _of_context(answer: Operation, keys: list[Key]) -> Demand | str:
    places, total = answer.places, answer.total
    above = next((number for number, place in enumerate(places) if place.user_id == answer.target), None)
    if above is None:
        return "the user is not there"
    if total is None:
        return "it does not say how many users there are"
    below = len(places) - 1 - above
    if max(above, below) > NEIGHBOURS or (above < NEIGHBOURS and places[0].rank != 1):
        return "these are not its neighbours"
    if total < places[-1].rank or (below < NEIGHBOURS and total != places[-1].rank):
        return "its rows and its total do not fit each other"
    return Demand(_shown(answer), keys[0], keys[-1], places[0].rank - 1, total > places[-1].rank, total)


def _of_page(answer: Operation, keys: list[Key]) -> Demand | str:
    places, limit, total = answer.places, answer.limit, answer.total
    if total is None:
        return "it does not say how many users there are"
    above = places[0].rank - 1 if places else total
    left = total - above - len(places)
    if len(places) > limit or left < 0 or (left and len(places) < limit):
        return "its rows and its total do not fit each other"
    if answer.more != (left > 0):
        return "whether another page follows does not fit its total"
    first = keys[0] if keys else BEST
    if answer.kind == "around":
        if above != max(0, min(answer.target - 1 - limit // 2, total - limit)):
            return "the rank that was asked for is not in its middle"
    elif answer.after is None:
        if above:
            return "it does not begin with the best"
    else:
        score, user_id = answer.after
        first = (-score, user_id + 1)
        if keys and keys[0] < first:
            return "it does not begin behind its cursor"
    return Demand(_shown(answer), first, keys[-1] if keys else first, above, left > 0, total)
