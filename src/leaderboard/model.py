"""The nouns: what a user is and where it stands.

The Python names are those of the domain; `rename` holds their spelling in JSON, once, for the answers, the
cache and the OpenAPI document alike.
"""

from typing import Annotated, Self

import msgspec
from msgspec import Meta

INT32_MIN = -(2**31)
INT32_MAX = 2**31 - 1
NEIGHBOURS = 5
"""How many users a context shows above, and how many below."""

Rank = Annotated[int, Meta(ge=1, description="1-based position by (score descending, userId ascending)")]
Total = Annotated[int, Meta(ge=0, description="how many users there are on the board")]
UserId = Annotated[int, Meta(ge=1, le=INT32_MAX)]
Score = Annotated[int, Meta(ge=INT32_MIN, le=INT32_MAX)]

_SPELLING = {
    "user_id": "userId",
    "user_name": "username",
    "image_url": "imageUrl",
    "total_score": "score",
    "previous_score": "previousScore",
}


class User(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """A user as it is stored."""

    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score


class Standing(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """A user with its rank."""

    rank: Rank
    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score


class Context(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """A user's standing with up to five above and five below, each list best first."""

    user: Standing
    above: list[Standing]
    below: list[Standing]
    total: Total


class Top(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """The best users, best first."""

    users: list[Standing]


class EncodedTop(msgspec.Struct, frozen=True, gc=False):
    """A Top as JSON, so that it is encoded once for all who ask for it while nothing changes."""

    body: bytes

    @classmethod
    def of(cls, top: Top) -> Self:
        """Encode it."""
        return cls(msgspec.json.encode(top))

    def decode(self) -> Top:
        """The users again."""
        return msgspec.json.decode(self.body, type=Top)


class Page(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """Some users in a row, best first, and how many there are in all."""

    users: list[Standing]
    total: Total


class ScoreSet(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """What setting a score did."""

    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score
    previous_score: Score


def ranked(rank: int, user: User) -> Standing:
    """`user` at `rank`."""
    return Standing(rank, user.user_id, user.user_name, user.image_url, user.total_score)


class TopQuery(msgspec.Struct, frozen=True, gc=False):
    """Who are the best `n`?"""

    n: int


class StandingQuery(msgspec.Struct, frozen=True, gc=False):
    """Where does this user stand?"""

    user_id: int


class ContextQuery(msgspec.Struct, frozen=True, gc=False):
    """Who stands around this user?"""

    user_id: int


class PageQuery(msgspec.Struct, frozen=True, gc=False):
    """Who are the next `limit` after the place (score, id), or from the first on?"""

    limit: int
    after: tuple[int, int] | None = None


class PageAroundQuery(msgspec.Struct, frozen=True, gc=False):
    """Who are the `limit` users that have this rank in their middle?"""

    limit: int
    rank: int


Question = TopQuery | StandingQuery | ContextQuery
"""What the cache may answer."""
PageQuestion = PageQuery | PageAroundQuery
"""What PostgreSQL alone answers."""
Answer = EncodedTop | Standing | Context | Page
