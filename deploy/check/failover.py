"""Checks of failovers of PostgreSQL and Redis under load.

Measured times are in docs/reliability.md and docs/deploy.md.
"""

import sys

from deploy.check import Check, execute

_ROUNDS = 4
"""One of each kind of failover."""
_ROUNDS_S = 600


def _postgres() -> str:
    output = execute(sys.executable, "-m", "chaos.failover", "--rounds", str(_ROUNDS), timeout_s=_ROUNDS_S)
    # The lines before them are from the migration.
    *rounds, sums = output.splitlines()[-_ROUNDS - 1 :]
    return "\n".join([sums, *rounds])


def _redis() -> str:
    output = execute(sys.executable, "-m", "chaos.cache_failover", timeout_s=_ROUNDS_S)
    rounds = [line for line in output.splitlines() if line.startswith(("Cluster, ", "Sentinel, "))]
    return "\n".join([f"{len(rounds)} faults, no write lost, no read old", *rounds])


CHECKS = (
    Check("Failover of PostgreSQL under load", _postgres),
    Check("Failover of Redis under load", _redis),
)
