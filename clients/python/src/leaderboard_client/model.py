"""What the service answers, and the rules of a board.

Members of answers that this version does not know are ignored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias, overload

Score: TypeAlias = int | Decimal
"""A score: a Decimal with all decimals of the board, or an int on a board without decimals."""
Number: TypeAlias = int | Decimal | float
"""A score or an increment to send. A float is sent with the digits that Python shows, and is not rounded."""
SeasonRef: TypeAlias = int | Literal["previous"]
"""The number of a season, or the last one that ended."""

Members = Mapping[str, Any]
"""The members of a JSON object."""


@dataclass(frozen=True, slots=True)
class User:
    """A user that was created. `score` is that on the board `default`."""

    user_id: int
    username: str
    image_url: str | None
    score: int
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """A user, whether hidden or not. `score` is that on the board `default`."""

    user_id: int
    username: str
    image_url: str | None
    score: int
    hidden: bool
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A user of a board with its rank, 1 for the best.

    `age_s` is how old the answer to `standing` may be, in seconds; None if it is as of now. Only while the service
    cannot reach PostgreSQL are answers older.
    """

    rank: int
    user_id: int
    username: str
    image_url: str | None
    score: Score
    external_id: str | None = None
    age_s: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Top(Sequence[Standing]):
    """The best users of a board, best first. `age_s` is as in Standing."""

    standings: tuple[Standing, ...]
    age_s: int | None = field(default=None, compare=False)

    @overload
    def __getitem__(self, index: int) -> Standing: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Standing]: ...
    def __getitem__(self, index: int | slice) -> Standing | Sequence[Standing]:
        return self.standings[index]

    def __len__(self) -> int:
        return len(self.standings)

    def __iter__(self) -> Iterator[Standing]:
        return iter(self.standings)


@dataclass(frozen=True, slots=True)
class Context:
    """A user with up to five above and five below, each best first.

    `total` is the number of all users on the board, `age_s` is as in Standing.
    """

    user: Standing
    above: tuple[Standing, ...]
    below: tuple[Standing, ...]
    total: int
    age_s: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive users of a board, best first, and the number of all.

    `next` is the cursor of the next page, None on the last one.
    """

    standings: tuple[Standing, ...]
    total: int
    next: str | None


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """What a change of a score did.

    `previous_score` is None for a new entry. `improved`: the entry is new or better than before. `rank` is None if
    it was not asked for, or could not be read after the write.
    """

    user_id: int
    username: str
    image_url: str | None
    score: Score
    previous_score: Score | None
    improved: bool
    season: int
    rank: int | None = None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedScore:
    """One of many changes that was refused; the others are not affected. `code` is that of an ApiError.

    `user_id` is None if the change was for an external id that no user has.
    """

    user_id: int | None
    code: str
    detail: str
    external_id: str | None = None


ScoreResult = ScoreChange | RefusedScore
"""The result of one of many changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When the seasons of a board end: `every` or `cron`, in a time zone of the IANA database."""

    every: Literal["hour", "day", "week", "month", "year"] | None = None
    cron: str | None = None
    timezone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of a board, with the defaults of the service.

    `lowest` and `highest` bound the scores. `season` is when seasons end, `keep_seasons` how many ended ones are
    kept; None keeps all.
    """

    better: Literal["higher", "lower"] = "higher"
    keeps: Literal["last", "best", "sum"] = "last"
    ties: Literal["id", "first"] = "id"
    ranks: Literal["unique", "shared"] = "unique"
    decimals: int = 0
    lowest: Number | None = None
    highest: Number | None = None
    season: Schedule | None = None
    keep_seasons: int | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Season:
    """A season of a board, in UTC.

    `ended_at` is None for the current one, `ends_at` where it does not end by itself.
    """

    number: int
    started_at: datetime
    ended_at: datetime | None
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class BoardInfo:
    """A board with its rules and its current season."""

    name: str
    rules: Rules
    current_season: Season


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the process that answered, and of the stores it uses.

    `status` is "ok", "degraded", "unavailable" or "stopping".
    """

    service: str
    version: str
    status: str
    postgres: str
    redis: str
    writes: str


# From and to JSON. A missing member raises KeyError, a value of another kind TypeError or ValueError.


def user(members: Members) -> User:
    """Returns a user that was created."""
    return User(*_named(members), members["score"], members.get("externalId"))


def account(members: Members) -> Account:
    """Returns a user as operators see it."""
    return Account(*_named(members), members["score"], members["hidden"], members.get("externalId"))


def standing(members: Members, age_s: int | None = None) -> Standing:
    """Returns a user with its rank."""
    return Standing(members["rank"], *_named(members), members["score"], members.get("externalId"), age_s)


def standings(members: Sequence[Members]) -> tuple[Standing, ...]:
    """Returns users with their ranks."""
    return tuple(map(standing, members))


def context(members: Members, age_s: int | None) -> Context:
    """Returns a user with its neighbours."""
    return Context(
        standing(members["user"]),
        standings(members["above"]),
        standings(members["below"]),
        members["total"],
        age_s,
    )


def page(members: Members) -> Page:
    """Returns a page of a board."""
    return Page(standings(members["users"]), members["total"], members["next"])


def score_change(members: Members) -> ScoreChange:
    """Returns what a change of a score did.

    The short call for `default` answers without `improved` and `season`, which its rules determine.
    """
    score, previous = members["score"], members["previousScore"]
    is_short = "improved" not in members
    return ScoreChange(
        *_named(members),
        score,
        previous,
        score > previous if is_short else members["improved"],
        1 if is_short else members["season"],
        members.get("rank"),
        members.get("externalId"),
    )


def score_result(members: Members) -> ScoreResult:
    """Returns the result of one of many changes."""
    if "error" not in members:
        return score_change(members)
    error = members["error"]
    return RefusedScore(members.get("userId"), error["code"], error["detail"], members.get("externalId"))


def board_info(members: Members) -> BoardInfo:
    """Returns a board."""
    schedule = members["season"]
    rules = Rules(
        **{name: members[name] for name in ("better", "keeps", "ties", "ranks", "decimals")},
        **{name: members[name] for name in ("lowest", "highest", "title")},
        season=None
        if schedule is None
        else Schedule(**{name: schedule.get(name) for name in ("every", "cron", "timezone")}),
        keep_seasons=members["keepSeasons"],
    )
    return BoardInfo(members["name"], rules, season(members["currentSeason"]))


def rules_to_send(rules: Rules) -> Members:
    """Returns all rules as the members of a JSON object."""
    members = {name: getattr(rules, name) for name in Rules.__slots__}
    members["keepSeasons"] = members.pop("keep_seasons")
    if rules.season is not None:
        values = {name: getattr(rules.season, name) for name in Schedule.__slots__}
        members["season"] = {name: value for name, value in values.items() if value is not None}
    return members


def season(members: Members) -> Season:
    """Returns a season."""
    ended, ends = members.get("endedAt"), members["endsAt"]
    return Season(
        members["number"],
        datetime.fromisoformat(members["startedAt"]),
        None if ended is None else datetime.fromisoformat(ended),
        None if ends is None else datetime.fromisoformat(ends),
    )


def status(members: Members) -> Status:
    """Returns the status of a process."""
    return Status(**{name: members[name] for name in Status.__slots__})


def _named(members: Members) -> tuple[int, str, str | None]:
    return members["userId"], members["username"], members["imageUrl"]
