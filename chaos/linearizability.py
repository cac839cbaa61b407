"""Checks that each user's score is linearizable.

Every entry is a register; a check is about those of one season. Each operation must take effect at one instant
between its start and its end, so that all of them, one after another, give the recorded answers. An entry of a
board that keeps the best score or adds up is a register with the operations `best` and `add`; scores are then
numbers of which more is better.

This is the search of J. M. Wing and C. Gong, "Testing and verifying concurrent objects" (Journal of Parallel and
Distributed Computing 17, 1993), as refined by G. Lowe, "Testing for linearizability" (Concurrency and
Computation: Practice and Experience 29, 2017): what has been searched is remembered by (which operations have
taken effect, state), and an operation takes effect *just in time*: when its answer comes, or when another
operation needs its effect. So the history is read once, in the order of time, with the set of all configurations
that are still possible. Where no operation is pending, a configuration is only a state.

Three rules keep that set small and lose no solution. A pending read that the state satisfies takes effect at
once, because it changes nothing. A write of unknown outcome, which stays pending to the end, takes effect only
directly before an operation that sees it; a write that no operation sees may as well not have been done. But if
one of them is an `add` or a `best`, an operation may see several, so they take effect at any time. Of two
configurations that differ only in the unknown writes they have used, the one that has used fewer can do all that
the other can.

This check needs only the record of the clients. It does not find an answer that shows two users as of two states;
`board` does.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from chaos.history import WRITES, Operation

Score = int | None
"""None if there is no such user, or no entry."""


class Needs(Enum):
    """A state that is not one score."""

    PRESENT = "any score"


class Step(NamedTuple):
    """An operation on one user: needs the state `needs` and leaves `leaves`, the same for a read."""

    start: float
    end: float
    needs: Score | Needs
    leaves: Score
    optional: bool
    """Whether it is a write of unknown outcome, which needs no state. `leaves` counts only for a set."""
    operation: Operation

    @property
    def writes(self) -> bool:
        return self.operation.kind in WRITES and self.operation.outcome != "missing"

    def fits(self, state: Score) -> bool:
        return state is not None if self.needs is Needs.PRESENT else state == self.needs


_RELATIVE = frozenset({"add", "best"})
"""The writes whose result depends on the state before."""


def _after(operation: Operation, state: Score) -> Score:
    """Returns the state after a set, an add, a best or a remove."""
    if operation.kind not in _RELATIVE or state is None or operation.score is None:
        return operation.score
    return state + operation.score if operation.kind == "add" else max(state, operation.score)


class Configuration(NamedTuple):
    """One possible order of the operations so far."""

    state: Score
    done: frozenset[int]
    """The pending operations that have taken effect."""
    used: frozenset[int]
    """The writes of unknown outcome that have taken effect."""


def check(initial: Mapping[int, int], operations: Iterable[Operation]) -> list[str]:
    """Checks every user's history, which begins with the scores of `initial`. Returns a text per failed user.

    Changes by hand are sets of unknown outcome; a set to None is a deletion. Answers with an `Age` are left out.
    """
    operations = list(operations)
    failures = [
        f"user {operation.target}: this answer is not the result of the operation\n    {operation}"
        for operation in operations
        if operation.kind in _RELATIVE
        and operation.outcome == "ok"
        and operation.result != _after(operation, operation.previous)
    ]
    for user_id, steps in sorted(_by_user(operations).items()):
        failure = _check_user(initial.get(user_id), steps)
        if failure:
            failures.append(f"user {user_id}: {failure}")
    return failures


def _by_user(operations: Iterable[Operation]) -> dict[int, list[Step]]:
    users: dict[int, list[Step]] = defaultdict(list)
    creates: dict[str, list[Operation]] = defaultdict(list)
    names: dict[str, set[int]] = defaultdict(set)
    for operation in operations:
        if operation.outcome == "refused" or operation.stale:
            continue
        start, end, score = operation.start, operation.end, operation.score
        for place in operation.places:
            names[place.name].add(place.user_id)
            users[place.user_id].append(
                Step(start - operation.slack_s, end, place.score, place.score, False, operation)
            )
        if operation.outcome == "missing":
            users[operation.target].append(Step(start - operation.slack_s, end, None, None, False, operation))
        elif operation.kind in {"set", "remove", *_RELATIVE} and operation.outcome == "unknown":
            users[operation.target].append(Step(start, math.inf, None, score, True, operation))
        elif operation.kind in _RELATIVE:
            users[operation.target].append(
                Step(start, end, operation.previous, operation.result, False, operation)
            )
        elif operation.kind == "remove":
            users[operation.target].append(Step(start, end, Needs.PRESENT, None, False, operation))
        elif operation.kind == "set":
            users[operation.target].append(Step(start, end, operation.previous, score, False, operation))
        elif operation.kind == "create" and operation.outcome == "unknown":
            creates[operation.name].append(operation)
        elif operation.kind == "create" and operation.user_id is not None:
            users[operation.user_id].append(Step(start, end, None, score, False, operation))
    for name, unknown in creates.items():
        for user_id in names[name]:
            users[user_id].extend(Step(o.start, math.inf, None, o.score, True, o) for o in unknown)
    return users


class _Pending:
    """The pending operations of one user."""

    def __init__(self) -> None:
        self.known: dict[int, Step] = {}
        self.optional: dict[Score, dict[int, Step]] = defaultdict(dict)
        """Sets of unknown outcome, by the state that they leave."""
        self.anytime: dict[int, Step] = {}
        """All writes of unknown outcome, if one of them depends on the state before."""

    def add_optional(self, number: int, step: Step) -> None:
        if step.operation.kind in _RELATIVE or self.anytime:
            self.anytime[number] = step
            for sets in self.optional.values():
                self.anytime |= sets
            self.optional.clear()
        else:
            self.optional[step.leaves][number] = step

    def _leaving(self, step: Step) -> Iterable[tuple[int, Step]]:
        """Yields the sets of unknown outcome that leave a state that the step needs."""
        for state in list(self.optional) if step.needs is Needs.PRESENT else [step.needs]:
            if not isinstance(state, Needs) and step.fits(state):
                yield from self.optional[state].items()

    def settled(self, state: Score, done: frozenset[int], used: frozenset[int]) -> Configuration:
        """Returns the configuration after all pending reads that this state satisfies."""
        reads = [
            number
            for number, step in self.known.items()
            if number not in done and not step.writes and step.needs == state
        ]
        return Configuration(state, done.union(reads) if reads else done, used)

    def next(self, now: Configuration) -> Iterable[Configuration]:
        """Yields each configuration after one more known operation, perhaps right after an optional one."""
        for number, step in self.known.items():
            if number in now.done:
                continue
            if step.fits(now.state):
                yield self.settled(step.leaves, now.done | {number}, now.used)
                continue
            for other, write in self._leaving(step):
                if other not in now.used:
                    between = self.settled(write.leaves, now.done, now.used | {other})
                    yield self.settled(step.leaves, between.done | {number}, between.used)
        for other, write in self.anytime.items():
            if other not in now.used:
                yield self.settled(_after(write.operation, now.state), now.done, now.used | {other})

    def until(self, number: int, configurations: Iterable[Configuration]) -> set[Configuration]:
        """Returns every configuration in which the operation `number` has taken effect."""
        found: set[Configuration] = set()
        visited = set(configurations)
        open_ = list(visited)
        while open_:
            configuration = open_.pop()
            if number in configuration.done:
                found.add(configuration._replace(done=configuration.done - {number}))
                continue
            for following in self.next(configuration):
                if following not in visited:
                    visited.add(following)
                    open_.append(following)
        return found


def _check_user(state: Score, steps: Sequence[Step]) -> str | None:
    # An operation that ends when another starts overlaps it, so starts come first.
    events = sorted(
        [(step.start, 0, number) for number, step in enumerate(steps)]
        + [(step.end, 1, number) for number, step in enumerate(steps) if not step.optional]
    )
    pending = _Pending()
    configurations = {Configuration(state, frozenset(), frozenset())}
    for _, ends, number in events:
        step = steps[number]
        if not ends:
            if step.optional:
                pending.add_optional(number, step)
                continue
            pending.known[number] = step
            if not step.writes:
                configurations = {pending.settled(*configuration) for configuration in configurations}
            continue
        after = pending.until(number, configurations)
        if not after:
            return _explain(step, steps, pending, configurations)
        del pending.known[number]
        configurations = _least_used(after)
    return None


def _least_used(configurations: set[Configuration]) -> set[Configuration]:
    """Leaves out each configuration that differs from another only in more used unknown writes."""
    if len(configurations) == 1:
        return configurations
    kept: dict[tuple[Score, frozenset[int]], list[Configuration]] = defaultdict(list)
    for configuration in sorted(configurations, key=lambda c: len(c.used)):
        rivals = kept[configuration.state, configuration.done]
        if not any(rival.used <= configuration.used for rival in rivals):
            rivals.append(configuration)
    return {configuration for rivals in kept.values() for configuration in rivals}


def _explain(stuck: Step, steps: Sequence[Step], pending: _Pending, configurations: set[Configuration]) -> str:
    """Returns a text: the operation that fits nowhere, what overlaps it, and the writes before."""
    before = sorted((step for step in steps if step.end < stuck.start), key=lambda step: step.end)
    last = max((step.start for step in before if step.writes), default=-math.inf)
    known = [step for step in before if step.end >= last][-12:]
    optional = [step for writes in (*pending.optional.values(), pending.anytime) for step in writes.values()]
    around = [step for step in steps if step.start <= stuck.end and step.end >= stuck.start and step is not stuck]
    states = ", ".join(sorted({_name(configuration.state) for configuration in configurations}))
    return "\n".join(
        [
            "this operation could not take effect at any time between its start and its end",
            f"    {stuck.operation}",
            f"  it needs the state {_name(stuck.needs)}; possible just before its end: {states}",
            *(["  what ended last before it"] if known else []),
            *(f"    {step.operation}" for step in known),
            *(["  what overlaps it"] if around else []),
            *(f"    {step.operation}" for step in around if not step.optional),
            *(f"    {step.operation} (might be done at any time)" for step in optional[-12:]),
        ]
    )


def _name(state: Score | Needs) -> str:
    return state.value if isinstance(state, Needs) else "absent" if state is None else str(state)
