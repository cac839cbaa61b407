"""The answers of the calls about boards, seasons and entries.

A score of a board is a number, with as many decimals as the board has. The service's own structs are sent where
they have the same members; the structs here then describe them for the OpenAPI document.
"""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from leaderboard.board_rules import Better, BoardRules, Keeps, Number, Ranks, Ties
from leaderboard.database.boards import Board, Season
from leaderboard.http.paging import NextPage
from leaderboard.model import Account, EntrySet, Rank, Total, UserId
from leaderboard.schedules import Every

BoardScore = Annotated[float, Meta(description="with as many decimals as the board has")]
Time = Annotated[datetime, Meta(tz=True, description="RFC 3339, in UTC")]


class BoardStanding(msgspec.Struct, frozen=True):
    """A user of a board with its rank. With shared ranks, users with the same score have the same rank."""

    rank: Rank
    userId: UserId  # noqa: N815
    username: str
    imageUrl: str | None  # noqa: N815
    score: BoardScore
    externalId: str | UnsetType = UNSET  # noqa: N815


class BoardContext(msgspec.Struct, frozen=True):
    """A user's standing with up to five above and five below, each list best first."""

    user: BoardStanding
    above: list[BoardStanding]
    below: list[BoardStanding]
    total: Total


class BoardTop(msgspec.Struct, frozen=True):
    """The best users, best first."""

    users: list[BoardStanding]


class BoardPage(msgspec.Struct, frozen=True):
    """A page of the board. The answer to `users` has neither `total` nor `next`."""

    users: list[BoardStanding]
    total: Total | UnsetType = UNSET
    next: NextPage | UnsetType = UNSET


class EntryError(msgspec.Struct, frozen=True):
    """Why an entry was not changed: the code of a problem, and what it is about."""

    code: str
    detail: str


class ChangedEntry(msgspec.Struct, frozen=True):
    """What was done to an entry.

    `score` and `previousScore` are as the board keeps them. `improved`: the entry is new or better than before.
    """

    userId: UserId  # noqa: N815
    username: str
    imageUrl: str | None  # noqa: N815
    score: BoardScore
    previousScore: BoardScore | None  # noqa: N815
    improved: bool
    season: int
    rank: (
        Annotated[Rank | None, Meta(description="with `rank=true`; null if it could not be read after the write")]
        | UnsetType
    ) = UNSET
    externalId: str | UnsetType = UNSET  # noqa: N815


class EntryResult(msgspec.Struct, frozen=True):
    """What was done to one of many entries: the members of a changed entry, or the id as sent and `error`."""

    userId: UserId | UnsetType = UNSET  # noqa: N815
    username: str | UnsetType = UNSET
    imageUrl: str | UnsetType | None = UNSET  # noqa: N815
    score: BoardScore | UnsetType = UNSET
    previousScore: BoardScore | UnsetType | None = UNSET  # noqa: N815
    improved: bool | UnsetType = UNSET
    season: int | UnsetType = UNSET
    externalId: str | UnsetType = UNSET  # noqa: N815
    error: EntryError | UnsetType = UNSET


class EntryResults(msgspec.Struct, frozen=True):
    """One result for each item, in order."""

    results: list[EntryResult]


class RefusedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An EntryResult that is an error."""

    userId: int | UnsetType = UNSET  # noqa: N815
    externalId: str | UnsetType = UNSET  # noqa: N815
    error: EntryError


class CurrentSeason(msgspec.Struct, frozen=True):
    """The season that runs. `endsAt` is null if it does not end by itself."""

    number: int
    startedAt: Time  # noqa: N815
    endsAt: Time | None  # noqa: N815


class ScheduleAnswer(msgspec.Struct, frozen=True):
    """When seasons end: `every` or `cron`, in a time zone."""

    timezone: str
    every: Every | UnsetType = UNSET
    cron: str | UnsetType = UNSET


class BoardAnswer(msgspec.Struct, frozen=True):
    """A board with all its rules and its current season."""

    name: str
    better: Better
    keeps: Keeps
    ties: Ties
    ranks: Ranks
    decimals: int
    lowest: Annotated[float, Meta(description="the lowest score")] | None
    highest: Annotated[float, Meta(description="the highest score")] | None
    season: ScheduleAnswer | None
    keepSeasons: int | None  # noqa: N815
    title: str | None
    currentSeason: CurrentSeason  # noqa: N815


class BoardsAnswer(msgspec.Struct, frozen=True):
    """Boards by name."""

    boards: list[BoardAnswer]
    next: NextPage


class SeasonAnswer(msgspec.Struct, frozen=True):
    """A season of a board.

    `endedAt` is null for the current one, `endsAt` where it does not end by itself.
    """

    number: int
    startedAt: Time  # noqa: N815
    endedAt: Time | None  # noqa: N815
    endsAt: Time | None  # noqa: N815


class SeasonsAnswer(msgspec.Struct, frozen=True):
    """Seasons of a board, newest first."""

    seasons: list[SeasonAnswer]
    next: Annotated[int | None, Meta(description="the number for `before`; null on the last page")]


class UserBoards(msgspec.Struct, frozen=True):
    """The names of the boards on which a user is, in order."""

    boards: list[str]
    next: NextPage


class FoundUsers(msgspec.Struct, frozen=True):
    """Users by name."""

    users: list[Account]
    next: Annotated[str | None, Meta(description="the name for `after`; null on the last page")]


def board_answer(board: Board) -> BoardAnswer:
    """Returns a board as it is sent."""
    rules: BoardRules = board.rules
    schedule = None
    if rules.schedule is not None:
        schedule = msgspec.convert(rules.schedule.to_json(), ScheduleAnswer)
    return BoardAnswer(
        board.name,
        rules.better,
        rules.keeps,
        rules.ties,
        rules.ranks,
        rules.decimals,
        _exact(rules.lowest),
        _exact(rules.highest),
        schedule,
        rules.keep_seasons,
        rules.title,
        CurrentSeason(board.season_number, board.season_started_at, board.season_ends_at),
    )


def season_answer(season: Season) -> SeasonAnswer:
    """Returns a season as it is sent."""
    return SeasonAnswer(season.number, season.started_at, season.ended_at, season.ends_at)


def changed_entry(entry: EntrySet, rank: int | UnsetType | None = UNSET) -> ChangedEntry:
    """Returns a changed entry as it is sent."""
    return ChangedEntry(
        entry.user_id,
        entry.user_name,
        entry.image_url,
        _exact(entry.total_score),
        _exact(entry.previous_score),
        entry.improved,
        entry.season,
        rank,
        UNSET if entry.external_id is None else entry.external_id,
    )


def _exact(number: Number | None) -> Any:
    """Returns a number as it is.

    The structs say float, which is the number of JSON, and a Decimal is sent as one.
    """
    return number
