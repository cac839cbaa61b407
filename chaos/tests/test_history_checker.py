"""The checkers accept right histories and find each kind of wrong one.

First by hand, one history for each rule; then by chance, against a search through everything that is possible.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chaos import board, linearizability
from chaos.board import Findings
from chaos.faults import Fault
from chaos.history import DEFAULT, Change, Entry, Operation, Outcome, Place, Season, Transaction
from chaos.judge import Case, judge
from chaos.load import Record
from leaderboard.snapshot import Snapshot

Users = dict[int, tuple[str, int]]

INITIAL: Users = {user_id: (f"u{user_id}", 100 - user_id) for user_id in range(1, 13)}
"""Twelve users, best first: 1 with 99, 2 with 98, … 12 with 88."""


class History:
    """A database that commits one transaction after another and remembers every state."""

    def __init__(self) -> None:
        self.users: Users = dict(INITIAL)
        self.states: list[Users] = [dict(INITIAL)]
        self.transactions: list[Transaction] = []
        self._seq = 0

    def commit(
        self, *changes: tuple[int, int | None], by: float | None = None, seen: Snapshot | None = None
    ) -> None:
        """Sets these scores (None: deletes the user) in one transaction that sees all earlier ones."""
        made = []
        for user_id, new in changes:
            self._seq += 1
            old = self.users.get(user_id)
            name = None if new is None else old[0] if old else f"u{user_id}"
            made.append(Change(self._seq, user_id, old[1] if old else None, new, name))
            if new is None or name is None:
                del self.users[user_id]
            else:
                self.users[user_id] = (name, new)
        xid = 100 + len(self.transactions)
        self.transactions.append(Transaction(xid, seen or Snapshot(xid, xid), tuple(made), by))
        self.states.append(dict(self.users))

    def check(self, *operations: Operation) -> Findings:
        return board.check({DEFAULT: INITIAL}, self.transactions, operations)


def standings(users: Users) -> list[Place]:
    best = sorted(users, key=lambda user_id: (-users[user_id][1], user_id))
    return [Place(rank, user_id, *users[user_id]) for rank, user_id in enumerate(best, 1)]


def answer(users: Users, question: Operation) -> Operation:
    """Returns the question with the right answer for these users."""
    rows, kind, target, limit = standings(users), question.kind, question.target, question.limit
    if kind == "top":
        return replace(question, places=tuple(rows[:target]))
    if kind in {"page", "around"}:
        start = _first_of_page(rows, question)
        more = start + limit < len(rows)
        return replace(question, places=tuple(rows[start : start + limit]), total=len(rows), more=more)
    mine = next((place.rank - 1 for place in rows if place.user_id == target), None)
    if mine is None:
        return replace(question, outcome="missing", places=(), total=None)
    if kind == "user":
        return replace(question, outcome="ok", places=(rows[mine],))
    return replace(question, outcome="ok", places=tuple(rows[max(0, mine - 5) : mine + 6]), total=len(rows))


def _first_of_page(rows: Sequence[Place], question: Operation) -> int:
    if question.kind == "around":
        return max(0, min(question.target - 1 - question.limit // 2, len(rows) - question.limit))
    if question.after is None:
        return 0
    score, user_id = question.after
    return sum((-place.score, place.user_id) <= (-score, user_id) for place in rows)


def top(users: Users, n: int, start: float, end: float) -> Operation:
    return answer(users, Operation("top", n, start, end))


def one(users: Users, user_id: int, start: float, end: float) -> Operation:
    return answer(users, Operation("user", user_id, start, end))


def context(users: Users, user_id: int, start: float, end: float) -> Operation:
    return answer(users, Operation("context", user_id, start, end))


def page(users: Users, limit: int, start: float, end: float, after: tuple[int, int] | None = None) -> Operation:
    return answer(users, Operation("page", 0, start, end, limit=limit, after=after))


def page_behind(users: Users, user_id: int, start: float, end: float) -> Operation:
    """Begins after the initial place of this user, or after a score of 50."""
    _, score = INITIAL.get(user_id, ("", 50))
    return page(users, 1 + user_id % 4, start, end, (score, user_id))


def around(users: Users, rank: int, start: float, end: float, limit: int = 4) -> Operation:
    return answer(users, Operation("around", rank, start, end, limit=limit))


def put(user_id: int, score: int, start: float, end: float, previous: int | None = None) -> Operation:
    """Returns a set; with an infinite `end`, one of unknown outcome."""
    outcome: Outcome = "unknown" if end == math.inf else "ok"
    return Operation("set", user_id, start, end, outcome, score=score, previous=previous)


def of_rounds(operation: Operation, season: int | None = None) -> Operation:
    return replace(operation, board="rounds", season=season)


def nothing(findings: Findings) -> bool:
    return findings == Findings()


# One rule after another: answers compared with committed states


@pytest.fixture
def history() -> History:
    """User 5 gets 200, then user 6 gets 300, then user 5 gets 50 and is last."""
    history = History()
    history.commit((5, 200))
    history.commit((6, 300))
    history.commit((5, 50))
    return history


WRITES = (put(5, 200, 1, 2, 95), put(6, 300, 3, 4, 94), put(5, 50, 5, 6, 200))
"""The three writes of `history`."""


def test_answers_of_their_time_are_accepted(history: History) -> None:
    ask: Callable[[Users, int, float, float], Operation]
    for ask in (top, one, context, page, page_behind, around):
        for target in range(1, 15):
            for moment, users in enumerate(history.states):
                assert nothing(history.check(*WRITES, ask(users, target, 2 * moment + 0.5, 2 * moment + 0.6)))
                assert nothing(history.check(*WRITES, ask(users, target, 0, 9)))


def test_an_answer_older_than_an_acknowledged_write_is_stale(history: History) -> None:
    old = top(history.states[1], 3, 4.5, 4.6)
    findings = history.check(*WRITES, old)
    assert findings == Findings(stale_reads=findings.stale_reads)
    assert str(old) in findings.stale_reads[0]
    assert str(WRITES[1]) in findings.stale_reads[0]


def test_an_answer_may_miss_what_was_acknowledged_only_while_it_was_on_its_way(history: History) -> None:
    assert nothing(history.check(*WRITES, top(history.states[1], 3, 3.9, 4.6)))


def test_an_answer_behind_an_earlier_answer_is_stale(history: History) -> None:
    unknown = (WRITES[0], put(6, 300, 3, math.inf), WRITES[2])
    earlier, later = top(history.states[2], 3, 3.1, 3.2), top(history.states[1], 3, 3.3, 3.4)
    assert nothing(history.check(*unknown, earlier, replace(later, start=3.15)))
    findings = history.check(*unknown, earlier, later)
    assert findings == Findings(stale_reads=findings.stale_reads)
    assert str(earlier) in findings.stale_reads[0]


def test_what_an_answer_shows_by_leaving_it_out_counts_as_shown() -> None:
    history = History()
    history.commit((1, 50))
    unknown = put(1, 50, 0, math.inf)
    without = top(history.users, 3, 1, 2)
    assert 1 not in {place.user_id for place in without.places}
    assert nothing(history.check(unknown, without))
    assert history.check(unknown, without, top(INITIAL, 3, 3, 4)).stale_reads
    history = History()
    history.commit((12, 200))
    unknown = put(12, 200, 0, math.inf)
    for last in (around(history.users, 12, 1, 2, 3), context(history.users, 10, 1, 2)):
        assert 12 not in {place.user_id for place in last.places}
        assert nothing(history.check(unknown, last))
        assert history.check(unknown, last, top(INITIAL, 3, 3, 4)).stale_reads


def test_an_answer_from_the_future_is_of_no_state(history: History) -> None:
    findings = history.check(*WRITES, top(history.states[2], 3, 2.1, 2.9))
    assert findings == Findings(never_had=findings.never_had)
    assert "after it had ended" in findings.never_had[0]


def test_a_batch_has_not_committed_before_the_last_of_its_writes_began() -> None:
    history = History()
    history.commit((5, 200), (6, 300))
    writes = (put(5, 200, 5, 9, 95), put(6, 300, 1, 9, 94))
    assert history.check(*writes, top(history.users, 3, 2, 4)).never_had
    assert history.check(*reversed(writes), top(history.users, 3, 2, 4)).never_had
    assert nothing(history.check(*writes, top(history.users, 3, 2, 6)))


def test_what_was_done_by_hand_waits_for_no_operation() -> None:
    history = History()
    history.commit((5, 200), by=2)
    history.commit((5, 30))
    history.commit((5, 200))
    assert nothing(history.check(top(history.states[1], 3, 1, 3), put(5, 30, 4, 5, 200), put(5, 200, 6, 7, 30)))


def test_two_users_from_different_states_are_inconsistent(history: History) -> None:
    mixed = history.states[0] | {6: ("u6", 300)}  # without user 5 at 200, which was before
    for mixed_answer in (
        top(mixed, 12, 0, 9),
        context(mixed, 5, 0, 9),
        page(mixed, 6, 0, 9),
        around(mixed, 4, 0, 9, 9),
    ):
        findings = history.check(*WRITES, mixed_answer)
        assert findings == Findings(never_had=findings.never_had)


def test_two_that_committed_together_are_seen_in_either_order_but_in_one() -> None:
    history = History()
    both = Snapshot(100, 100)
    history.commit((5, 200), seen=both)
    history.commit((6, 300), seen=both)
    first = top(INITIAL | {5: ("u5", 200)}, 3, 0, 9)
    other = top(INITIAL | {6: ("u6", 300)}, 3, 0, 9)
    assert nothing(history.check(first))
    assert nothing(history.check(other))
    assert history.check(first, replace(other, start=10, end=11)).stale_reads
    history.transactions.append(
        Transaction(102, Snapshot(101, 102, frozenset({101})), (Change(9, 9, 91, 77, "u9"),))
    )
    assert nothing(history.check(first))  # an answer with the first alone fixes their order
    assert history.check(other).never_had


def test_wrong_ranks(history: History) -> None:
    users = history.states[3]
    for right in (one(users, 9, 7, 8), context(users, 9, 7, 8), page_behind(users, 7, 7, 8)):
        assert nothing(history.check(*WRITES, right))
        for wrong in (-1, 1, 2):
            moved = tuple(place._replace(rank=place.rank + wrong) for place in right.places)
            findings = history.check(*WRITES, replace(right, places=moved))
            # One more was right as long as 5 stood above.
            assert findings.never_had or (wrong == 1 and findings.stale_reads)


def test_a_rank_that_only_one_order_of_concurrent_writes_explains() -> None:
    history = History()
    both = Snapshot(100, 100)
    history.commit((1, 5), seen=both)
    history.commit((12, 500), seen=both)
    for rank in (4, 5, 6):
        assert nothing(history.check(Operation("user", 5, 0, 9, places=(Place(rank, 5, "u5", 95),))))
    for rank in (3, 7):
        assert history.check(Operation("user", 5, 0, 9, places=(Place(rank, 5, "u5", 95),))).never_had


def test_a_user_left_out(history: History) -> None:
    users = history.states[3]
    without = {user_id: row for user_id, row in users.items() if user_id != 2}
    for lacking in (
        top(without, 5, 7, 8),
        top(without, 12, 7, 8),
        context(without, 3, 7, 8),
        page(without, 4, 7, 8),
        page(without, 4, 7, 8, (99, 1)),
        around(without, 3, 7, 8),
    ):
        assert history.check(*WRITES, lacking).never_had
        assert history.check(*WRITES, replace(lacking, total=12)).never_had


def test_a_user_too_many(history: History) -> None:
    ghost = history.states[3] | {77: ("u77", 97)}
    assert history.check(*WRITES, top(ghost, 5, 7, 8)).never_had
    assert history.check(*WRITES, one(ghost, 77, 7, 8)).never_had


def test_a_name_that_was_never_there(history: History) -> None:
    assert history.check(*WRITES, one(history.states[3] | {5: ("else", 50)}, 5, 7, 8)).never_had


def test_fewer_rows_than_asked_for_means_that_there_are_no_others(history: History) -> None:
    short = top(history.states[3], 3, 7, 8)
    assert history.check(*WRITES, replace(short, target=4)).never_had
    assert history.check(*WRITES, replace(short, places=())).never_had
    history.commit(*((user_id, None) for user_id in history.users if user_id != 1))
    assert nothing(history.check(*WRITES, top(history.users, 5, 7, 8)))
    history.commit((1, None))
    assert nothing(history.check(*WRITES, top(history.users, 5, 7, 8)))


def test_wrong_totals(history: History) -> None:
    users = history.states[3]
    for right in (
        context(users, 4, 7, 8),
        context(users, 12, 7, 8),
        page(users, 5, 7, 8),
        page(users, 20, 7, 8),
        page_behind(users, 7, 7, 8),
        around(users, 6, 7, 8),
        around(users, 99, 7, 8),
    ):
        assert nothing(history.check(*WRITES, right))
        for wrong in (0, 4, 11, 13, None):
            assert history.check(*WRITES, replace(right, total=wrong)).never_had
            assert history.check(*WRITES, replace(right, total=wrong, more=not right.more)).never_had


def test_a_total_that_was_right_before_is_stale() -> None:
    history = History()
    history.commit((12, None), by=2.0)
    for ask in (context, page, page_behind, around):
        old = ask(INITIAL, 2, 0, 0)
        new = ask(history.users, 2, 5, 6)
        assert old.places == new.places
        assert old.total == 12
        assert new.total == 11
        assert nothing(history.check(new))
        assert history.check(replace(new, total=12)).stale_reads
        assert history.check(new, replace(new, total=12, start=7, end=8, stale=True)) == Findings()


def test_a_total_that_only_one_order_of_concurrent_writes_explains() -> None:
    history = History()
    both = Snapshot(100, 100)
    history.commit((11, None), seen=both)
    history.commit((13, 5), seen=both)
    for total in (11, 12, 13):
        assert nothing(history.check(replace(context(INITIAL, 2, 0, 9), total=total)))
    for total in (10, 14):
        assert history.check(replace(context(INITIAL, 2, 0, 9), total=total)).never_had


def test_a_page_with_a_hole(history: History) -> None:
    users = history.states[3]
    for right in (page(users, 6, 7, 8), page(users, 6, 7, 8, (99, 1)), around(users, 6, 7, 8, 6)):
        for missing in range(5):
            rest = right.places[:missing] + right.places[missing + 1 :]
            first = right.places[0].rank
            closed = tuple(place._replace(rank=rank) for rank, place in enumerate(rest, first))
            assert history.check(*WRITES, replace(right, places=rest)).never_had
            assert history.check(*WRITES, replace(right, places=closed)).never_had
            assert history.check(*WRITES, replace(right, places=closed, limit=5)).never_had


def test_a_page_begins_where_it_was_asked_to(history: History) -> None:
    users = history.states[3]
    first, behind, middle = page(users, 3, 7, 8), page(users, 3, 7, 8, (99, 1)), around(users, 6, 7, 8, 3)
    last = around(users, 12, 7, 8, 3)
    for right in (first, behind, middle, last):
        assert nothing(history.check(*WRITES, right))
        for places in (first.places, behind.places, middle.places, last.places, ()):
            if places != right.places:
                more = places != last.places and places != ()
                assert history.check(*WRITES, replace(right, places=places, more=more)).never_had
        assert history.check(*WRITES, replace(right, more=not right.more)).never_had
        assert history.check(*WRITES, replace(right, limit=2)).never_had
        assert history.check(*WRITES, replace(right, limit=9)).never_had
    # The user of the cursor itself, and a user between it and the page.
    assert history.check(*WRITES, replace(behind, after=behind.places[0][:0:-2])).never_had
    assert history.check(*WRITES, replace(behind, after=(100, 1))).never_had


def test_an_empty_page_means_that_no_user_is_behind_its_cursor(history: History) -> None:
    users = history.states[3]
    empty = page(users, 3, 7, 8, (50, 5))
    assert empty.places == ()
    assert nothing(history.check(*WRITES, empty))
    for before in ((51, 5), (50, 4)):
        assert history.check(*WRITES, replace(empty, after=before)).stale_reads
    assert history.check(*WRITES, replace(empty, after=(88, 11))).never_had
    assert history.check(*WRITES, replace(empty, total=0)).never_had
    history.commit(*((user_id, None) for user_id in history.users))
    for empty in (page({}, 3, 7, 8), page({}, 3, 7, 8, (50, 5)), around({}, 2, 7, 8)):
        assert nothing(history.check(*WRITES, empty))


def test_a_stale_page(history: History) -> None:
    for ask in (page, page_behind, around):
        old = ask(history.states[1], 3, 4.5, 4.6)
        findings = history.check(*WRITES, old)
        assert findings == Findings(stale_reads=findings.stale_reads)
        assert str(old) in findings.stale_reads[0]


def test_no_such_user() -> None:
    history = History()
    history.commit((5, None), by=3.0)
    gone = one(history.users, 5, 1, 2)
    assert gone.outcome == "missing"
    assert nothing(history.check(gone))
    assert nothing(history.check(gone, one(INITIAL, 5, 0, 1.5)))
    assert history.check(gone, one(INITIAL, 5, 2.5, 2.6)).stale_reads
    assert history.check(one(INITIAL, 5, 4.1, 4.2)).stale_reads
    assert history.check(one(INITIAL, 5, 3.9, 4.2)) == Findings()
    assert history.check(replace(gone, target=4)).never_had
    assert history.check(replace(gone, kind="set", score=3, target=4)).never_had
    assert history.check(replace(gone, kind="page", limit=3)).never_had
    assert history.check(replace(gone, kind="top")).never_had


def test_the_rows_of_an_answer_have_to_fit_each_other(history: History) -> None:
    rows = context(history.states[3], 8, 7, 8)
    a, b, *rest = rows.places
    gap = (a, *(place._replace(rank=place.rank + 1) for place in (b, *rest)))
    for places in (
        (b, a, *rest),
        gap,
        (a, a, *rest),
        rows.places[1:],
        rows.places[:4],
        rows.places[:-1],
        (*rows.places, *rows.places),
    ):
        assert history.check(*WRITES, replace(rows, places=places)).never_had
    best = top(history.states[3], 3, 7, 8)
    assert history.check(*WRITES, replace(best, target=2)).never_had
    assert history.check(*WRITES, replace(best, places=best.places[1:])).never_had


def test_a_bounded_age_is_accepted_within_and_refused_beyond(history: History) -> None:
    old = top(history.states[1], 3, 4.5, 4.6)
    assert nothing(history.check(*WRITES, replace(old, slack_s=0.6)))
    assert history.check(*WRITES, replace(old, slack_s=0.4)).stale_reads
    assert history.check(*WRITES, replace(old, slack_s=0.6, places=top(INITIAL, 3, 0, 0).places)).stale_reads


def test_an_answer_that_says_that_it_is_old_still_has_to_be_of_one_state(history: History) -> None:
    for users in history.states:
        for ask in (top, context, page, page_behind, around):
            assert nothing(history.check(*WRITES, replace(ask(users, 12, 8, 9), stale=True)))
    mixed = history.states[0] | {6: ("u6", 300)}
    assert history.check(*WRITES, replace(top(mixed, 12, 8, 9), stale=True)).never_had


def test_an_unknown_write_may_show_late_or_never_but_not_come_and_go() -> None:
    history = History()
    unknown = put(5, 200, 1, math.inf)
    assert nothing(history.check(unknown, top(INITIAL, 3, 50, 51)))
    history.commit((5, 200))
    before, after = top(INITIAL, 3, 50, 51), top(history.users, 3, 60, 61)
    assert nothing(history.check(unknown, before, after))
    assert history.check(unknown, before, after, replace(before, start=70, end=71)).stale_reads


def test_a_lost_write(history: History) -> None:
    lost = put(7, 400, 1, 2, 93)
    findings = history.check(*WRITES, lost)
    assert findings == Findings(lost=findings.lost)
    assert str(lost) in findings.lost[0]
    made = Operation("create", 0, 1, 2, name="new", score=1, user_id=13)
    assert history.check(*WRITES, made).lost
    history.commit((13, 1))
    assert history.check(*WRITES, made).lost  # that is another name
    assert nothing(history.check(*WRITES, replace(made, name="u13")))
    assert nothing(history.check(*WRITES, replace(lost, outcome="unknown")))


def test_a_write_on_top_of_another_than_it_says(history: History) -> None:
    assert history.check(WRITES[0], WRITES[1], replace(WRITES[2], previous=95)).lost


def test_sets_of_one_user_that_travel_together_are_one_update() -> None:
    history = History()
    history.commit((5, 30))
    chain = (put(5, 10, 1, 4, 95), put(5, 20, 1, 4, 10), put(5, 30, 1, 4, 20))
    assert nothing(history.check(*chain))
    assert nothing(history.check(chain[0], put(5, 20, 1, math.inf), chain[2]))
    assert len(history.check(replace(chain[0], previous=94), *chain[1:]).lost) == 3
    assert history.check(chain[0], chain[2]).lost
    assert history.check(*chain, put(5, 40, 1, 4, 95)).lost  # it leads nowhere
    assert history.check(replace(chain[0], end=1.5), replace(chain[1], start=2), chain[2]).lost


def test_a_search_that_is_given_up_is_undecided(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "MAX_STATES", 2)
    wrong = replace(one(history.states[3], 12, 0, 9), places=(Place(1, 12, "u12", 88),))
    assert history.check(wrong).never_had
    wrong = replace(wrong, places=(Place(7, 12, "u12", 88),))
    findings = history.check(wrong)
    assert findings == Findings(undecided=findings.undecided)
    assert str(wrong) in findings.undecided[0]


def test_a_record_that_cannot_be_is_refused(history: History) -> None:
    a, b, c = history.transactions
    with pytest.raises(ValueError, match="neither"):
        board.check(
            {DEFAULT: INITIAL},
            [replace(a, seen=Snapshot(101, 103, frozenset({102}))), b, replace(c, seen=Snapshot(100, 101))],
            (),
        )
    with pytest.raises(ValueError, match="otherwise"):
        board.check({DEFAULT: INITIAL}, [a, b, replace(c, changes=(Change(3, 5, 42, 50, "u5"),))], ())
    with pytest.raises(ValueError, match="same id"):
        board.check({DEFAULT: INITIAL}, [a, b, replace(c, xid=b.xid)], ())


# At random: a database with concurrent transactions, and every state that it can have had

WRITTEN_KINDS = frozenset({"set", "create", "end"})
WRITTEN = (1, 2, 3, 9)
"""Few, so that operations meet. User 9 is absent at first."""

ASKED = (1, 2, 3, 3, 4, 5, 7, 8, 9, 9)

State = dict[Season, Users]
NOW = Season("rounds", 0)


def shown_by(state: State, question: Operation) -> Users | None:
    """Returns the users of the season that a read asks for; None if there is no such season in this state."""
    if question.board == DEFAULT.board:
        return state[DEFAULT]
    _, current = state[NOW][0]
    number = question.season
    if number is None or number == 0:
        number = current if number is None else current - 1
    return state.get(Season("rounds", number), {}) if 1 <= number <= current else None


def answer_of(state: State, question: Operation) -> Operation:
    """Returns the question with the right answer for this state."""
    users = shown_by(state, question)
    question = replace(question, outcome="no season" if users is None else "ok", places=(), total=None, more=None)
    return question if users is None else answer(users, question)


@dataclass
class Simulation:
    """A database whose clock is the number of events. Transactions write, take a snapshot, and end.

    It has the board `default` and one with seasons, which ends only while no transaction has written to it. Some
    write after they have taken it, on top of what they have not seen, as READ COMMITTED does.
    """

    chance: Random
    initial: State = field(
        default_factory=lambda: {
            DEFAULT: {user_id: (f"u{user_id}", user_id) for user_id in range(1, 9)},
            NOW: {0: ("", 1)},
            Season("rounds", 1): {user_id: (f"u{user_id}", user_id) for user_id in range(1, 5)},
        }
    )
    clock: float = 0.0
    running: dict[int, list[Change]] = field(default_factory=dict)
    seen: dict[int, Snapshot] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    transactions: list[Transaction] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    states: list[tuple[float, State]] = field(default_factory=list)
    completed: int = 99
    seq: int = 0

    def __post_init__(self) -> None:
        self.states.append((-math.inf, self.initial))

    @property
    def now(self) -> State:
        return self.states[-1][1]

    def run(self, events: Sequence[str]) -> None:
        for event in events:
            self.clock += 1
            if event == "begin":
                xid = 100 + len(self.begun)
                self.running[xid], self.begun[xid] = [], self.clock
            elif event == "ask":
                self.ask()
            elif event == "end season":
                self.end_season()
            elif self.running:
                xid = self.chance.choice(sorted(self.running))
                {"write": self.write, "look": self.look, "end": self.end}[event](xid)

    def write(self, xid: int) -> None:
        user_id = self.chance.choice(WRITTEN)
        _, current = self.now[NOW][0]
        season = self.chance.choice([DEFAULT, DEFAULT, Season("rounds", current)])
        if any(change.entry == (season, user_id) for own in self.running.values() for change in own):
            return  # the row is locked
        self.seq += 1
        old = self.now.get(season, {}).get(user_id)
        new = None if old and self.chance.randint(0, 5) == 0 else 1000 * self.chance.randint(-1, 1) + self.seq
        name = None if new is None else f"u{user_id}"
        self.running[xid].append(Change(self.seq, user_id, old[1] if old else None, new, name, season))

    def end_season(self) -> None:
        if any(change.season != DEFAULT for own in self.running.values() for change in own):
            return  # a writer has locked the board
        _, current = self.now[NOW][0]
        xid = 100 + len(self.begun)
        self.seq += 1
        self.running[xid] = [Change(self.seq, 0, current, current + 1, "", NOW)]
        self.begun[xid] = self.clock
        self.end(xid)

    def look(self, xid: int) -> None:
        xip = frozenset(other for other in self.running if other <= self.completed)
        self.seen[xid] = Snapshot(min(xip, default=self.completed + 1), self.completed + 1, xip)

    def end(self, xid: int) -> None:
        if xid not in self.seen:
            self.look(xid)
        changes = self.running.pop(xid)
        self.completed = max(self.completed, xid)
        if not changes or self.chance.randint(0, 9) == 0:
            return  # it rolls back
        state = {season: dict(users) for season, users in self.now.items()}
        for change in changes:
            users = state.setdefault(change.season, {})
            if change.new is None or change.name is None:
                del users[change.user_id]
            else:
                users[change.user_id] = (change.name, change.new)
        self.states.append((self.clock, state))
        by = None
        if self.chance.random() < 0.5:
            by = self.clock + self.chance.randint(0, 3) if self.chance.random() < 0.5 else None
        else:
            self.acknowledge(xid, changes)
        self.transactions.append(Transaction(xid, self.seen[xid], tuple(changes), by))

    def acknowledge(self, xid: int, changes: Sequence[Change]) -> None:
        start = self.begun[xid] - self.chance.randint(0, 2)
        for _, user_id, old, new, name, season in changes:
            end = self.clock + self.chance.choice([0.5, 1.5, 3.5, math.inf])
            outcome: Outcome = "unknown" if end == math.inf else "ok"
            if season == NOW:
                self.operations.append(Operation("end", 0, start, end, outcome, board="rounds", season=old))
            elif season != DEFAULT and new is not None:
                number = None if outcome == "unknown" else season.number
                self.operations.append(replace(put(user_id, new, start, end, old), board="rounds", season=number))
            elif season != DEFAULT:
                continue
            elif old is None and name is not None:
                made = None if outcome == "unknown" else user_id
                self.operations.append(Operation("create", 0, start, end, outcome, name, new, user_id=made))
            elif new is not None:
                previous = None if outcome == "unknown" else old
                self.operations.append(Operation("set", user_id, start, end, outcome, "", new, previous))

    def ask(self) -> None:
        before, after = self.chance.randint(0, 2), self.chance.randint(0, 2) + 0.5
        start, end, age = self.clock - before, self.clock + after, self.chance.choice([0, 0, 1, 2])
        stale = self.chance.randint(0, 4) == 0
        known = [state for since, state in self.states if since <= self.clock]
        state = self.chance.choice(known) if stale else self.at(self.clock - age)
        ask = self.chance.choice([top, top, one, context, page, page_behind, around])
        question = ask({}, self.chance.choice(ASKED), start, end)
        if self.chance.random() < 0.5:
            question = of_rounds(question, self.chance.choice([None, None, None, 0, 1, 2]))
        by = f"answer {len(self.operations)}"
        self.operations.append(replace(answer_of(state, question), slack_s=float(age), stale=stale, by=by))

    def at(self, time: float) -> State:
        return next(users for since, users in reversed(self.states) if since <= time)

    def check(self) -> Findings:
        return board.check(self.initial, self.transactions, self.operations)


EVENTS = ("begin", "begin", "write", "write", "write", "look", "end", "end", "ask", "ask", "end season")

CHANCE = st.randoms(use_true_random=True)
"""True random choices, because Hypothesis's own rarely combine many events."""


