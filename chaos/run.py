"""Injects faults one after the other into a rig under load, and sums up the results."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from chaos.faults import Fault, Injection
from chaos.history import DEFAULT
from chaos.judge import Case, Verdict, judge
from chaos.load import Load, Plan
from chaos.rig import CACHE_SIZE, Rig, Work
from tests.system import PATIENCE_S

DEADLINE_S = 5.5
"""The deadline of a request, plus half a second."""
_SHOWN = 3
NONE = Work(0, 0, 0)


@dataclass
class Result:
    """The results of all injections of one fault."""

    times: int = 0
    healed_s: float = 0.0
    slowest_s: float = 0.0
    work: Work = NONE
    """Of the processes that were not killed."""
    verdict: Verdict = field(default_factory=Verdict)


class Run:
    """A series of injections into one rig."""

    def __init__(self, rig: Rig, *, long: bool, say: Callable[[str], None], timed: bool = True) -> None:
        """Without `timed`, a long time is not a violation, because it depends on the machine too."""
        self._rig = rig
        self._long = long
        self._say = say
        self._timed = timed
        self._pause_s = 0.5 if long else 0.3
        self.results: dict[str, Result] = {}

    @property
    def violations(self) -> int:
        return sum(result.verdict.violations for result in self.results.values())

    def inject(self, fault: Fault, seed: int, *, again: bool = False) -> Verdict:
        """Injects a fault once, under load, and judges the record. With `again`, for a shorter time."""
        rig = self._rig
        rig.settle()
        rig.fill()
        rig.begin()
        initial, mark = rig.state()
        injection = Injection(rig, random.Random(seed), self._long and not again, mark)
        deadline_s = DEADLINE_S if self._timed else 2 * PATIENCE_S
        heals_within_s = fault.shown_within_s if self._timed else PATIENCE_S
        plan = Plan(
            {api.name: api.port for api in rig.apis},
            {board: users[0][1] for (board, number), users in initial.items() if number == 0},
            tuple(initial[DEFAULT]),
            CACHE_SIZE,
            seed,
            deadline_s,
        )
        before = self._work()
        with Load(plan) as load:
            time.sleep(self._pause_s)
            began = time.monotonic()
            fault.inject(injection)
            ended = time.monotonic()
            try:
                healed_s = rig.healed(heals_within_s)
                not_healed = f"cache and rank index were not both valid {heals_within_s:g} s after the end"
            except AssertionError as error:
                healed_s, not_healed = None, str(error)
            recovered_at = None
            if not self._timed:
                rig.settle()
                recovered_at = time.monotonic()
            time.sleep(self._pause_s)
            record = load.stop()
        after = self._work()
        since = mark if injection.fork is None else injection.fork.mark
        case = Case(fault, record, initial, rig.transactions(since), began, ended, injection.fork, recovered_at)
        verdict = judge(case)
        if healed_s is None:
            verdict.wrong["not healed"].append(not_healed)
        self._add(fault, injection.times, healed_s, record.slowest_s, verdict)
        result = self.results[fault.name]
        for pid, work in after.items():
            done = zip(result.work, work, before.get(pid, NONE), strict=True)
            result.work = Work(*(total + now - then for total, now, then in done))
        return verdict

    def _work(self) -> dict[int, Work]:
        """By pid, for the running processes."""
        return {api.process.pid: api.work() for api in self._rig.apis if api.process is not None}

    def _add(self, fault: Fault, times: int, healed_s: float | None, slowest_s: float, verdict: Verdict) -> None:
        result = self.results.setdefault(fault.name, Result())
        result.times += times
        result.healed_s = max(result.healed_s, healed_s or float("inf"))
        result.slowest_s = max(result.slowest_s, slowest_s)
        total = result.verdict
        for name in ("reads", "writes", "unknown", "refused", "stale"):
            setattr(total, name, getattr(total, name) + getattr(verdict, name))
        for kind, texts in verdict.wrong.items():
            total.wrong[kind] += texts
        self._say(
            f"{fault.name}: {times} times, {verdict.reads} reads, {verdict.writes} writes, healed in"
            f" {healed_s if healed_s is None else round(healed_s, 2)} s, slowest {slowest_s:.2f} s,"
            f" {verdict.violations} violations"
        )
        for kind, texts in verdict.wrong.items():
            for text in texts[:_SHOWN]:
                self._say(f"  {kind.upper()}: {text}")
            if len(texts) > _SHOWN:
                self._say(f"  … {len(texts) - _SHOWN} more of these")


def table(results: Mapping[str, Result]) -> str:
    """Returns the results as a Markdown table."""
    kinds = list(Verdict().wrong)
    seen = ["reads", "writes", "unknown", "503", "with `Age`", *Work._fields, "slowest", "healed in"]
    heads = ["fault", "times", *seen, *kinds]
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1)]
    for name, result in results.items():
        verdict = result.verdict
        counts = [result.times, verdict.reads, verdict.writes, verdict.unknown, verdict.refused, verdict.stale]
        counts += map(int, result.work)
        lines.append(
            [
                name,
                *(f"{count:,}" for count in counts),
                f"{result.slowest_s:.2f} s",
                f"{result.healed_s:.2f} s",
                *(str(len(verdict.wrong[kind])) for kind in kinds),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
