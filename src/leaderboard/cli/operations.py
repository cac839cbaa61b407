"""What the commands for operators do, with PostgreSQL and Redis or by the API of a running service.

All answers are those of the API, so that a command prints the same in both modes. `stores.py` and `service.py`
implement the protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from leaderboard.board_rules import Number
from leaderboard.http.board_answers import ChangedEntry
from leaderboard.http.status import Status
from leaderboard.model import Account, Context, Top, UserRef
from leaderboard.queries import SeasonRef


@dataclass(frozen=True, slots=True)
class UserName:
    """A user that is named by its username, as it is stored."""

    text: str


NamedUser = UserRef | UserName


class Found(msgspec.Struct, frozen=True):
    """A user with its place on a board, None if it is not there, and the names of all boards it is on."""

    user: Account
    context: Context | None
    boards: list[str]


class CacheSummary(msgspec.Struct, frozen=True, rename="camel"):
    """The cache.

    `users` of `default`, and `seasons` of other boards are in it. `age_s` is the age of its snapshot in seconds at
    most, None if that is not known. `valid`: it may be read.
    """

    users: int
    seasons: int
    age_s: float | None = msgspec.field(name="ageSeconds", default=None)
    valid: bool | None = None


class IndexSummary(msgspec.Struct, frozen=True):
    """The rank index of `default`: whether it is valid, and how many log rows are not applied to it yet."""

    valid: bool
    pending: int


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The state of a service. What this mode, or this moment, does not show is None.

    `source`: "service", as one of its processes says, or "stores", as PostgreSQL and Redis say. `health` is the
    answer of `/readyz`, in both. `connections` are those of all processes to PostgreSQL. `log_rows` are those of
    the change log. `in_flight` are the requests being handled, and `queues` those that wait, by queue. `notes` say
    why something is not known.
    """

    source: Literal["service", "stores"]
    health: Status
    connections: int | None = None
    cache: CacheSummary | None = None
    log_rows: int | None = None
    rank_index: IndexSummary | None = None
    in_flight: int | None = None
    queues: dict[str, int] | None = None
    notes: list[str] = []


class Operations(Protocol):
    """What an operator can do. All raise LeaderboardError."""

    async def top(self, n: int, board: str, season: SeasonRef | None) -> Top:
        """Return the best `n` users. Raises InvalidParameter, BoardNotFound and SeasonNotFound."""

    async def find(self, user_name: str) -> Account:
        """Return the user of a name. Raises UserNotFound."""

    async def account(self, user: UserRef) -> Account:
        """Return a user. Raises UserNotFound."""

    async def context(self, user: UserRef, board: str) -> Context | None:
        """Return a user with its neighbours, None if it is not on the board. Raises BoardNotFound."""

    async def boards_of(self, user: UserRef) -> Sequence[str]:
        """Return the names of the boards that a user is on. Raises UserNotFound."""

    async def change_score(self, user: UserRef, board: str, number: Number, *, adds: bool) -> ChangedEntry:
        """Set a score, or add to it. Raises InvalidInput for a number that the board does not take."""

    async def set_hidden(self, user: UserRef, *, hidden: bool) -> Account:
        """Hide a user on all boards, or show it again. Raises UserNotFound."""

    async def board_names(self) -> Sequence[str]:
        """Return the names of the first 1,000 boards."""

    async def summary(self) -> Summary:
        """Return the state of the service. A store that cannot be reached is no error."""