def simulate(chance: Random, events: int) -> Simulation:
    simulation = Simulation(chance)
    simulation.run(chance.choices(EVENTS, k=events))
    return simulation


@settings(max_examples=300, deadline=None)
@given(CHANCE, st.integers(0, 100))
def test_what_a_database_answers_is_accepted(chance: Random, events: int) -> None:
    simulation = simulate(chance, events)
    assert nothing(simulation.check())
    hand = [
        Operation("set", change.user_id, 0, outcome="unknown", score=change.new)
        for transaction in simulation.transactions
        for change in transaction.changes
        if change.season == DEFAULT
    ]
    scores = {user_id: score for user_id, (_, score) in simulation.initial[DEFAULT].items()}
    seen = [operation for operation in simulation.operations if operation.board == DEFAULT.board]
    assert linearizability.check(scores, [*seen, *hand]) == []


def every_state(simulation: Simulation) -> Iterator[tuple[frozenset[int], State]]:
    """Yields every set of transactions that can have been the committed ones, with the state that it is."""
    transactions = {transaction.xid: transaction for transaction in simulation.transactions}
    snapshots = [{other for other in transactions if t.seen.sees(other)} - {t.xid} for t in transactions.values()]
    changes = sorted((change, xid) for xid, t in transactions.items() for change in t.changes)
    for chosen in itertools.product([False, True], repeat=len(transactions)):
        state = {xid for xid, is_in in zip(transactions, chosen, strict=True) if is_in}
        if not all(seen <= state or state <= seen for seen in snapshots):
            continue
        boards = {season: dict(users) for season, users in simulation.initial.items()}
        skipped: set[Entry] = set()
        for change, xid in changes:
            users = boards.setdefault(change.season, {})
            if xid not in state:
                skipped.add(change.entry)
            elif change.entry in skipped:
                break  # it lacks the version that it overwrote
            elif change.new is None or change.name is None:
                del users[change.user_id]
            else:
                users[change.user_id] = (change.name, change.new)
        else:
            yield frozenset(state), boards


