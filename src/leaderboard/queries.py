"""The questions that readers ask. Each knows what its result costs.

The type parameter of `Query` is the type of its result. A RankingQuery can be answered from the cache, the others
only by PostgreSQL.
"""

from typing import Generic, Protocol, TypeVar

import msgspec

from leaderboard.errors import LeaderboardError, NotOnBoard, UserNotFound
from leaderboard.model import NEIGHBOURS, Context, EncodedTop, Page, Result, Standing, Top

R_co = TypeVar("R_co", bound=Result, covariant=True)


class Ranking(Protocol):
    """The best users of a board in memory. Each method returns None where it does not reach far enough."""

    def top(self, n: int) -> EncodedTop | None: ...

    def standing(self, user_id: int) -> Standing | None: ...

    def context(self, user_id: int) -> Context | None: ...


class SeasonRef(msgspec.Struct, frozen=True, gc=False):
    """A season of a board other than `default`.

    `number` is None for the current one, and 0 for the last ended one.
    """

    board: str
    number: int | None = None


class Query(msgspec.Struct, Generic[R_co], frozen=True, gc=False, kw_only=True):
    """A question with a result of one type. Equal queries of one batch share a result.

    `season` is None for the board `default`.
    """

    season: SeasonRef | None = None

    @property
    def cost(self) -> int:
        """How many users the result has, at most."""
        raise NotImplementedError


class RankingQuery(Query[R_co], Generic[R_co], frozen=True, gc=False, kw_only=True):
    """A query that the cache can answer. `stale` accepts a state of any age."""

    stale: bool = False

    def result_from(self, ranking: Ranking) -> R_co | None:
        """Return the result, None if the ranking does not reach far enough."""
        raise NotImplementedError

    def not_found(self) -> LeaderboardError:
        """Return the error for a query that has no result."""
        raise NotImplementedError


class TopQuery(RankingQuery[EncodedTop], frozen=True, gc=False):
    """The best `n` users."""

    n: int

    @property
    def cost(self) -> int:
        return self.n

    def result_from(self, ranking: Ranking) -> EncodedTop | None:
        return ranking.top(self.n)


def _not_found(user_id: int, season: SeasonRef | None) -> LeaderboardError:
    return UserNotFound(user_id) if season is None else NotOnBoard(user_id, season.board)


class StandingQuery(RankingQuery[Standing], frozen=True, gc=False):
    """The rank of one user."""

    user_id: int

    @property
    def cost(self) -> int:
        return 1

    def result_from(self, ranking: Ranking) -> Standing | None:
        return ranking.standing(self.user_id)

    def not_found(self) -> LeaderboardError:
        return _not_found(self.user_id, self.season)


class ContextQuery(RankingQuery[Context], frozen=True, gc=False):
    """One user with its neighbours."""

    user_id: int

    @property
    def cost(self) -> int:
        return 1 + 2 * NEIGHBOURS

    def result_from(self, ranking: Ranking) -> Context | None:
        return ranking.context(self.user_id)

    def not_found(self) -> LeaderboardError:
        return _not_found(self.user_id, self.season)


class PageQuery(Query[Page], frozen=True, gc=False):
    """The `limit` users after the place of a user with this score and id, or the first ones."""

    limit: int
    after: tuple[int, int] | None = None

    @property
    def cost(self) -> int:
        return self.limit


class PageAroundQuery(Query[Page], frozen=True, gc=False):
    """The `limit` users that have this rank in their middle."""

    limit: int
    rank: int

    @property
    def cost(self) -> int:
        return self.limit


class FriendsQuery(Query[Top], frozen=True, gc=False):
    """The users of these that are on the board, best first, with their ranks among all."""

    user_ids: tuple[int, ...]

    @property
    def cost(self) -> int:
        return len(self.user_ids)
