"""Finds the transaction of each write, the acknowledged writes that have none, and writes that were done twice.

A write is matched by board, user (a create: by name) and score, so the load must give each write of a user a
score or an increment of its own. If a score occurs twice, a lost write may be missed. Several sets of one user of
`default` in one batch become one update. The transaction then has only the last score, and the other sets are
steps from the score before to the score after. Of other boards, each write is an update of its own.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from chaos.history import DEFAULT, WRITES, Entry, Operation, Season, current_season
from tests.consistency.committed import Committed, Version

Score = int | None
Mark = tuple[str, int | str, str, Score]
"""What a write leaves: on which board, of which user, whether a score or an increment, and which one."""


class Writes:
    """The writes among `operations`, each with its transaction."""

    def __init__(self, committed: Committed, operations: Iterable[Operation]) -> None:
        self.lost: list[str] = []
        """The acknowledged writes without a transaction, or with another previous score than they returned."""
        self._committed = committed
        self._sets: dict[Entry, list[Operation]] = defaultdict(list)
        starts: dict[Mark, float] = defaultdict(lambda: math.inf)
        for operation in operations:
            if operation.kind in WRITES and operation.outcome in {"ok", "unknown"}:
                if operation.kind == "set" and operation.board == DEFAULT.board:
                    self._sets[DEFAULT, operation.target].append(operation)
                mark = _mark(operation)
                starts[mark] = min(starts[mark], operation.start)
        self.started = [-math.inf] * len(committed.transactions)
        """By transaction: the start of its last operation. It cannot have committed earlier."""
        self._made: dict[tuple[Entry, Score], list[tuple[Version, Version]]] = defaultdict(list)
        self._done: dict[Mark, list[tuple[Season, int]]] = defaultdict(list)
        for (season, user_id), versions in committed.versions.items():
            for before, version in pairwise(versions):
                self._made[(season, user_id), version.score].append((before, version))
                number = version.transaction
                if committed.transactions[number].committed_by is not None:
                    continue
                marks = _marks(season, user_id, before, version)
                start = min(starts.get(mark, math.inf) for mark in marks)
                if start < math.inf:
                    self.started[number] = max(self.started[number], start)
                for mark in marks:
                    if mark in starts and mark[3] is not None:
                        self._done[mark].append((season, number))

    def done_twice(self) -> list[str]:
        """Returns a text for each write that was done more than once."""
        return [
            f"the {kind} {score} of user {user} of {board} was written more than once\n    "
            + "\n    ".join(f"in {season}: {self._committed.transactions[number]}" for season, number in done)
            for (board, user, kind, score), done in self._done.items()
            if len(done) > 1
        ]

    def transaction(self, write: Operation, shown: int) -> int | None:
        """Returns the index of the transaction of an acknowledged write, or records a lost write.

        None if it has none. `shown` is the state that was known when the write began.
        """
        match write.kind:
            case "create":
                for before, version in self._made[(DEFAULT, write.user_id or 0), write.score]:
                    if before.score is None and version.name == write.name:
                        return version.transaction
            case "end":
                assert write.season is not None
                if write.season < self._committed.numbers(write.board)[0]:
                    return None  # it had ended before
                for _, version in self._made[current_season(write.board), write.season + 1]:
                    return version.transaction
            case "remove":
                # An answer does not say what was removed. Every later removal has a larger state than the first.
                for _, version in self._made[(Season(write.board, write.season or 1), write.target), None]:
                    if not shown >> version.transaction & 1:
                        return version.transaction
            case _:
                return self._of_entry(write)
        self.lost.append(f"no transaction did this\n    {write}")
        return None

    def _of_entry(self, write: Operation) -> int | None:
        result = write.score if write.kind == "set" else write.result
        made = self._made[(Season(write.board, write.season or 1), write.target), result]
        for before, version in made:
            if before.score == write.previous:
                return version.transaction
        if result == write.previous:
            return None  # the write changed nothing, so that there is no transaction
        linked = self._linked(write)
        if linked is not None:
            return linked
        if made:
            before, version = made[0]
            self.lost.append(f"this was done, but the score before it was {before.score}\n    {write}")
            return version.transaction
        self.lost.append(f"no transaction did this\n    {write}")
        return None

    def _linked(self, write: Operation) -> int | None:
        """Returns the transaction of an update in which this set was one of several."""
        if write.board != DEFAULT.board:
            return None
        entry = DEFAULT, write.target
        together = [
            other
            for other in self._sets[entry]
            if other.start <= write.end and other.end >= write.start and other is not write
        ]
        for score in {other.score for other in together} | {write.score}:
            for before, version in self._made.get((entry, score), ()):
                if _leads(before.score, write.previous, together) and _leads(write.score, score, together):
                    return version.transaction
        return None


def _leads(before: Score, after: Score, sets: Sequence[Operation]) -> bool:
    """Returns whether some of the sets, one after another, lead from `before` to `after`."""
    reached = {before}
    grows = True
    while grows and after not in reached:
        more = {s.score for s in sets if s.outcome == "unknown" or s.previous in reached} - reached
        grows = bool(more)
        reached |= more
    return after in reached


def _mark(write: Operation) -> Mark:
    """Returns what a write leaves."""
    match write.kind:
        case "create":
            return DEFAULT.board, write.name, "score", write.score
        case "end":
            return write.board, 0, "season", (write.season or 0) + 1
        case "add":
            return write.board, write.target, "increment", write.score
        case _:
            return write.board, write.target, "score", write.score


def _marks(season: Season, user_id: int, before: Version, version: Version) -> list[Mark]:
    """Returns what writes leave that can have made a version of an entry."""
    board, score = season.board, version.score
    if season.number == 0:
        return [(board, 0, "season", score)]
    marks: list[Mark] = [(board, user_id, "score", score)]
    if score is not None:
        marks.append((board, user_id, "increment", score - (before.score or 0)))
        if before.score is None and version.name is not None:
            marks.append((board, version.name, "score", score))
    return marks