def explains(state: State, given: Operation, *, counts: bool) -> bool:
    """Returns whether the answer is right for this state; without `counts`, except for ranks and totals."""
    users = shown_by(state, given)
    if users is None or given.outcome == "no season":
        return users is None and given.outcome == "no season"
    if given.outcome == "missing":
        return given.target not in users
    if counts:
        right = answer(users, given)
        return (right.places, right.total, right.more) == (given.places, given.total, given.more)
    shown = [place[1:] for place in given.places]
    rows = [place[1:] for place in standings(users)]
    above = given.places[0].rank - 1 if shown else given.total
    if given.after:
        start = _first_of_page(standings(users), given)
    elif not shown:
        return not users
    elif shown[0] in rows:
        start = rows.index(shown[0])
    else:
        return False
    stop = start + len(shown)
    open_below = (
        given.kind == "user"
        if given.total is None and given.kind != "top"
        else len(shown) == given.target
        if given.total is None
        else given.total > (given.places[-1].rank if shown else given.total)
    )
    return rows[start:stop] == shown and (start == 0 or above != 0) and (stop == len(rows) or open_below)


def brute_force(simulation: Simulation) -> Mapping[str, str]:
    """Returns for each wrong answer the list it belongs in."""
    states = list(every_state(simulation))
    made: dict[tuple[str, int, int | None], int] = {
        (change.season.board, change.user_id, change.new): t.xid
        for t in simulation.transactions
        for change in t.changes
        if change.new is not None
    }
    begun: dict[int, float] = {}
    for operation in simulation.operations:
        if operation.kind in WRITTEN_KINDS and _written(operation) in made:
            xid = made[_written(operation)]
            begun[xid] = max(begun.get(xid, -math.inf), operation.start)
    verdicts: dict[str, str] = {}
    owed: list[tuple[float, frozenset[int]]] = []
    for operation in sorted(simulation.operations, key=lambda operation: operation.end):
        if operation.outcome == "unknown":
            continue
        if operation.kind in WRITTEN_KINDS:
            xid = made[_written(operation)]
            owed.append((operation.end, frozenset.intersection(*(state for state, _ in states if xid in state))))
            continue
        lower: set[int] = set()
        if not operation.stale:
            since = operation.start - operation.slack_s
            lower.update(*(state for end, state in owed if end < since))
            late = operation.start - max(1.0, operation.slack_s)
            lower |= {
                t.xid for t in simulation.transactions if t.committed_by is not None and t.committed_by < late
            }
        possible = [
            (state, boards)
            for state, boards in states
            if all(begun.get(xid, -math.inf) <= operation.end for xid in state)
        ]
        right = [
            _season(boards, operation)
            for s, boards in possible
            if lower <= s and explains(boards, operation, counts=True)
        ]
        if right:
            needs = [
                s
                for s, boards in possible
                if lower <= s and explains(boards, operation, counts=False) and _season(boards, operation) in right
            ]
            owed.append((operation.end, frozenset.intersection(*needs)))
        else:
            once = any(explains(boards, operation, counts=True) for _, boards in possible)
            verdicts[operation.by] = "stale" if once else "never"
    return verdicts


