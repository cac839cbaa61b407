"""This process's replicas of cached seasons, within a bounded number of users."""

from bisect import bisect_left
from typing import Any

from leaderboard.board_rules import parse_stored, score_of, unscale
from leaderboard.cache.replica import Replica
from leaderboard.cache.seasons import LEAST_WEIGHT, CachedSeason, SeasonExport
from leaderboard.model import Standing, User
from leaderboard.ordering import place

_MAX_TOP_BYTES = 65_536


class SeasonReplica(Replica):
    """The users of one version of a cached season, best first. Their scores are sort keys.

    Results have scores as clients see them, and shared ranks if the board shares them.
    """

    def __init__(self, export: SeasonExport) -> None:
        season = export.season
        super().__init__(season.version, export.users, _MAX_TOP_BYTES)
        self._tie_bits = season.tie_bits
        self._rules = rules = parse_stored(season.rules)
        # Then the sort key is the score, and the rank the position, as on `default`.
        self._plain = (rules.better, rules.ties, rules.ranks, rules.decimals) == ("higher", "id", "unique", 0)
        self.load = season.load
        self.move_to(season)

    def move_to(self, season: CachedSeason) -> bool:
        """Set the version that the users are of; returns False if they do not agree with it."""
        self.set_state(season.version, season.total, complete=season.complete)
        return len(self) == season.count

    def standing(self, user_id: int) -> Standing | None:
        """Return the standing of a user, None if the user is not here."""
        user = self._by_id.get(user_id)
        if user is None:
            return None
        index = bisect_left(self._places, place(user.total_score, user_id))
        return self._standings(index, index + 1)[0]

    def _shared_rank(self, index: int, user: User) -> int:
        best_key = (((user.total_score >> self._tie_bits) + 1) << self._tie_bits) - 1
        return bisect_left(self._places, place(best_key, 0), 0, index) + 1

    def _standings(self, first: int, end: int) -> list[Standing]:
        if self._plain:
            return super()._standings(first, end)
        rules = self._rules
        standings: list[Standing] = []
        for index, user in enumerate(self._users[first:end], first):
            score: Any = unscale(rules, score_of(rules, user.total_score))
            rank = index + 1
            if rules.ranks == "shared":
                shares = standings and standings[-1].total_score == score
                rank = standings[-1].rank if shares else self._shared_rank(index, user)
            standings.append(Standing(rank, user.user_id, user.user_name, user.image_url, score, user.external_id))
        return standings


class SeasonReplicas:
    """The replicas by the name of the season; the least recently read one is dropped first."""

    def __init__(self, max_users: int) -> None:
        self._max_users = max_users
        self._users = 0
        # In the order of their last use.
        self._replicas: dict[str, tuple[SeasonReplica, int]] = {}

    def get(self, name: str) -> SeasonReplica | None:
        """Return the replica of a season, None if there is none."""
        kept = self._replicas.pop(name, None)
        if kept is None:
            return None
        self._replicas[name] = kept
        return kept[0]

    def put(self, name: str, replica: SeasonReplica) -> None:
        """Keep the replica of a season, which may have grown, and drop others that there is no room for."""
        self.drop(name)
        weight = max(len(replica), LEAST_WEIGHT)
        self._replicas[name] = replica, weight
        self._users += weight
        while self._users > self._max_users and len(self._replicas) > 1:
            self.drop(next(iter(self._replicas)))

    def drop(self, name: str) -> None:
        """Drop the replica of a season."""
        kept = self._replicas.pop(name, None)
        if kept is not None:
            self._users -= kept[1]
