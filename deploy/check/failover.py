"""Failovers of PostgreSQL under load, which docs/reliability.md shows the times of."""

import sys

from deploy.check import Check, execute

_ROUNDS = 4
"""One of each way to fail over."""
_ROUNDS_S = 600


def _failover() -> str:
    said = execute(sys.executable, "-m", "tests.faults.failover", "--rounds", str(_ROUNDS), timeout_s=_ROUNDS_S)
    # Before them are the migration's lines.
    *rounds, sums = said.splitlines()[-_ROUNDS - 1 :]
    return "\n".join([sums, *rounds])


CHECKS = (Check("Failover of PostgreSQL under load", _failover),)