def _written(operation: Operation) -> tuple[str, int, int | None]:
    """Returns the board, the user and the score of a write."""
    if operation.kind == "end":
        return "rounds", 0, (operation.season or 0) + 1
    user_id = int(operation.name[1:]) if operation.kind == "create" else operation.target
    return operation.board, user_id, operation.score


def _season(boards: State, question: Operation) -> int:
    """Returns the season that is the current one, if a read shows that one or the one before; else 0."""
    return boards[NOW][0][1] if question.board == "rounds" and not question.season else 0


def corrupted(chance: Random) -> Simulation:
    """Returns a simulation with one answer from another time, of several states, or miscounted."""
    simulation = simulate(chance, 75)
    place = chance.choice([i for i, operation in enumerate(simulation.operations) if operation.by] or [-1])
    if place < 0:
        return simulation
    a, b = (chance.choice(simulation.states)[1] for _ in range(2))
    mixed = {
        season: {user: row for user in range(10) if (row := chance.choice([a, b]).get(season, {}).get(user))}
        for season in a | b
    }
    mixed[NOW] = chance.choice([a, b])[NOW]
    other = answer_of(chance.choice([a, mixed]), simulation.operations[place])
    wrong = chance.choice([0, 0, 0, 1, -1])
    places = tuple(row._replace(rank=row.rank + wrong) for row in other.places)
    total = None if other.total is None else other.total + chance.choice([0, 0, 0, 1, -1])
    simulation.operations[place] = replace(other, places=places, total=total)
    return simulation


