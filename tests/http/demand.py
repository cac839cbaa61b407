"""What a response implies about the state it shows, as conditions on the boards."""

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from chaos.history import DEFAULT, WRITES, Entry, Operation, Season, current_season
from leaderboard.model import NEIGHBOURS
from tests.consistency.committed import Boards, Committed, Key

BEST: Key = (-sys.maxsize, 0)
"""Before all users."""


class Demand(NamedTuple):
    """A condition on the state, implied by a response about one season."""

    season: Season
    shown: Mapping[Entry, tuple[int | None, str | None]]
    """Score and name by entry; None for an entry that does not exist."""
    first: Key | None
    """The users from here to `last` are exactly those shown; None: nothing is implied about others."""
    last: Key
    above: int
    """How many users are before `first`."""
    below: bool
    """Whether users may be below the last one."""
    total: int | None = None
    """How many users the season has, if the response has a total."""
    current: range | None = None
    """Which of the board's seasons may be the current one; None: any."""

    def in_the_way(self, boards: Boards) -> Iterator[Entry]:
        """Yields the entries whose version contradicts the condition."""
        if self.current is not None:
            register = current_season(self.season.board)
            if boards.current(register).score not in self.current:
                yield register
        for entry, version in self.shown.items():
            if boards.current(entry)[1:] != version:
                yield entry
        if self.first is not None:
            keys = boards.keys[self.season]
            start = bisect_left(keys, self.first) if self.above else 0
            stop = bisect_right(keys, self.last) if self.below else len(keys)
            for _, user_id in keys[start:stop]:
                if (self.season, user_id) not in self.shown:
                    yield self.season, user_id

    def counts(self, boards: Boards) -> bool:
        """Returns True if the total and the number of users before the first are right."""
        keys = boards.keys[self.season]
        if self.total is not None and len(keys) != self.total:
            return False
        return self.first is None or bisect_left(keys, self.first) == self.above


def demands(answer: Operation, committed: Committed) -> list[Demand] | str:
    """Returns the conditions of a response, of which one must be met, or why no state can satisfy it.

    There are several where the response does not say which season it shows.
    """
    if answer.outcome == "missing" and answer.kind in WRITES and answer.kind != "remove":
        # There is no such user.
        return [_nothing(DEFAULT, {(DEFAULT, answer.target): (None, None)})]
    if answer.board == DEFAULT.board:
        wanted = _demand(answer, DEFAULT)
        return wanted if isinstance(wanted, str) else [wanted]
    found: list[Demand] = []
    for season, current in _seasons(answer, committed):
        wanted = _nothing(season, {}) if answer.outcome == "no season" else _demand(answer, season)
        if isinstance(wanted, str):
            return wanted
        if all(
            (entry, *version) in committed.first or version == (None, None)
            for entry, version in wanted.shown.items()
        ):
            found.append(wanted._replace(current=current))
    return found


def _seasons(answer: Operation, committed: Committed) -> Iterator[tuple[Season, range]]:
    """Yields the seasons that a response may show, each with the seasons that may be the current one then."""
    board, number = answer.board, answer.season
    numbers = committed.numbers(board)
    missing = answer.outcome == "no season"
    if number is None:
        yield from ((Season(board, n), range(n, n + 1)) for n in numbers)
    elif number:
        yield Season(board, number), range(number) if missing else range(number, sys.maxsize)
    else:
        for n in numbers:
            exists = n > numbers[0] or (n > 1 and Season(board, n - 1) in committed.seasons)
            if exists != missing:
                yield Season(board, n - 1), range(n, n + 1)


def _nothing(season: Season, shown: Mapping[Entry, tuple[int | None, str | None]]) -> Demand:
    """Returns a condition on some entries, and on no others."""
    return Demand(season, shown, None, BEST, 0, True)


def _demand(answer: Operation, season: Season) -> Demand | str:
    if answer.outcome == "missing":
        if answer.kind not in {"user", "context", "remove"}:
            return "this always has a result"
        return _nothing(season, {(season, answer.target): (None, None)})
    places = answer.places
    keys = [(-place.score, place.user_id) for place in places]
    rank = places[0].rank if places else 1
    if keys != sorted(keys) or len({place.user_id for place in places}) < len(places):
        return "its rows are not in the board's order"
    if rank < 1 or any(place.rank != number for number, place in enumerate(places, rank)):
        return "its ranks do not follow each other"
    match answer.kind:
        case "top":
            return _of_top(answer, season, keys)
        case "user":
            return _of_user(answer, season, keys)
        case "context":
            return _of_context(answer, season, keys)
        case _:
            return _of_page(answer, season, keys)


def _shown(answer: Operation, season: Season) -> dict[Entry, tuple[int | None, str | None]]:
    return {(season, place.user_id): (place.score, place.name) for place in answer.places}


def _of_top(answer: Operation, season: Season, keys: list[Key]) -> Demand | str:
    places = answer.places
    if len(places) > answer.target or (places and places[0].rank != 1):
        return "these are not the best n"
    first, last = (keys[0], keys[-1]) if keys else (BEST, BEST)
    return Demand(season, _shown(answer, season), first, last, 0, len(places) == answer.target)


def _of_user(answer: Operation, season: Season, keys: list[Key]) -> Demand | str:
    if [place.user_id for place in answer.places] != [answer.target]:
        return "this is not the user, or not the user alone"
    return Demand(season, _shown(answer, season), keys[0], keys[0], answer.places[0].rank - 1, True)


def _of_context(answer: Operation, season: Season, keys: list[Key]) -> Demand | str:
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
    return Demand(
        season, _shown(answer, season), keys[0], keys[-1], places[0].rank - 1, total > places[-1].rank, total
    )


def _of_page(answer: Operation, season: Season, keys: list[Key]) -> Demand | str:
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
    return Demand(season, _shown(answer, season), first, keys[-1] if keys else first, above, left > 0, total)
