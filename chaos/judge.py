"""Compares what clients saw with what PostgreSQL committed and with what the fault allows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from chaos import board, linearizability
from chaos.faults import Fault, Fork
from chaos.history import Operation, Transaction
from chaos.load import Record

CUT_OFF_S = 1.0
"""How old an answer may be while a process is cut off from Redis."""
AFTERWARDS_S = 2.0
"""How long after its end clients may still notice a fault."""

Users = Mapping[int, tuple[str, int]]


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
            kind: [] for kind in ("lost", "never had", "too old", "refused", "late", "undecided", "not healed")
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
    initial: Users
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
        if operation.kind in {"set", "create"}:
            verdict.writes += 1
            verdict.unknown += operation.outcome == "unknown"
        else:
            verdict.reads += 1
            verdict.stale += operation.stale
        verdict.refused += operation.outcome == "refused"
    verdict.wrong["late"] += case.record.late
    verdict.wrong["refused"] += case.record.odd
    for start, end, text in case.record.refused_at:
        conflict = " 409 " in text
        # Without times, an overloaded machine is no violation.
        slow = case.recovered_at is not None and text.endswith("503 overloaded")
        meanwhile = end >= case.began and start <= case.over(case.ended)
        if not (conflict or slow or (case.fault.refusals and meanwhile)):
            verdict.wrong["refused"].append(text)
    return verdict


def _may_be_old(operation: Operation, case: Case) -> Operation:
    concerned = operation.start <= case.ended + CUT_OFF_S and operation.end >= case.began
    return replace(operation, slack_s=CUT_OFF_S) if concerned else operation


def _check(
    verdict: Verdict, initial: Users, transactions: Sequence[Transaction], operations: Sequence[Operation]
) -> None:
    found = board.check(initial, transactions, operations)
    verdict.wrong["lost"] += found.lost
    verdict.wrong["never had"] += found.never_had
    verdict.wrong["too old"] += found.stale_reads
    verdict.wrong["undecided"] += found.undecided
    scores = {user_id: score for user_id, (_, score) in initial.items()}
    verdict.wrong["too old"] += linearizability.check(scores, [*operations, *_by_others(transactions, operations)])


def _by_others(transactions: Iterable[Transaction], operations: Iterable[Operation]) -> list[Operation]:
    """Returns the changes by hand as writes of unknown outcome."""
    ours = {(operation.target, operation.score) for operation in operations if operation.kind == "set"}
    made = {(operation.name, operation.score) for operation in operations if operation.kind == "create"}
    return [
        Operation("set", change.user_id, -math.inf, math.inf, "unknown", score=change.new)
        for transaction in transactions
        for change in transaction.changes
        if (change.user_id, change.new) not in ours
        and (change.old is not None or (change.name, change.new) not in made)
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
        write = operation.kind in {"set", "create"}
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
