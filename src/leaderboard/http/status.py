"""What `/` and `/readyz` report about this process."""

from typing import Protocol

import msgspec


class Status(msgspec.Struct, frozen=True):
    """The state of this process and of the stores it uses."""

    service: str
    version: str
    status: str
    postgres: str
    redis: str
    writes: str

    @property
    def is_ready(self) -> bool:
        """Whether this process should get requests."""
        return self.status not in {"unavailable", "stopping"}


class Health(Protocol):
    """What is known about PostgreSQL and Redis; None means not known yet."""

    postgres_up: bool | None
    redis_up: bool | None

    @property
    def writable(self) -> bool: ...

    @property
    def unwritable_s(self) -> float: ...


class ServiceStatus:
    """Derives the status of this process from the health of its stores."""

    def __init__(self, health: Health, version: str, *, stale_reads: bool, ready_without_writes_s: float) -> None:
        """`ready_without_writes_s` is how long it stays ready without writes, in seconds; 0 is without limit."""
        self.version = version
        self.stopping = False
        self._health = health
        self._stale_reads = stale_reads
        self._ready_without_writes_s = ready_without_writes_s

    def report(self) -> Status:
        """Returns the status as of now."""
        health = self._health
        words = {True: "up", False: "down", None: "unknown"}
        writes = "unknown" if health.postgres_up is None else "accepted" if health.writable else "refused"
        return Status(
            service="leaderboard",
            version=self.version,
            status=self._word(),
            postgres=words[health.postgres_up],
            redis=words[health.redis_up],
            writes=writes,
        )

    def _word(self) -> str:
        health = self._health
        if self.stopping:
            return "stopping"
        if health.postgres_up and health.redis_up and health.writable:
            return "ok"
        if 0 < self._ready_without_writes_s <= health.unwritable_s:
            return "unavailable"
        stale_reads_work = health.postgres_up is False and health.redis_up and self._stale_reads
        return "degraded" if health.postgres_up or stale_reads_work else "unavailable"
