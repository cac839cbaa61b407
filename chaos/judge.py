"""Compares what clients saw with what PostgreSQL committed and with what the fault allows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from chaos import board, linearizability
from chaos.faults import Fault, Fork
from chaos.history import WRITES, Operation, Season, Transaction, Users
from chaos.load import Record

CUT_OFF_S = 1.0
"""How old an answer may be while a process is cut off from Redis."""
AFTERWARDS_S = 2.0
"""How long after its end clients may still notice a fault."""


@dataclass
class Verdict:
    """The result of one injection: how much was seen, and what was wrong."""

    reads: int = 0
    writes: int = 0
    unknown: int = 0
    refused: int = 0
    stale: int = 0
    wrong: dict[str, list[str]] = field(
        default_factory=lambda: {
            kind: []
            for kind in (
                *("lost", "never had", "too old", "not once"),
                *("wrongly refused", "late", "undecided", "not healed"),
            )
        }
    )

    @property
    def violations(self) -> int:
        return sum(map(len, self.wrong.values()))


@dataclass(frozen=True, slots=True)
class Case:
    """The input of a verdict. The fault lasted from `began` to `ended`."""

    fault: Fault
    record: Record
    initial: Mapping[Season, Users]
    transactions: Sequence[Transaction]
    began: float
    ended: float
    fork: Fork | None = None
    recovered_at: float | None = None
    """When all processes served again. If it is given, it counts instead of AFTERWARDS_S."""

    def over(self, ended: float) -> float:
        """Returns the time after which clients may not notice a fault that ended at `ended`."""
        return ended + AFTERWARDS_S if self.recovered_at is None else self.recovered_at


def judge(case: Case) -> Verdict:
    """Returns the verdict on one injection."""
    verdict = Verdict()
    operations = case.record.operations
    if case.fault.cut_off:
        operations = [_may_be_old(operation, case) for operation in operations]
    if case.fork is None:
        _check(verdict, case.initial, case.transactions, operations)
    else:
        _check_forked(verdict, case, case.fork, operations)
    for operation in operations:
        if operation.kind in WRITES:
            verdict.writes += 1
            verdict.unknown += operation.outcome == "unknown"
        else:
            verdict.reads += 1
            verdict.stale += operation.stale
        verdict.refused += operation.outcome == "refused"
    verdict.wrong["late"] += case.record.late
    verdict.wrong["wrongly refused"] += case.record.odd
    for start, end, text in case.record.refused_at:
        conflict = " 409 " in text
        # Without times, an overloaded machine is no violation.
        slow = case.recovered_at is not None and text.endswith("503 overloaded")
        meanwhile = end >= case.began and start <= case.over(case.ended)
        if not (conflict or slow or (case.fault.refusals and meanwhile)):
            verdict.wrong["wrongly refused"].append(text)
    return verdict


def _may_be_old(operation: Operation, case: Case) -> Operation:
    concerned = operation.start <= case.ended + CUT_OFF_S and operation.end >= case.began
    return replace(operation, slack_s=CUT_OFF_S) if concerned else operation


def _check(
    verdict: Verdict,
    initial: Mapping[Season, Users],
    transactions: Sequence[Transaction],
    operations: Sequence[Operation],
) -> None:
    found = board.check(initial, transactions, operations)
    verdict.wrong["lost"] += found.lost
    verdict.wrong["never had"] += found.never_had
    verdict.wrong["too old"] += found.stale_reads
    verdict.wrong["undecided"] += found.undecided
    verdict.wrong["not once"] += found.not_once
    for season, of_season in _by_season(initial, transactions, operations).items():
        scores = {user_id: score for user_id, (_, score) in initial.get(season, {}).items()}
        failures = linearizability.check(scores, [*of_season, *_by_hand(season, transactions)])
        verdict.wrong["too old"] += [f"{season.board}/{season.number}, {failure}" for failure in failures]


def _by_season(
    initial: Mapping[Season, Users], transactions: Iterable[Transaction], operations: Iterable[Operation]
) -> Mapping[Season, list[Operation]]:
    """Returns the operations of each season.

    An answer does not say which season it shows. A user has a score of a board in one season only, so the first
    entry that it shows tells. An answer without entries is left out.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    scores: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for season, users in initial.items():
        for user_id, (_, score) in users.items():
            if season.number:
                scores[season.board, user_id][score] = season.number
            else:
                numbers[season.board].add(score)
    for transaction in transactions:
        for change in transaction.changes:
            if change.season.number == 0 and change.new is not None:
                numbers[change.season.board].add(change.new)
            elif change.new is not None:
                scores[change.season.board, change.user_id].setdefault(change.new, change.season.number)

    def seasons(operation: Operation) -> Iterator[int]:
        known = numbers[operation.board] or {1}
        if operation.kind == "end" or operation.outcome == "no season":
            return
        written = scores[operation.board, operation.target]
        if operation.outcome == "unknown" and operation.kind in {"add", "best"}:
            # One that no entry shows was not done, or changed nothing. The search would try it everywhere.
            increment = operation.score if operation.kind == "add" else None
            if not any(s & increment if increment else s == operation.score for s in written):
                return
        if operation.season:
            yield operation.season
        elif operation.season is None and len(known) == 1:
            yield from known
        elif operation.places:
            place = operation.places[0]
            found = scores[operation.board, place.user_id].get(place.score)
            if found is not None:  # else `board` has found it
                yield found
        elif operation.outcome == "unknown":
            yield from known

    by_season: dict[Season, list[Operation]] = defaultdict(list)
    for operation in operations:
        for number in seasons(operation):
            by_season[Season(operation.board, number)].append(operation)
    return by_season


def _by_hand(season: Season, transactions: Iterable[Transaction]) -> list[Operation]:
    """Returns the changes by hand of a season as writes of unknown outcome."""
    return [
        Operation("set", change.user_id, -math.inf, math.inf, "unknown", score=change.new)
        for transaction in transactions
        if transaction.committed_by is not None
        for change in transaction.changes
        if change.season == season
    ]


def _check_forked(verdict: Verdict, case: Case, fork: Fork, operations: Sequence[Operation]) -> None:
    """Checks two histories: that before PostgreSQL lost its last commits, and that after.

    A read around the switch must agree with one of the two. A write that was sent before the switch and
    acknowledged after it may be one of those that were lost.
    """
    before: list[Operation] = []
    after: list[Operation] = []
    around: list[Operation] = []
    for operation in operations:
        write = operation.kind in WRITES
        if operation.end < fork.moved_at:
            before.append(operation)
        elif operation.start > case.over(fork.moved_at) or (write and operation.start >= fork.lost_from):
            after.append(operation)
        elif write:
            unknown = replace(operation, end=math.inf, outcome="unknown")
            before.append(unknown)
            after.append(unknown)
        else:
            around.append(replace(operation, stale=True))
    _check(verdict, case.initial, fork.transactions, before)
    _check(verdict, fork.initial, case.transactions, after)
    of_the_old = board.check(case.initial, fork.transactions, around).never_had
    of_the_new = board.check(fork.initial, case.transactions, around).never_had
    for operation in around:
        text = str(operation)
        if any(text in found for found in of_the_old) and any(text in found for found in of_the_new):
            verdict.wrong["never had"].append(f"no state before or after the switch explains this\n    {text}")
