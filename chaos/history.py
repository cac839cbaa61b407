"""The two records that the checkers compare: what the clients saw, and what PostgreSQL committed.

Times are `time.monotonic()` of the recording machine, in seconds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from leaderboard.snapshot import Snapshot

Kind = Literal["set", "add", "best", "remove", "end", "create", "top", "user", "context", "page", "around"]
"""The kind of an operation.

`add`, `best`, `remove` and `end` are of boards other than `default`: add an increment to the entry, keep the
better score, remove the entry, end a season.
"""

WRITES = frozenset({"set", "add", "best", "remove", "end", "create"})
"""The kinds that change something."""

Outcome = Literal["ok", "refused", "missing", "no season", "unknown"]
"""The outcome of an operation.

`refused`: certainly nothing was done. `missing`: a 404 for the user. `no season`: a 404 for the season. `unknown`:
there was no answer, or one that does not say, so a write may have been done, may be done later, or never.
"""


class Season(NamedTuple):
    """A season of a board.

    The number 0 is that of no season: under it, a history has which season is the current one, as the score of the
    user 0.
    """

    board: str
    number: int


DEFAULT = Season("default", 1)

Entry = tuple[Season, int]
"""An entry: its season, and the user's id."""

Users = Mapping[int, tuple[str, int]]
"""Name and score of users, by their ids."""


def current_season(board: str) -> Entry:
    """Returns the entry whose score is the number of the board's current season."""
    return Season(board, 0), 0


class Place(NamedTuple):
    """One row of an answer."""

    rank: int
    user_id: int
    name: str
    score: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of one client and its answer. Scores are numbers of which more is better."""

    kind: Kind
    target: int
    """The user's id; n for a top; the rank in the middle of a page; 0 for another page, a create and an end."""
    start: float
    end: float = math.inf
    """Infinite if no answer came."""
    outcome: Outcome = "ok"
    name: str = ""
    """The username of a create."""
    score: int | None = None
    """The score or the increment that a write sends. None for a set is a deletion by hand."""
    previous: int | None = None
    """The `previousScore` of a set, an add or a best."""
    result: int | None = None
    """The `score` that the answer of an add or a best says."""
    places: tuple[Place, ...] = ()
    """The answer's rows, best first: one for a user, above + user + below for a context."""
    limit: int = 0
    """The `limit` of a page."""
    after: tuple[int, int] | None = None
    """Score and id that a page begins after; None for the first page."""
    total: int | None = None
    """The `total` of a context or a page."""
    more: bool | None = None
    """Whether a page has a `next`."""
    user_id: int | None = None
    """The id of the created user."""
    slack_s: float = 0.0
    """How old this answer may be, in seconds; 0 is linearizable."""
    stale: bool = False
    """Whether it has an `Age` header: any committed state is allowed."""
    by: str = ""
    """The API process that answered."""
    board: str = DEFAULT.board
    season: int | None = None
    """The number of a season of a board other than `default`.

    That which a read asks for, None for the current one and 0 for the last ended one; that which the answer to a
    write names; that which an `end` ends.
    """

    def __str__(self) -> str:
        subject = f"{self.name!r}" if self.kind == "create" else str(self.target or "")
        if self.board != DEFAULT.board:
            subject += f" on {self.board}" if self.season is None else f" on {self.board}/{self.season}"
        sign = {"set": ":=", "create": ":=", "add": "+=", "best": "max="}.get(self.kind)
        written = f" {sign} {self.score}" if sign else ""
        asked = f" of {self.limit} after {self.after}" if self.limit else ""
        return (
            f"{self.kind} {subject}{asked}{written} [{self.start:.6f} … {self.end:.6f}]"
            f"{f' by {self.by}' if self.by else ''} → {self._answer()}"
        )

    def _answer(self) -> str:
        if self.outcome != "ok":
            return self.outcome
        if self.kind == "set":
            return f"previous {self.previous}"
        if self.kind in {"add", "best"}:
            return f"{self.result}, previous {self.previous}"
        if self.kind == "remove":
            return "removed"
        if self.kind == "end":
            return "ended"
        if self.kind == "create":
            return f"user {self.user_id}"
        age = f" (stale by up to {'any' if self.stale else self.slack_s} s)" if self.stale or self.slack_s else ""
        rows = ", ".join(f"{rank}. {user_id} {name!r} {score}" for rank, user_id, name, score in self.places)
        of = "" if self.total is None else f" of {self.total}"
        more = {True: ", and more", False: ", and no more", None: ""}[self.more]
        return f"{rows or 'no users'}{of}{more}{age}"


class Change(NamedTuple):
    """One row that a transaction wrote. For one entry, `seq` gives the order of its versions."""

    seq: int
    user_id: int
    old: int | None
    """The score before; None for a new user."""
    new: int | None
    """The score after; None for a deleted user."""
    name: str | None
    """The name after; None for a deleted user."""
    season: Season = DEFAULT

    @property
    def entry(self) -> Entry:
        return self.season, self.user_id


@dataclass(frozen=True, slots=True)
class Transaction:
    """One committed transaction that changed users. Its snapshot may list the transaction itself."""

    xid: int
    seen: Snapshot
    """Its last snapshot."""
    changes: tuple[Change, ...]
    """In the order in which they were made."""
    committed_by: float | None = None
    """For a change by hand: a time at which it had committed."""

    def __str__(self) -> str:
        changes = ", ".join(
            f"{'' if season == DEFAULT else f'{season.board}/{season.number} '}{user_id}: {old} → {new}"
            for _, user_id, old, new, _, season in self.changes[:5]
        )
        more = f" and {len(self.changes) - 5} more" if len(self.changes) > 5 else ""
        when = "" if self.committed_by is None else f" by hand, committed by {self.committed_by:.6f}"
        return f"transaction {self.xid}{when}: {changes}{more}"
