"""Checks that every answer shows one state that PostgreSQL had, and that this state is new enough.

A state is a set of committed transactions, of all boards; `committed` says which sets are possible. An answer
puts conditions on the state. A user that it shows must have that name and score. A user that it does not show must
not belong into it: for a top, the user is absent or below the last row (absent, if there are fewer than n rows);
for a context, it is not between the rows, not above them if they begin at rank 1, and not below them if fewer than
five are below. A 404 requires that the user is absent. The number of users above the first row must agree with
its rank.

Which season of a board is the current one is a condition, too. An answer does not say which season it shows, so
each one that may have been the current one is tried; the state must have it as the current one.

Every condition but the last is about one entry, and allows some of its versions. A larger state never has an
earlier version of an entry. So there is a *least* state that meets these conditions, and finding it needs no
search: begin with the transactions that must be included; while a user is at a version that is not allowed, add
the transaction that made its next version, with all that it depends on. If there is no next version, or an
excluded transaction would be added, no state explains the answer.

A rank is different, because a count can rise and fall. From the least state, transactions are added one at a
time, in every order in which they can have committed, until the count agrees. The search is short: transactions
that began after the answer are excluded, and further versions of the shown users end it. After `MAX_STATES`
states it is given up, and the answer is undecided.

Included: every write acknowledged before the operation began, the least state of every answer that had ended by
then, and what was committed by hand `BY_HAND_S` before. An answer that may be some seconds old includes only
what was so those seconds before; one with an `Age` header includes nothing. Excluded: transactions with a write
whose operation began after this one had ended.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chaos.history import WRITES, Operation, Season, Transaction, Users, current_season
from tests.consistency.committed import Boards, Committed
from tests.consistency.writes import Writes
from tests.http.demand import Demand, demands

BY_HAND_S = 1.0
"""An answer that began this long after a change by hand must show it."""

MAX_STATES = 20_000
"""How many states are tried for one answer."""


@dataclass
class Findings:
    """What is wrong, as texts to print."""

    lost: list[str] = field(default_factory=list)
    """Writes that were acknowledged and not committed, or that replaced another score than they say."""
    never_had: list[str] = field(default_factory=list)
    """Answers that no committed state explains."""
    stale_reads: list[str] = field(default_factory=list)
    """Answers that only a committed state explains that was too old."""
    undecided: list[str] = field(default_factory=list)
    """Answers for which the search was given up."""
    not_once: list[str] = field(default_factory=list)
    """Writes that were done twice, also in two seasons, and archives that changed after their end."""


class GivenUp(Exception):
    """The search for a state took too many steps."""


class Search:
    """Looks for the states that explain an answer."""

    def __init__(self, committed: Committed) -> None:
        self._committed = committed
        self.boards = Boards(committed)

    def least(self, wanted: Demand, state: int, forbidden: int) -> int | None:
        """Returns the least state that includes `state` and meets all of the demand but its rank, or None."""
        while not state & forbidden:
            self.boards.move(state)
            grown = state
            for entry in wanted.in_the_way(self.boards):
                following = self.boards.following(entry)
                if following is None:
                    return None
                grown |= self._committed.closures[following.transaction]
            if grown == state:
                return state
            state = grown
        return None

    def explain(self, wanted: Sequence[Demand], state: int, forbidden: int) -> int | None:
        """Returns what all states that include `state` and meet one of the demands have in common.

        None if no state explains it. Raises GivenUp.
        """
        common: int | None = None
        for demand in wanted:
            least = self._explain(demand, state, forbidden)
            if least is not None:
                common = least if common is None else common & least
        return common

    def _explain(self, wanted: Demand, state: int, forbidden: int) -> int | None:
        for entry, (score, name) in wanted.shown.items():  # for speed only: `least` would find it
            first = self._committed.first.get((entry, score, name))
            if first is not None and first >= 0:
                state |= self._committed.closures[first]
        least = self.least(wanted, state, forbidden)
        tried = {least}
        open_ = [least]
        while open_:
            found = open_.pop()
            if found is None:
                continue
            self.boards.move(found)
            if wanted.counts(self.boards):
                return least
            if len(tried) > MAX_STATES:
                raise GivenUp
            for index in reversed(list(self._committed.concurrent(found))):
                following = self.least(wanted, found | self._committed.closures[index], forbidden)
                if following not in tried:
                    tried.add(following)
                    open_.append(following)
        return None


class Bounds:
    """Which state every answer must include, from which time on, and the operation that is the reason."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.states: list[int] = []
        self.causes: list[Operation | Transaction] = []

    def add(self, time: float, state: int, cause: Operation | Transaction) -> None:
        """Requires `state` from `time` on. Calls come in the order of their times."""
        grown = state | self.states[-1] if self.states else state
        if not self.states or grown != self.states[-1]:
            self.times.append(time)
            self.states.append(grown)
            self.causes.append(cause)

    def before(self, time: float) -> int:
        """Returns the state that an operation which begins at `time` must include."""
        count = bisect_left(self.times, time)
        return self.states[count - 1] if count else 0