@settings(max_examples=500, deadline=None)
@given(CHANCE)
def test_trying_every_state_finds_the_same(chance: Random) -> None:
    simulation = corrupted(chance)
    assume(len(simulation.transactions) <= 9)
    findings = simulation.check()
    assert findings.lost == findings.undecided == []
    found = {
        operation.by: verdict
        for verdict, texts in (("stale", findings.stale_reads), ("never", findings.never_had))
        for text in texts
        for operation in simulation.operations
        if str(operation) == text.split("\n")[1].strip()
    }
    assert found == brute_force(simulation)


# Registers


def permutations(operations: Sequence[Operation]) -> Iterator[tuple[Operation, ...]]:
    """Yields every possible order of all known operations and some of the unknown writes."""
    unknown = [operation for operation in operations if operation.outcome == "unknown"]
    known = [operation for operation in operations if operation.outcome != "unknown"]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *some]):
                if not any(b.end < a.start for a, b in itertools.combinations(order, 2)):
                    yield order


def works(state: int | None, order: Sequence[Operation]) -> bool:
    """Returns whether these operations, one after another, give the recorded answers."""
    for operation in order:
        result = operation.score
        if operation.kind in {"add", "best"} and state is not None and operation.score is not None:
            result = state + operation.score if operation.kind == "add" else max(state, operation.score)
        if operation.outcome == "unknown":
            state = result
        elif operation.outcome == "ok" and operation.kind in {"add", "best"}:
            if (state, result) != (operation.previous, operation.result):
                return False
            state = result
        elif operation.outcome == "ok" and operation.kind == "remove":
            if state is None:
                return False
            state = None
        elif operation.kind in {"user", "remove"}:
            if state != (operation.places[0].score if operation.places else None):
                return False
        else:
            if state != operation.previous:
                return False
            state = operation.score
    return True


