"""Checks that each user's score is linearizable.

Every user is a register. Each operation must take effect at one instant between its start and its end, so that
all of them, one after another, give the recorded answers.

This is the search of J. M. Wing and C. Gong, "Testing and verifying concurrent objects" (Journal of Parallel and
Distributed Computing 17, 1993), as refined by G. Lowe, "Testing for linearizability" (Concurrency and
Computation: Practice and Experience 29, 2017): what has been searched is remembered by (which operations have
taken effect, state), and an operation takes effect *just in time*: when its answer comes, or when another
operation needs its effect. So the history is read once, in the order of time, with the set of all configurations
that are still possible. Where no operation is pending, a configuration is only a state.

Three rules keep that set small and lose no solution. A pending read that the state satisfies takes effect at
once, because it changes nothing. A write of unknown outcome, which stays pending to the end, takes effect only
directly before an operation that sees it; a write that no operation sees may as well not have been done. Of two
configurations that differ only in the unknown writes they have used, the one that has used fewer can do all that
the other can.

This check needs only the record of the clients. It does not find an answer that shows two users as of two states;
`board` does.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from chaos.history import Operation

Score = int | None
"""None if there is no such user."""


class Step(NamedTuple):
    """An operation on one user: needs the state `needs` and leaves `leaves`, the same for a read."""

    start: float
    end: float
    needs: Score
    leaves: Score
    optional: bool
    """Whether it is a write of unknown outcome, which needs no state."""
    operation: Operation

    @property
    def writes(self) -> bool:
        return self.operation.kind in {"set", "create"} and self.operation.outcome != "missing"


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
    failures = []
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
        elif operation.kind == "set" and operation.outcome == "unknown":
            users[operation.target].append(Step(start, math.inf, None, score, True, operation))
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
        """Writes of unknown outcome, by the state that they leave."""

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
            if step.needs == now.state:
                yield self.settled(step.leaves, now.done | {number}, now.used)
                continue
            for other, write in self.optional[step.needs].items():
                if other not in now.used:
                    between = self.settled(write.leaves, now.done, now.used | {other})
                    yield self.settled(step.leaves, between.done | {number}, between.used)

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
                pending.optional[step.leaves][number] = step
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
    optional = [step for writes in pending.optional.values() for step in writes.values()]
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


def _name(state: Score) -> str:
    return "absent" if state is None else str(state)
