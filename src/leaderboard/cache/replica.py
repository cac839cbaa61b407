"""This process's replica of the cache, in the order of the board, so that a result is a slice of it.

A replica is at one state of the cache, named by the token of that state. It is read only when Redis has just said
that this state may be read. It moves by the deltas that are stored beside the cache, or is loaded again. So it
shows nothing that the cache does not show.
"""

from bisect import bisect_left
from collections.abc import Iterable

from leaderboard.cache.format import Delta
from leaderboard.cache.tops import MAX_BYTES, EncodedTops
from leaderboard.model import NEIGHBOURS, Context, EncodedTop, Standing, Top, User, ranked
from leaderboard.ordering import place


class Replica:
    """The users of one state of the cache, best first. A `queries.Ranking`."""

    def __init__(self, token: bytes = b"", users: Iterable[User] = (), max_top_bytes: int = MAX_BYTES) -> None:
        self._token = token
        self._complete = False
        self._total = 0
        self._by_id = {user.user_id: user for user in users}
        # Two lists in the same order: the users, and their places to search in.
        self._users = sorted(self._by_id.values(), key=_place)
        self._places = list(map(_place, self._users))
        self._tops = EncodedTops(max_top_bytes)

    @property
    def token(self) -> bytes:
        """The token of the state, empty for no state."""
        return self._token

    @property
    def complete(self) -> bool:
        """Whether it has all users of the board."""
        return self._complete

    def __len__(self) -> int:
        return len(self._users)

    def users(self) -> list[User]:
        """Return all users, best first."""
        return list(self._users)

    def apply(self, delta: Delta) -> None:
        """Do what was done to the cache."""
        for user_id in delta.deleted:
            self._remove(user_id)
        for row in delta.changed:
            user = User(*row)
            self._remove(user.user_id)
            self._by_id[user.user_id] = user
            at = _place(user)
            index = bisect_left(self._places, at)
            self._places.insert(index, at)
            self._users.insert(index, user)
        for user in self._users[delta.keep :]:
            del self._by_id[user.user_id]
        del self._users[delta.keep :], self._places[delta.keep :]
        self._tops.clear()

    def set_state(self, token: bytes, total: int, *, complete: bool) -> None:
        """Set the state that the users are of: its token, the number of users in all, and whether it has all."""
        self._token = token
        self._total = total
        self._complete = complete

    def _remove(self, user_id: int) -> None:
        user = self._by_id.pop(user_id, None)
        if user is not None:
            index = bisect_left(self._places, _place(user))
            del self._users[index], self._places[index]

    def top(self, n: int) -> EncodedTop | None:
        """Return the best `n` users, None if it has fewer and is not complete."""
        if not (self._complete or n <= len(self._users)):
            return None
        top = self._tops.get(n)
        if top is None:
            top = EncodedTop.of(Top(self._standings(0, n)))
            self._tops.put(n, top)
        return top

    def standing(self, user_id: int) -> Standing | None:
        """Return the standing of a user, None if the user is not here."""
        user = self._by_id.get(user_id)
        return None if user is None else ranked(bisect_left(self._places, _place(user)) + 1, user)

    def context(self, user_id: int) -> Context | None:
        """Return the context of a user, None if the user or a neighbour below is not here."""
        user = self._by_id.get(user_id)
        if user is None:
            return None
        index = bisect_left(self._places, _place(user))
        if not (self._complete or index + NEIGHBOURS < len(self._users)):
            return None
        first = max(0, index - NEIGHBOURS)
        standings = self._standings(first, index + NEIGHBOURS + 1)
        at = index - first
        return Context(standings[at], standings[:at], standings[at + 1 :], self._total)

    def _standings(self, first: int, end: int) -> list[Standing]:
        return [
            # Not by `ranked`: eleven calls of it would be a good part of what a context costs.
            Standing(rank, user.user_id, user.user_name, user.image_url, user.total_score, user.external_id)
            for rank, user in enumerate(self._users[first:end], first + 1)
        ]


def _place(user: User) -> int:
    return place(user.total_score, user.user_id)
