"""Applies mutants, one at a time, to a copy of the source, and runs the tests that must fail.

    python -m tests.mutants [WORD …]     the mutants whose name has one of the words; without words, all
    python -m tests.mutants --list       only lists them

First, all these tests must pass on an unchanged copy. The exit status is 1 unless each fails with its mutant.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.mutants.mutant import ROOT, BadPatch, Mutant, copy_of_source, mutants

TIMEOUT_S = 180
"""For one test. A mutant may make it hang."""

WORKS = "tests/cache/test_visibility.py::test_the_service_works"
"""This test must pass with every mutant: a patch removes one guarantee, not the service."""


@dataclass(frozen=True)
class Outcome:
    """How one test ended, all its parameters together."""

    ran: bool
    raised: frozenset[str] = frozenset()
    """The exceptions of its failures."""
    broken: bool = False
    """A fixture failed, other than after a failure of the test itself."""

    @classmethod
    def of(cls, test: str, lines: Sequence[dict[str, Any]]) -> "Outcome":
        """The outcome of `test` from the recorder's lines."""
        own = [line for line in lines if line["test"] == test or line["test"].startswith(f"{test}[")]
        failures = [line for line in own if line["when"] == "call" and line["outcome"] == "failed"]
        raised = frozenset(name for line in failures for name in line["raised"])
        return cls(
            ran=any(line["outcome"] != "skipped" for line in own),
            raised=raised,
            broken=any(line["when"] == "setup" or (line["when"] == "teardown" and not raised) for line in own),
        )

    def verdict(self, expected: frozenset[str] = frozenset()) -> str:
        """`passed`, `failed` with an expected exception, `crashed` with another, or `broken`."""
        if not self.ran or self.broken:
            return "broken"
        if not self.raised:
            return "passed"
        return "failed" if self.raised <= expected else f"crashed: {', '.join(sorted(self.raised))}"


def run(tests: Iterable[str], root: Path, options: Iterable[str]) -> tuple[dict[str, Outcome], str]:
    """Run the tests against the source below `root`; return the outcome of each, and pytest's output."""
    tests = list(tests)
    outcomes = root / "outcomes"
    outcomes.touch()
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutants.recorder", "-p", "no:cacheprovider"]
    try:
        output = subprocess.run(
            [*command, f"--outcomes={outcomes}", "--tb=short", *options, *tests],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(root / "src"), "COLUMNS": "110"},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S * len(tests),
        ).stdout
    except subprocess.TimeoutExpired as hung:
        output = f"not done within {hung.timeout} s\n"
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    return {test: Outcome.of(test, lines) for test in tests}, output


def check(mutant: Mutant, options: Sequence[str]) -> tuple[dict[str, str], str]:
    """Run the tests of a mutant; return the verdict of each, and pytest's output unless all are as they should be.

    Raises BadPatch.
    """
    with copy_of_source() as root:
        mutant.apply(root)
        outcomes, output = run([WORKS, *mutant.tests], root, options)
    if (works := outcomes.pop(WORKS).verdict()) != "passed":
        return dict.fromkeys(mutant.tests, "broken"), f"{output}\n{WORKS}: {works}"
    verdicts = {test: outcome.verdict(mutant.raises) for test, outcome in outcomes.items()}
    return verdicts, "" if set(verdicts.values()) == {"failed"} else output


def listed(chosen: Sequence[Mutant]) -> Table:
    table = Table("mutant", "what goes wrong without it", "failing tests")
    for mutant in chosen:
        table.add_row(mutant.name, mutant.without, "\n".join(mutant.tests))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose name has one of these")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--postgres-bin", help="folder with the programs of another PostgreSQL")
    parser.add_argument("--redis-binary", help="server program of another Redis or Valkey")
    asked = parser.parse_args()
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name in ("postgres_bin", "redis_binary")
        if (value := getattr(asked, name))
    ]
    chosen = [each for each in mutants() if not asked.words or any(word in each.name for word in asked.words)]
    if not chosen:
        parser.error("no mutant has such a name")

    console = Console(width=None if sys.stdout.isatty() else 160)
    if asked.list:
        console.print(listed(chosen))
        return 0
    started = time.monotonic()
    # Sorted, so that the fixtures of a module are set up once.
    tests = sorted({test for mutant in chosen for test in (WORKS, *mutant.tests)})
    with copy_of_source() as root:
        outcomes, output = run(tests, root, options)
    wrong = {test: verdict for test, each in outcomes.items() if (verdict := each.verdict()) != "passed"}
    if wrong:
        console.print(output, markup=False, highlight=False)
        console.print(f"without a mutant, these do not pass: {wrong}", markup=False)
        return 1
    console.print(f"{len(tests)} tests pass without a mutant, {time.monotonic() - started:.0f} s")

    table = Table("mutant", "test", "", "s")
    survived = 0
    for mutant in chosen:
        begun = time.monotonic()
        try:
            verdicts, output = check(mutant, options)
        except BadPatch as error:
            verdicts, output = dict.fromkeys(mutant.tests, "not run"), str(error)
        survived += bool(output)
        if output:
            console.print(output, markup=False, highlight=False)
        console.print(f"{'NOT AS EXPECTED' if output else 'failed'}: {mutant.name}", markup=False)
        for test, verdict in verdicts.items():
            table.add_row(mutant.name, test.partition("::")[2], verdict, f"{time.monotonic() - begun:.1f}")
    console.print(table)
    console.print(
        f"{len(chosen) - survived} of {len(chosen)} mutants made their tests fail,"
        f" {time.monotonic() - started:.0f} s in all"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
