"""`python -m deploy.check`: runs every check that this machine can run, and prints a table.

The exit status is 1 if a check failed. A check that this machine cannot run is not a failure; the table has the
reason.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence

from deploy.check import Check, Failed, NotExercised, aws, compose, failover, kubernetes, machine, suites

CHECKS = (
    *compose.CHECKS,
    *suites.PROXIES,
    *suites.STORES,
    *kubernetes.CHECKS,
    *machine.CHECKS,
    *aws.CHECKS,
    *failover.CHECKS,
)
"""In the order of docs/deploy.md, docs/aws.md and docs/reliability.md."""


def main(arguments: Sequence[str], checks: Iterable[Check] = CHECKS) -> int:
    """Runs the checks whose name contains one of the `--only` words, or all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="deploy.check", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="checks with this in their name"
    )
    words = parser.parse_args(arguments).only
    chosen = [check for check in checks if not words or any(word.lower() in check.name.lower() for word in words)]
    if not chosen:
        print(f"no check has {' or '.join(words)} in its name", file=sys.stderr)
        return 2
    width = max(len(check.name) for check in chosen)
    counts = {"passed": 0, "FAILED": 0, "not exercised": 0}
    for check in chosen:
        outcome, remark = _outcome(check)
        counts[outcome] += 1
        first, *rest = (remark or "").splitlines() or [""]
        print(f"{check.name:{width}}  {outcome:13}  {first}".rstrip(), flush=True)
        for line in rest:
            print(f"{'':{width}}  {'':13}  {line}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["FAILED"] else 0


def _outcome(check: Check) -> tuple[str, str | None]:
    started = time.monotonic()
    try:
        remark = check.run()
    except Failed as error:
        return "FAILED", str(error)
    except NotExercised as error:
        return "not exercised", str(error)
    return "passed", remark or f"{time.monotonic() - started:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
