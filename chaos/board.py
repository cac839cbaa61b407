"""Does every answer show one state that PostgreSQL really had, and one that is new enough?

Which states there can have been, the record of the transactions tells: see `committed`. An answer is a demand on
such a state. A user that it shows has to be at a version with that name and score. A user that it does not show
has to be out of the way: for a top, absent or below the last row (absent, if it has fewer than n rows); for a
context, not between its rows, not above them if they begin at rank 1, not below them if fewer than five are
below. "No such user" demands that one is absent. And as many users as the rank says stand above the first row.

All but the last is a demand on each user by itself: to be at one of some of its versions. A state has every user
at one of its versions, and a larger state never at an earlier one. So there is a *least* state that meets them,
and it is found without a choice: begin with what must be in, and as long as a user is at a version that will not
do, it has to go on to its next one; put in the transaction that made that, with its closure. If there is no next
version, or something gets in that cannot be, no state explains the answer.

Ranks are not like that: a count can rise and fall. From the least state one more transaction is put in at a
time, in an order in which they can have committed; if no state on that way fits, then in the other orders. That
ends soon, since the answer cannot have seen what began after it, and its own users go on to other versions. If
it does not end within `PATIENCE` states, the answer is undecided.

What must be in: all that was acknowledged before the operation began, all that is in the least state of an
answer that had ended by then (no state without it explains that answer), and what was committed by hand
`BY_HAND_S` before. An answer that may be old by some seconds owes only what had happened those seconds before;
one with an `Age` owes nothing. What cannot be in: a transaction with a write whose operation began after this
one had ended.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chaos.history import Operation, Transaction
from tests.consistency.committed import Board, Committed
from tests.consistency.writes import Writes
from tests.http.demand import Demand, demand

BY_HAND_S = 1.0
"""Within what time a change by hand has to show."""

PATIENCE = 20_000
"""How many states are tried for one answer."""


@dataclass
class Findings:
    """What is wrong, as texts for a human."""

    lost: list[str] = field(default_factory=list)
    """Writes that were acknowledged and not done, or not on top of what they say."""
    never_had: list[str] = field(default_factory=list)
    """Answers that no committed state explains."""
    stale_reads: list[str] = field(default_factory=list)
    """Answers that a committed state explains, but only one that was too old."""
    undecided: list[str] = field(default_factory=list)
    """Answers for which the search was given up."""


class GivenUp(Exception):
    """The search for a state took too many steps."""


class Search:
    """Looks for the states that explain an answer."""

    def __init__(self, committed: Committed) -> None:
        self._committed = committed
        self.board = Board(committed)

    def least(self, wanted: Demand, state: int, forbidden: int) -> int | None:
        """The least state that has all of `state` and meets the demand, but for its rank; None: there is none."""
        while not state & forbidden:
            self.board.move(state)
            grown = state
            for user_id in wanted.in_the_way(self.board):
                following = self.board.following(user_id)
                if following is None:
                    return None
                grown |= self._committed.closures[following.transaction]
            if grown == state:
                return state
            state = grown
        return None

    def explain(self, wanted: Demand, state: int, forbidden: int) -> int | None:
        """What every state has that has all of `state` and explains the answer. None if there is no such state.

        Raises GivenUp.
        """
        for user_id, (score, name) in wanted.shown.items():  # a short cut: `least` would get there
            first = self._committed.first.get((user_id, score, name))
            if first is not None and first >= 0:
                state |= self._committed.closures[first]
        least = self.least(wanted, state, forbidden)
        tried = {least}
        open_ = [least]
        while open_:
            found = open_.pop()
            if found is None:
                continue
            self.board.move(found)
            if wanted.counts(self.board):
                return least
            if len(tried) > PATIENCE:
                raise GivenUp
            for index in reversed(list(self._committed.concurrent(found))):
                following = self.least(wanted, found | self._committed.closures[index], forbidden)
                if following not in tried:
                    tried.add(following)
                    open_.append(following)
        return None


class Bounds:
    """What every answer has to show from when on, and because of what."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.states: list[int] = []
        self.causes: list[Operation | Transaction] = []

    def add(self, time: float, state: int, cause: Operation | Transaction) -> None:
        """From `time` on, which is not before those of earlier calls."""
        grown = state | self.states[-1] if self.states else state
        if not self.states or grown != self.states[-1]:
            self.times.append(time)
            self.states.append(grown)
            self.causes.append(cause)

    def before(self, time: float) -> int:
        """The state that has to be in what begins at `time`."""
        count = bisect_left(self.times, time)
        return self.states[count - 1] if count else 0