OPERATORS = ("add", "add", "best", "remove")


def register_history(chance: Random, *, operators: bool) -> list[Operation]:
    """Returns up to seven overlapping operations on one user; one of them may be wrong."""
    state: int | None = 0
    operations: list[Operation] = []
    for moment in range(chance.randint(1, 7)):
        start, end = moment - chance.randint(0, 3), moment + chance.randint(0, 3) + 0.5
        score = chance.randint(0, 3)
        match chance.choice(["read", "read", "set", "set", "unknown", "by hand", *(OPERATORS * operators)]):
            case "read" if state is None:
                operations.append(Operation("user", 1, start, end, "missing"))
            case "read":
                operations.append(Operation("user", 1, start, end, places=(Place(1, 1, "u1", state or 0),)))
            case "set" if state is None:
                operations.append(Operation("create", 0, start, end, name="u1", score=score, user_id=1))
                state = score
            case "set":
                operations.append(Operation("set", 1, start, end, score=score, previous=state))
                state = score
            case "add" | "best" as kind:
                result = score if state is None else state + score if kind == "add" else max(state, score)
                unknown = chance.random() < 0.4
                if unknown:
                    operations.append(Operation(kind, 1, start, outcome="unknown", score=score))
                else:
                    operations.append(Operation(kind, 1, start, end, score=score, previous=state, result=result))
                state = chance.choice([state, result]) if unknown else result
            case "remove" if chance.random() < 0.4:
                operations.append(Operation("remove", 1, start, outcome="unknown"))
                state = chance.choice([state, None])
            case "remove":
                operations.append(Operation("remove", 1, start, end, "missing" if state is None else "ok"))
                state = None
            case kind:
                written = None if kind == "by hand" else score
                operations.append(Operation("set", 1, start, outcome="unknown", score=written))
                state = chance.choice([state, written])
    wrong = chance.randrange(len(operations))
    score = chance.randint(0, 3)
    operations[wrong] = chance.choice(
        [
            operations[wrong],
            replace(operations[wrong], start=operations[wrong].start - 2, end=operations[wrong].end - 2),
            Operation("user", 1, wrong, wrong + 0.5, places=(Place(1, 1, "u1", score),)),
            Operation("set", 1, wrong, wrong + 1.5, score=score, previous=chance.randint(0, 3)),
        ]
    )
    return operations


@settings(max_examples=1000, deadline=None)
@given(CHANCE, st.booleans())
def test_the_register_search_agrees_with_trying_every_order(chance: Random, operators: bool) -> None:
    operations = register_history(chance, operators=operators)
    possible = any(works(0, order) for order in permutations(operations))
    assert (linearizability.check({1: 0}, operations) == []) == possible


def test_the_register_search_names_the_operations_around() -> None:
    far = [put(5, 500 + i, i, i + 0.5, 499 + i if i else 95) for i in range(20)]
    stuck = one({5: ("u5", 510)}, 5, 30, 31)
    meanwhile = put(5, 600, 30.5, 32, 519)
    [text] = linearizability.check({5: 95}, [*far, stuck, meanwhile])
    assert str(stuck) in text
    assert str(far[-1]) in text
    assert str(meanwhile) in text
    assert str(far[3]) not in text


