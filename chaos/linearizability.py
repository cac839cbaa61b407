"""Is each user's score linearizable? Every user is a register, and each operation has to take effect at one
instant between its start and its end, such that all of them, one after another, give the answers that were
given.

This is the search of J. M. Wing and C. Gong, "Testing and verifying concurrent objects" (Journal of Parallel and
Distributed Computing 17, 1993), as refined by G. Lowe, "Testing for linearizability" (Concurrency and
Computation: Practice and Experience 29, 2017): what has been searched is remembered by (which operations have
taken effect, state), and an operation takes effect *just in time*, when its answer comes, or when another needs
it that it has. So the history is walked once, in the order of time, with the set of all configurations that are
still possible. Where nothing is pending, a configuration is just a state: the history is cut there by itself.

Three things keep that set small without losing an answer. A pending read that the state satisfies takes effect
at once: it changes nothing. A write of unknown outcome, which stays pending for ever, takes effect only directly
before an operation that sees it: one that nobody sees might as well never have been done. And of two
configurations that differ only in the unknown writes they have used, the one that has used fewer can do all that
the other can.

A register is less than a board: two users from two different states are `board`'s to find. But this needs no
record of transactions, only the clients' own.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from chaos.history import Operation

Score = int | None
"""None: there is no such user."""


class Step(NamedTuple):
    """What an operation is to one user: it needs this state, and leaves that one. A read leaves it as it is."""

    start: float
    end: float
    needs: Score
    leaves: Score
    optional: bool
    """A write of unknown outcome, which needs nothing."""
    operation: Operation

    @property
    def writes(self) -> bool:
        return self.operation.kind in {"set", "create"} and self.operation.outcome != "missing"


class Configuration(NamedTuple):
    """One way in which things may have gone so far."""

    state: Score
    done: frozenset[int]
    """Which of the operations that are still pending have taken effect."""
    used: frozenset[int]
    """Which writes of unknown outcome have."""


def check(initial: Mapping[int, int], operations: Iterable[Operation]) -> list[str]:
    """Check every user's history, which begins with the scores of `initial`; one text per user that failed.

    Changes by hand are sets of unknown outcome (to None: a deletion). Answers with an `Age` are left out.
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
    """The operations of one user that have begun and not ended."""

    def __init__(self) -> None:
        self.known: dict[int, Step] = {}
        self.optional: dict[Score, dict[int, Step]] = defaultdict(dict)
        """Writes of unknown outcome, by what they leave."""

    def settled(self, state: Score, done: frozenset[int], used: frozenset[int]) -> Configuration:
        """Let the pending reads that this state satisfies take effect."""
        reads = [
            number
            for number, step in self.known.items()
            if number not in done and not step.writes and step.needs == state
        ]
        return Configuration(state, done.union(reads) if reads else done, used)

    def next(self, now: Configuration) -> Iterable[Configuration]:
        """Every way for one more known operation to take effect, perhaps right after an optional one."""
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
        """Every configuration in which the operation `number` has just taken effect."""
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
    # What ends as another starts overlaps it: starts come first.
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
    """Leave out each that differs from another only in having used more of the unknown writes."""
    if len(configurations) == 1:
        return configurations
    kept: dict[tuple[Score, frozenset[int]], list[Configuration]] = defaultdict(list)
    for configuration in sorted(configurations, key=lambda c: len(c.used)):
        rivals = kept[configuration.state, configuration.done]
        if not any(rival.used <= configuration.used for rival in rivals):
            rivals.append(configuration)
    return {configuration for rivals in kept.values() for configuration in rivals}


def _explain(stuck: Step, steps: Sequence[Step], pending: _Pending, configurations: set[Configuration]) -> str:
    """The operations around the one that cannot have taken effect: what overlaps it, and the writes before."""
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