class Checker:
    """Judges the operations in the order in which they ended."""

    def __init__(self, committed: Committed, writes: Writes) -> None:
        self.findings = Findings()
        self._committed = committed
        self._writes = writes
        self._search = Search(committed)
        self._shown = Bounds()
        self._by_hand = Bounds()
        by_hand = [
            (t.committed_by, number)
            for number, t in enumerate(committed.transactions)
            if t.committed_by is not None
        ]
        for time, number in sorted(by_hand):
            self._by_hand.add(time, committed.closures[number], committed.transactions[number])
        started = sorted(range(len(writes.started)), key=lambda number: -writes.started[number])
        self._starts = [-writes.started[number] for number in started]
        self._late = [0]
        for number in started:
            self._late.append(self._late[-1] | 1 << number)

    def judge(self, operation: Operation) -> None:
        """Take one operation; in the order of their ends."""
        if operation.outcome in {"refused", "unknown"}:
            return
        if operation.outcome == "ok" and operation.kind in {"set", "create"}:
            number = self._writes.transaction(operation)
            least = None if number is None else self._committed.closures[number]
        else:
            least = self._judge_answer(operation)
        if least is not None:
            self._shown.add(operation.end, least, operation)

    def _judge_answer(self, answer: Operation) -> int | None:
        """What every state has that explains this answer; None and a finding if there is none."""
        wanted = demand(answer)
        if isinstance(wanted, str):
            self.findings.never_had.append(f"{wanted}\n    {answer}")
            return None
        owed = (
            []
            if answer.stale
            else [
                (self._shown, answer.start - answer.slack_s),
                (self._by_hand, answer.start - max(answer.slack_s, BY_HAND_S)),
            ]
        )
        lower = 0
        for bounds, time in owed:
            lower |= bounds.before(time)
        late = self._late[bisect_left(self._starts, -answer.end)]
        try:
            least = self._search.explain(wanted, lower, late)
        except GivenUp:
            self.findings.undecided.append(f"after {PATIENCE} states\n    {answer}")
            return None
        if least is None:
            if self._fits(wanted, 0, late):
                self.findings.stale_reads.append(self._too_old(answer, wanted, late, owed))
            else:
                self.findings.never_had.append(self._impossible(answer, wanted, lower, late))
        return least

    def _fits(self, wanted: Demand, lower: int, late: int) -> bool:
        try:
            return self._search.explain(wanted, lower, late) is not None
        except GivenUp:
            return False

    def _too_old(self, answer: Operation, wanted: Demand, late: int, owed: list[tuple[Bounds, float]]) -> str:
        """Name the first that had to be there and is not."""
        text = f"this was so once, but no more\n    {answer}"
        for bounds, time in owed:
            count = bisect_left(bounds.times, time)
            place = bisect_left(range(count), True, key=lambda n: not self._fits(wanted, bounds.states[n], late))
            if place < count:
                late_s = time - bounds.times[place]
                text += f"\n  {late_s:.6f} s before it had to show it, there was\n    {bounds.causes[place]}"
        return text

    def _impossible(self, answer: Operation, wanted: Demand, lower: int, late: int) -> str:
        text = f"no committed state explains this\n    {answer}"
        if late and self._fits(wanted, lower, 0):
            return f"{text}\n  it shows what was begun only after it had ended"
        board = self._search.board
        board.move(lower)
        rank = answer.places[0].rank if answer.places else 1
        rows = ", ".join(
            f"{r}. {user} {name!r} {score}"
            for r, user, name, score in board.rows(rank - 1, max(1, len(answer.places)))
        )
        return f"{text}\n  at the oldest state that it may show there stand\n    {rows}"


def check(
    initial: Mapping[int, tuple[str, int]], transactions: Sequence[Transaction], operations: Sequence[Operation]
) -> Findings:
    """Check all answers and acknowledgements. `initial` has by user id the name and score before all transactions.

    Raises ValueError for transactions that no PostgreSQL can have made.
    """
    committed = Committed(initial, transactions)
    writes = Writes(committed, operations)
    checker = Checker(committed, writes)
    for operation in sorted(operations, key=lambda operation: operation.end):
        checker.judge(operation)
    checker.findings.lost += writes.lost
    return checker.findings
