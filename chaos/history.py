"""What a recording client saw, and what PostgreSQL did: the two records that the checkers hold against each other.

Times are `time.monotonic()` of the one machine that records, in seconds.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from leaderboard.snapshot import Snapshot

Kind = Literal["set", "create", "top", "user", "context", "page", "around"]

Outcome = Literal["ok", "refused", "missing", "unknown"]
"""`refused`: surely nothing was done. `missing`: an answer, and it says that there is no such user.
`unknown`: the answer never came or does not tell, so a write may have been done, may be done later, or never."""


class Place(NamedTuple):
    """One row of an answer."""

    rank: int
    user_id: int
    name: str
    score: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client and its answer."""

    kind: Kind
    target: int
    """A user's id; n for a top; the rank that a page is around; 0 for another page and for a create."""
    start: float
    end: float = math.inf
    """Infinite for an answer that never came."""
    outcome: Outcome = "ok"
    name: str = ""
    """The name that a create asked for."""
    score: int | None = None
    """What a write set. A set to None is a deletion by hand."""
    previous: int | None = None
    """A set's `previousScore`."""
    places: tuple[Place, ...] = ()
    """The answer's rows, best first: one for a user, above + user + below for a context."""
    limit: int = 0
    """How many rows a page may have."""
    after: tuple[int, int] | None = None
    """Score and id of the place that a page comes after; None for the first page."""
    total: int | None = None
    """How many users there are, by a context or a page."""
    more: bool | None = None
    """Whether a page says that another follows it."""
    user_id: int | None = None
    """Whom a create made."""
    slack_s: float = 0.0
    """How old this answer may be; 0 is linearizable."""
    stale: bool = False
    """It said `Age`: any one committed state will do."""
    by: str = ""
    """Which API process answered."""

    def __str__(self) -> str:
        subject = f"{self.name!r}" if self.kind == "create" else str(self.target or "")
        written = f" := {self.score}" if self.kind in {"set", "create"} else ""
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
        if self.kind == "create":
            return f"user {self.user_id}"
        age = f" (stale by up to {'any' if self.stale else self.slack_s} s)" if self.stale or self.slack_s else ""
        rows = ", ".join(f"{rank}. {user_id} {name!r} {score}" for rank, user_id, name, score in self.places)
        of = "" if self.total is None else f" of {self.total}"
        more = {True: ", and more", False: ", and no more", None: ""}[self.more]
        return f"{rows or 'nobody'}{of}{more}{age}"


class Change(NamedTuple):
    """One row that a transaction wrote. `seq`, drawn under the row's lock, is per user the order of versions."""

    seq: int
    user_id: int
    old: int | None
    """None: the user is new."""
    new: int | None
    """None: the user is gone."""
    name: str | None
    """The name from now on; None if the user is gone."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One committed transaction that changed users. Its snapshot may or may not list itself."""

    xid: int
    seen: Snapshot
    """What it saw just before it ended."""
    changes: tuple[Change, ...]
    """In the order they were made."""
    committed_by: float | None = None
    """For a change by hand: a time by which it is known to have committed."""

    def __str__(self) -> str:
        changes = ", ".join(f"{user_id}: {old} → {new}" for _, user_id, old, new, _ in self.changes[:5])
        more = f" and {len(self.changes) - 5} more" if len(self.changes) > 5 else ""
        when = "" if self.committed_by is None else f" by hand, committed by {self.committed_by:.6f}"
        return f"transaction {self.xid}{when}: {changes}{more}"
