"""What the service stores and answers: users, standings, contexts, tops, pages.

`rename` holds the names in JSON, once for the answers, the cache and the OpenAPI document.
"""

from decimal import Decimal
from typing import Annotated, NewType, Self

import msgspec
from msgspec import Meta

INT32_MAX = 2**31 - 1
SCORE_MAX = 2**53 - 1
"""JSON and the sorted sets of Redis have doubles as numbers. They keep every integer up to this one exactly."""
SCORE_MIN = -SCORE_MAX
NEIGHBOURS = 5
"""How many users a context shows above, and how many below."""

Rank = Annotated[int, Meta(ge=1, description="1-based position by (score descending, userId ascending)")]
Total = Annotated[int, Meta(ge=0, description="how many users there are on the board")]
UserId = Annotated[int, Meta(ge=1, le=INT32_MAX)]
ExternalId = NewType("ExternalId", str)
"""The caller's own id for a user: any text of 1 to 128 bytes without control characters."""
UserRef = int | ExternalId
"""Which user a caller means. `service/user_ids.py` finds the number of an external id."""
ShownExternalId = Annotated[
    str | None, Meta(description="the caller's own id for the user; missing where it has none")
]
Score = Annotated[int, Meta(ge=SCORE_MIN, le=SCORE_MAX, extra_json_schema={"format": "int64"})]

encode_json = msgspec.json.Encoder(decimal_format="number").encode
"""Returns a value as JSON. Scores of boards with decimals are Decimals, which become numbers."""

ScoreNumber = int | Decimal
"""A score of any board: a Decimal if the board has decimals."""

_SPELLING = {
    "user_id": "userId",
    "user_name": "username",
    "image_url": "imageUrl",
    "external_id": "externalId",
    "total_score": "score",
    "previous_score": "previousScore",
}


class User(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename=_SPELLING):
    """A user as it is stored."""

    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score
    external_id: ShownExternalId = None


class Standing(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename=_SPELLING):
    """A user with its rank."""

    rank: Rank
    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score
    external_id: ShownExternalId = None


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
    """A Top as JSON, encoded once while the board does not change."""

    body: bytes

    @classmethod
    def of(cls, top: Top) -> Self:
        """Encode a Top."""
        return cls(encode_json(top))

    def decode(self) -> Top:
        """Return the Top."""
        return msgspec.json.decode(self.body, type=Top)


class Page(msgspec.Struct, frozen=True, gc=False, rename=_SPELLING):
    """Consecutive users, best first, and how many users there are in all.

    `end` is the sort key and the id of the last user, None if it is the last of the board.
    """

    users: list[Standing]
    total: Total
    end: tuple[int, int] | None = None


class ScoreSet(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename=_SPELLING):
    """What setting a score did."""

    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score
    previous_score: Score
    external_id: ShownExternalId = None


class EntrySet(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename=_SPELLING):
    """What setting a score on a board other than `default` did.

    `score` and `previousScore` are as the board keeps them; `previousScore` is null for a new entry. `improved`:
    the entry is new or better than before.
    """

    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: ScoreNumber
    previous_score: ScoreNumber | None
    improved: bool
    season: int
    external_id: ShownExternalId = None


class Account(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename=_SPELLING):
    """A user as operators see it, whether hidden or not. `score` is that on the board `default`."""

    user_id: UserId
    user_name: str
    image_url: str | None
    total_score: Score
    hidden: bool
    external_id: ShownExternalId = None


def ranked(rank: int, user: User) -> Standing:
    """Return the standing of `user` at `rank`."""
    return Standing(rank, user.user_id, user.user_name, user.image_url, user.total_score, user.external_id)


Result = EncodedTop | Standing | Context | Page | Top
"""What a query can have as its result."""
