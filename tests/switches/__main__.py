"""Switches mechanisms off, one at a time, in a copy of the source, and runs the tests that must notice.

    python -m tests.switches [WORD …]     those whose name has one of the words; all without any

First the tests have to be green on a copy in which nothing is switched off. Exit status 1 if any stays green
without what it guards, or fails otherwise than it is said to.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.switches.table import DOCUMENTATION, ROOT, SOURCE, SWITCHES, Switch, rendered

LONGEST_S = 180


@dataclass(frozen=True)
class Outcome:
    """How one test ended: `raised` has the exceptions of its failures, `broken` what went wrong around it."""

    ran: bool
    raised: frozenset[str]
    broken: bool = False

    def verdict(self, by: str) -> str:
        if not self.ran or self.broken:
            return "broken"
        if not self.raised:
            return "green"
        return "red" if self.raised <= set(by.split(", ")) else f"crashed: {', '.join(sorted(self.raised))}"


@contextmanager
def copied(switch: Switch | None) -> Iterator[Path]:
    """A folder for `PYTHONPATH`, with the source and what is switched off in it."""
    with tempfile.TemporaryDirectory(prefix="switched-off-") as folder:
        copy = Path(folder, SOURCE.name)
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if switch is not None:
            switch.apply(copy)
        yield Path(folder)


def run(tests: Iterable[str], source: Path, options: Iterable[str]) -> tuple[dict[str, Outcome], str]:
    """Run the tests against that source; how each ended, and all that pytest said."""
    tests = list(tests)
    outcomes = source / "outcomes"
    outcomes.touch()
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "COLUMNS": "110",
    }
    command = [sys.executable, "-m", "pytest", "-p", "tests.switches.recorder", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, f"--outcomes={outcomes}", "--tb=short", *options, *tests],
            cwd=ROOT,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S * len(tests),
        )
        said = done.stdout
    except subprocess.TimeoutExpired as hung:
        said = f"not done within {hung.timeout} s\n"
    found = defaultdict(list)
    for line in outcomes.read_text().splitlines():
        outcome = json.loads(line)
        found[outcome["test"]].append(outcome)
    return {test: _of(test, found) for test in tests}, said


def _of(test: str, found: dict[str, list[dict[str, Any]]]) -> Outcome:
    """Of a test, or of all its parameters together."""
    mine = [
        each
        for name, outcomes in found.items()
        if name == test or name.startswith(f"{test}[")
        for each in outcomes
    ]
    raised = frozenset(
        name for each in mine if each["when"] == "call" and each["outcome"] == "failed" for name in each["raised"]
    )
    # What fails leaves behind what its teardown may trip over.
    broken = any(each["when"] == "setup" or (each["when"] == "teardown" and not raised) for each in mine)
    return Outcome(any(each["outcome"] != "skipped" for each in mine), raised, broken)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.switches", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mechanisms whose name has one of these")
    parser.add_argument("--postgres-bin", help="folder of another PostgreSQL's programs")
    parser.add_argument("--redis-binary", help="another Redis's or Valkey's server program")
    parser.add_argument("--write-docs", action="store_true", help="only write the table into the documentation")
    asked = parser.parse_args()
    if asked.write_docs:
        text = DOCUMENTATION.read_text("utf-8").partition("\n| ")[0]
        DOCUMENTATION.write_text(f"{text}\n{rendered(SWITCHES)}", "utf-8")
        return 0
    servers = [
        f"--{name.replace('_', '-')}={value}"
        for name in ("postgres_bin", "redis_binary")
        if (value := getattr(asked, name))
    ]
    chosen = [s for s in SWITCHES if not asked.words or any(word in s.mechanism for word in asked.words)]
    if not chosen:
        parser.error("no mechanism is called so")

    console = Console(width=None if sys.stdout.isatty() else 160)
    started = time.monotonic()
    tests = dict.fromkeys(test for switch in chosen for test in (switch.works, *switch.tests))
    with copied(None) as source:
        outcomes, said = run(tests, source, servers)
    wrong = {test: outcome.verdict("") for test, outcome in outcomes.items() if outcome.verdict("") != "green"}
    if wrong:
        console.print(said, markup=False, highlight=False)
        console.print(f"not green with nothing switched off: {wrong}", markup=False)
        return 1
    console.print(f"{len(tests)} tests are green with nothing switched off, {time.monotonic() - started:.0f} s")

    shown = Table("mechanism", "file", "test", "", "s")
    failed = 0
    for switch in chosen:
        begun = time.monotonic()
        with copied(switch) as source:
            outcomes, said = run([switch.works, *switch.tests], source, servers)
        seconds = time.monotonic() - begun
        works = outcomes.pop(switch.works).verdict("")
        verdicts = {test: outcome.verdict(switch.by) for test, outcome in outcomes.items()}
        fine = works == "green" and set(verdicts.values()) == {"red"}
        if not fine:
            failed += 1
            console.print(said, markup=False, highlight=False)
            if works != "green":
                console.print(f"{switch.mechanism}: more is broken than was to be", markup=False)
        console.print(f"{'red' if fine else 'NOT AS IT SHOULD BE'}: {switch.mechanism}", markup=False)
        for test, verdict in verdicts.items():
            files = ", ".join(dict.fromkeys(edit.file for edit in switch.edits))
            shown.add_row(switch.mechanism, files, test.partition("::")[2], verdict, f"{seconds:.1f}")
    console.print(shown)
    console.print(
        f"{len(chosen) - failed} of {len(chosen)} switches were noticed, {time.monotonic() - started:.0f} s in all"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