def test_the_register_search_knows_adding_keeping_the_best_and_removing() -> None:
    two = [Operation("add", 5, n, outcome="unknown", score=score) for n, score in enumerate((2, 40))]
    assert linearizability.check({5: 100}, [*two, one({5: ("u5", 142)}, 5, 3, 4)]) == []
    assert linearizability.check({5: 100}, [*two, one({5: ("u5", 144)}, 5, 3, 4)])
    lost = Operation("add", 5, 3, 4, score=1, previous=100, result=101)
    assert linearizability.check({5: 100}, [replace(lost, start=1, end=2), lost])
    [text] = linearizability.check({5: 100}, [replace(lost, result=102)])
    assert "is not the result of the operation" in text
    worse = Operation("best", 5, 1, 2, score=7, previous=100, result=100)
    assert linearizability.check({5: 100}, [worse]) == []
    assert linearizability.check({5: 100}, [replace(worse, result=7)])
    removed = Operation("remove", 5, 3, 4)
    assert (
        linearizability.check({5: 100}, [removed, replace(worse, start=5, end=6, previous=None, result=7)]) == []
    )
    assert linearizability.check({5: 100}, [removed, replace(removed, start=5, end=6)])
    assert linearizability.check({5: 100}, [removed, replace(removed, start=5, end=6, outcome="missing")]) == []


def test_what_the_register_search_leaves_out_and_lets_be_late() -> None:
    old = one({5: ("u5", 95)}, 5, 3, 4)
    write = put(5, 200, 1, 2, 95)
    scores = {5: 95}
    assert linearizability.check(scores, [write, old])
    assert linearizability.check(scores, [write, replace(old, stale=True)]) == []
    assert linearizability.check(scores, [write, replace(old, slack_s=1.5)]) == []
    assert linearizability.check(scores, [write, replace(old, slack_s=0.5)])
    refused = replace(put(5, 300, 1, 2), outcome="refused", previous=None)
    assert linearizability.check(scores, [refused, old]) == []
    assert linearizability.check(scores, [refused, one({5: ("u5", 300)}, 5, 3, 4)])
    unknown = put(5, 400, 1, math.inf)
    late, again = one({5: ("u5", 400)}, 5, 90, 91), one({5: ("u5", 95)}, 5, 92, 93)
    assert linearizability.check(scores, [unknown, old, late]) == []
    assert linearizability.check(scores, [unknown, old, late, again])
    made = Operation("create", 0, 1, outcome="unknown", name="u9", score=7)
    assert linearizability.check(scores, [made, one({9: ("u9", 7)}, 9, 5, 6)]) == []
    assert linearizability.check(scores, [one({9: ("u9", 7)}, 9, 5, 6)])


# Boards and seasons


class Rounds:
    """A board whose season 3 is the current one, and the board `default`.

    Every transaction sees all earlier ones, unless it says otherwise.
    """

    def __init__(self) -> None:
        self.third, self.fourth = Season("rounds", 3), Season("rounds", 4)
        self.initial: dict[Season, Users] = {
            DEFAULT: dict(INITIAL),
            Season("rounds", 0): {0: ("", 3)},
            Season("rounds", 2): {1: ("u1", 7)},
            self.third: dict(INITIAL),
        }
        self.now: dict[Season, Users] = {season: dict(users) for season, users in self.initial.items()}
        self.now[self.fourth] = {}
        self.transactions: list[Transaction] = []
        self._seq = 0

    def commit(
        self,
        season: Season,
        *changes: tuple[int, int | None],
        by: float | None = None,
        seen: Snapshot | None = None,
    ) -> None:
        """Sets these scores (None: removes the entry) in one transaction."""
        made = []
        for user_id, new in changes:
            self._seq += 1
            old = self.now[season].pop(user_id, None)
            name = None if new is None else "" if season.number == 0 else f"u{user_id}"
            if new is not None and name is not None:
                self.now[season][user_id] = name, new
            made.append(Change(self._seq, user_id, None if old is None else old[1], new, name, season))
        xid = 100 + len(self.transactions)
        self.transactions.append(Transaction(xid, seen or Snapshot(xid, xid), tuple(made), by))

    def end(self, *, seen: Snapshot | None = None) -> None:
        self.commit(Season("rounds", 0), (0, 4), seen=seen)

    def check(self, *operations: Operation) -> Findings:
        return board.check(self.initial, self.transactions, operations)


def ended(start: float, end: float, outcome: Outcome = "ok") -> Operation:
    return Operation("end", 0, start, end, outcome, board="rounds", season=3)


@pytest.fixture
def rounds() -> Rounds:
    """User 5 gets 200, the season ends, then user 6 gets 300 in the next one."""
    rounds = Rounds()
    rounds.commit(rounds.third, (5, 200))
    rounds.end()
    rounds.commit(rounds.fourth, (6, 300))
    return rounds


ROUNDS = (
    of_rounds(put(5, 200, 1, 2, 95), 3),
    ended(3, 4),
    of_rounds(put(6, 300, 5, 6), 4),
)
"""The three writes of `rounds`."""


def test_a_season_is_shown_as_the_current_one_until_its_end(rounds: Rounds) -> None:
    old, new = rounds.now[rounds.third], rounds.now[rounds.fourth]
    for ask in (top, one, context, page, around):
        assert nothing(rounds.check(*ROUNDS, of_rounds(ask(old, 5, 2.5, 3.5))))
        assert nothing(rounds.check(*ROUNDS, of_rounds(ask(new, 6, 6.5, 7))))
    for ask in (top, page, around):
        assert nothing(rounds.check(*ROUNDS, of_rounds(ask({}, 5, 3.5, 4.5))))
        late = of_rounds(ask(old, 5, 4.5, 7))
        findings = rounds.check(*ROUNDS, late)
        assert findings == Findings(stale_reads=findings.stale_reads)
        assert str(ROUNDS[1]) in findings.stale_reads[0]
        assert rounds.check(*ROUNDS, of_rounds(ask(new, 5, 2.5, 2.9))).never_had


def test_after_one_answer_of_the_new_season_no_answer_shows_the_old_one(rounds: Rounds) -> None:
    unknown = (ROUNDS[0], ended(3, math.inf, "unknown"), ROUNDS[2])
    new, old = of_rounds(top({}, 5, 3.5, 3.6)), of_rounds(top(rounds.now[rounds.third], 5, 3.7, 3.8))
    assert nothing(rounds.check(*unknown, replace(old, start=3.1, end=3.2), new))
    assert nothing(rounds.check(*unknown, new, replace(old, start=3.55)))
    assert rounds.check(*unknown, new, old).stale_reads
    missing = of_rounds(one({}, 5, 3.7, 3.8))
    assert nothing(rounds.check(*unknown, new, missing))
    assert rounds.check(*unknown, replace(missing, start=2.5, end=2.6)).never_had