class Checker:
    """Checks the operations in the order in which they ended."""

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
        """Checks one operation."""
        if operation.outcome in {"refused", "unknown"}:
            return
        if operation.outcome == "ok" and operation.kind in WRITES:
            number = self._writes.transaction(operation, self._shown.before(operation.start))
            least = None if number is None else self._committed.closures[number]
        else:
            least = self._judge_answer(operation)
        if least is not None:
            self._shown.add(operation.end, least, operation)

    def _judge_answer(self, answer: Operation) -> int | None:
        """Returns what all states that explain the answer have in common; None and a finding if there is none."""
        wanted = demands(answer, self._committed)
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
            self.findings.undecided.append(f"after {MAX_STATES} states\n    {answer}")
            return None
        if least is None:
            if self._fits(wanted, 0, late):
                self.findings.stale_reads.append(self._too_old(answer, wanted, late, owed))
            else:
                self.findings.never_had.append(self._impossible(answer, wanted, lower, late))
        return least

    def _fits(self, wanted: Sequence[Demand], lower: int, late: int) -> bool:
        try:
            return self._search.explain(wanted, lower, late) is not None
        except GivenUp:
            return False

    def _too_old(
        self, answer: Operation, wanted: Sequence[Demand], late: int, owed: list[tuple[Bounds, float]]
    ) -> str:
        """Names the first operation or transaction that the answer had to include and does not."""
        text = f"this state was older than allowed\n    {answer}"
        for bounds, time in owed:
            count = bisect_left(bounds.times, time)
            place = bisect_left(range(count), True, key=lambda n: not self._fits(wanted, bounds.states[n], late))
            if place < count:
                late_s = time - bounds.times[place]
                cause = bounds.causes[place]
                text += f"\n  it does not include what had ended {late_s:.6f} s before the limit\n    {cause}"
        return text

    def _impossible(self, answer: Operation, wanted: Sequence[Demand], lower: int, late: int) -> str:
        text = f"no committed state explains this\n    {answer}"
        if late and self._fits(wanted, lower, 0):
            return f"{text}\n  it shows a write that began after it had ended"
        boards = self._search.boards
        boards.move(lower)
        current = boards.current(current_season(answer.board)).score
        season = Season(answer.board, answer.season or current or 1)
        rank = answer.places[0].rank if answer.places else 1
        rows = ", ".join(
            f"{r}. {user} {name!r} {score}"
            for r, user, name, score in boards.rows(season, rank - 1, max(1, len(answer.places)))
        )
        now = "" if current is None else f" the current season {current} and, of {season.number},"
        return f"{text}\n  the oldest state that it may show has{now}\n    {rows}"


def changed_archives(committed: Committed) -> list[str]:
    """Returns a text for each change of a season, not by hand, that its end did not see."""
    texts = []
    for (season, user_id), versions in committed.versions.items():
        for ended in committed.versions.get(current_season(season.board), ()):
            if ended.score == season.number + 1 and ended.transaction >= 0:
                end = committed.transactions[ended.transaction]
                for version in versions:
                    change = committed.transactions[version.transaction]
                    by_hand = version.transaction < 0 or change.committed_by is not None
                    if not by_hand and not end.seen.sees(change.xid):
                        texts.append(f"user {user_id} of {season} changed after the end\n    {end}\n    {change}")
    return texts


def check(
    initial: Mapping[Season, Users], transactions: Sequence[Transaction], operations: Sequence[Operation]
) -> Findings:
    """Checks all answers and acknowledgements.

    `initial` has the name and score of each user id before all transactions, by season. Raises ValueError for
    transactions that PostgreSQL cannot have made.
    """
    committed = Committed(initial, transactions)
    writes = Writes(committed, operations)
    checker = Checker(committed, writes)
    for operation in sorted(operations, key=lambda operation: operation.end):
        checker.judge(operation)
    checker.findings.lost += writes.lost
    checker.findings.not_once += [*writes.done_twice(), *changed_archives(committed)]
    return checker.findings
