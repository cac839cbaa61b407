"""Finds the transaction of each write, and the acknowledged writes that have none.

A write is matched by user (a create: by name) and score, so the load must give each write a score of its own. If a
score occurs twice, a lost write may be missed. Several sets of one user in one batch become one update. The
transaction then has only the last score, and the other sets are steps from the score before to the score after.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from chaos.history import Operation
from tests.consistency.committed import Committed, Version

Score = int | None


class Writes:
    """The writes among `operations`, each with its transaction."""

    def __init__(self, committed: Committed, operations: Iterable[Operation]) -> None:
        self.lost: list[str] = []
        """The acknowledged writes without a transaction, or with another previous score than they returned."""
        self._committed = committed
        self._sets: dict[int, list[Operation]] = defaultdict(list)
        starts: dict[tuple[int | str, Score], float] = defaultdict(lambda: math.inf)
        for operation in operations:
            if operation.kind in {"set", "create"} and operation.outcome in {"ok", "unknown"}:
                if operation.kind == "set":
                    self._sets[operation.target].append(operation)
                written = (operation.target if operation.kind == "set" else operation.name, operation.score)
                starts[written] = min(starts[written], operation.start)
        self.started = [-math.inf] * len(committed.transactions)
        """By transaction: the start of its last operation. It cannot have committed earlier."""
        self._made: dict[tuple[int, Score], list[tuple[Version, Version]]] = defaultdict(list)
        for user_id, versions in committed.versions.items():
            for before, version in pairwise(versions):
                self._made[user_id, version.score].append((before, version))
                start = starts.get((user_id, version.score), math.inf)
                if before.score is None and version.name is not None:
                    start = min(start, starts.get((version.name, version.score), math.inf))
                number = version.transaction
                if start < math.inf and committed.transactions[number].committed_by is None:
                    self.started[number] = max(self.started[number], start)

    def transaction(self, write: Operation) -> int | None:
        """Returns the index of the transaction of an acknowledged write, or records a lost write."""
        if write.kind == "create":
            for before, version in self._made[write.user_id or 0, write.score]:
                if before.score is None and version.name == write.name:
                    return version.transaction
            self.lost.append(f"no transaction did this\n    {write}")
            return None
        made = self._made[write.target, write.score]
        for before, version in made:
            if before.score == write.previous:
                return version.transaction
        if write.score == write.previous:
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
        together = [
            other
            for other in self._sets[write.target]
            if other.start <= write.end and other.end >= write.start and other is not write
        ]
        for score in {other.score for other in together} | {write.score}:
            for before, version in self._made.get((write.target, score), ()):
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