def test_an_archive_and_the_last_season_that_ended(rounds: Rounds) -> None:
    old = rounds.now[rounds.third]
    assert nothing(rounds.check(*ROUNDS, of_rounds(top(old, 5, 8, 9), 3), of_rounds(top(old, 5, 8, 9), 0)))
    assert nothing(rounds.check(*ROUNDS, of_rounds(top(rounds.initial[Season("rounds", 2)], 5, 1, 2), 0)))
    assert rounds.check(*ROUNDS, of_rounds(top(rounds.initial[Season("rounds", 2)], 5, 8, 9), 0)).stale_reads
    assert rounds.check(*ROUNDS, of_rounds(top(INITIAL, 5, 8, 9), 3)).stale_reads
    none = Operation("top", 5, 1, 2, "no season", board="rounds", season=4)
    assert nothing(rounds.check(*ROUNDS, none))
    assert rounds.check(*ROUNDS, replace(none, start=8, end=9)).stale_reads
    assert rounds.check(*ROUNDS, replace(none, season=3)).never_had
    assert rounds.check(*ROUNDS, replace(none, season=0)).never_had
    del rounds.initial[Season("rounds", 2)]
    assert nothing(rounds.check(*ROUNDS, replace(none, season=0)))
    assert rounds.check(*ROUNDS, replace(none, season=0, start=8, end=9)).stale_reads


def test_an_archive_that_changes_after_its_end(rounds: Rounds) -> None:
    rounds.commit(rounds.third, (7, None), by=8.0)
    assert nothing(rounds.check(*ROUNDS))
    rounds.commit(rounds.third, (5, 250))
    assert len(rounds.check(*ROUNDS).not_once) == 1
    rounds = Rounds()
    rounds.commit(rounds.third, (5, 200))
    rounds.end(seen=Snapshot(100, 101, frozenset({100})))
    assert len(rounds.check().not_once) == 1


def test_an_acknowledged_score_is_in_the_season_that_its_answer_names(rounds: Rounds) -> None:
    assert rounds.check(replace(ROUNDS[0], season=4, previous=None), *ROUNDS[1:]).lost
    assert rounds.check(*ROUNDS, of_rounds(put(7, 400, 8, 9), 4)).lost
    rounds.commit(rounds.fourth, (5, 200))
    assert len(rounds.check(*ROUNDS).not_once) == 1


def test_an_end_that_was_acknowledged_and_not_done() -> None:
    rounds = Rounds()
    assert rounds.check(ended(1, 2)).lost
    assert nothing(rounds.check(replace(ended(1, 2), season=2)))
    assert nothing(rounds.check(ended(1, 2, "no season"))) is False
    assert nothing(rounds.check(replace(ended(1, 2, "no season"), season=4)))


def test_an_answer_of_one_board_holds_for_every_other_board() -> None:
    rounds = Rounds()
    rounds.commit(rounds.third, (5, 200))
    rounds.commit(DEFAULT, (6, 300))
    unknown = (of_rounds(put(5, 200, 0, math.inf)), put(6, 300, 0, math.inf))
    new, old = top(rounds.now[DEFAULT], 3, 1, 2), of_rounds(top(INITIAL, 3, 3, 4))
    assert nothing(rounds.check(*unknown, replace(old, start=0, end=0.5), new))
    assert rounds.check(*unknown, new, old).stale_reads


def test_increments_and_removals_of_a_board() -> None:
    rounds = Rounds()
    rounds.commit(rounds.third, (5, 97))
    rounds.commit(rounds.third, (5, None))
    rounds.commit(rounds.third, (5, 4))
    users = rounds.now[rounds.third]
    add = Operation("add", 5, 1, 2, score=2, previous=95, result=97, board="rounds", season=3)
    remove = Operation("remove", 5, 3, 4, board="rounds", season=3)
    again = replace(add, start=5, end=6, score=4, previous=None, result=4)
    assert nothing(rounds.check(add, remove, again, of_rounds(top(users, 12, 7, 8))))
    assert rounds.check(replace(add, previous=93, result=95), remove, again).lost
    assert rounds.check(add, replace(remove, target=6), again).lost
    assert rounds.check(add, remove, again, replace(remove, start=8, end=9)).lost
    before = of_rounds(top(INITIAL | {5: ("u5", 97)}, 12, 4.5, 4.6))
    assert rounds.check(add, remove, again, before).stale_reads
    assert rounds.check(add, remove, again, replace(again, start=8, end=9, score=4, previous=4, result=8)).lost
    rounds.commit(rounds.third, (5, 6))
    assert len(rounds.check(add, remove, again).not_once) == 1


def test_a_user_that_does_not_exist_has_no_entry() -> None:
    rounds = Rounds()
    rounds.commit(DEFAULT, (5, None), by=3.0)
    missing = Operation("set", 5, 5, 6, "missing", score=7, board="rounds")
    assert nothing(rounds.check(missing))
    assert rounds.check(replace(missing, target=6)).never_had


def verdict_on(rounds: Rounds, *operations: Operation) -> dict[str, list[str]]:
    """Returns what a fault without refusals did wrong, by kind."""
    case = Case(Fault("none", lambda _: None), Record(list(operations)), rounds.initial, rounds.transactions, 0, 9)
    return {kind: texts for kind, texts in judge(case).wrong.items() if texts}


def test_every_season_has_registers_of_its_own(rounds: Rounds) -> None:
    later = of_rounds(put(6, 400, 7, 8, 300), 4)
    rounds.commit(rounds.fourth, (6, 400))
    shown = of_rounds(one(rounds.now[rounds.fourth], 6, 8.1, 8.2))
    assert verdict_on(rounds, *ROUNDS, later, shown) == {}
    wrong = verdict_on(rounds, *ROUNDS, later, of_rounds(one({6: ("u6", 300)}, 6, 8.1, 8.2)))
    assert any(text.startswith("rounds/4, user 6: ") for text in wrong["too old"])
    archived = of_rounds(one(INITIAL, 5, 2.1, 2.2))
    wrong = verdict_on(rounds, *ROUNDS, later, archived)
    assert any(text.startswith("rounds/3, user 5: ") for text in wrong["too old"])


def test_an_unknown_increment_counts_only_where_an_entry_shows_it() -> None:
    rounds = Rounds()
    rounds.commit(rounds.third, (5, 95 | 1 << 10))
    unknown = [Operation("add", 5, 0, outcome="unknown", score=1 << bit, board="rounds") for bit in range(10, 40)]
    shown = of_rounds(one(rounds.now[rounds.third], 5, 5, 6))
    assert verdict_on(rounds, *unknown, shown) == {}
    assert verdict_on(rounds, *unknown[1:], shown).keys() == {"too old"}
