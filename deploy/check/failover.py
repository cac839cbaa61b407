"""Failovers of PostgreSQL and of Redis under load; docs/reliability.md and docs/deploy.md show their times."""

import sys

from deploy.check import Check, execute

_ROUNDS = 4
"""One of each way to fail over."""
_ROUNDS_S = 600


def _postgres() -> str:
    said = execute(sys.executable, "-m", "chaos.failover", "--rounds", str(_ROUNDS), timeout_s=_ROUNDS_S)
    # Before them are the migration's lines.
    *rounds, sums = said.splitlines()[-_ROUNDS - 1 :]
    return "\n".join([sums, *rounds])


def _redis() -> str:
    said = execute(sys.executable, "-m", "chaos.cache_failover", timeout_s=_ROUNDS_S)
    rounds = [line for line in said.splitlines() if line.startswith(("Cluster, ", "Sentinel, "))]
    return "\n".join([f"{len(rounds)} faults, no write lost, no read old", *rounds])


CHECKS = (
    Check("Failover of PostgreSQL under load", _postgres),
    Check("Failover of Redis under load", _redis),
)
