"""CPU time that the service, the stores and the load generator use in a measurement."""

import resource
import time
from dataclasses import dataclass
from typing import Self

from bench import processes
from leaderboard.config import Settings
from tests.system import connect, redis


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds of API, stores, load generator and all others, within `elapsed` seconds."""

    api: float
    postgres: float
    valkey: float
    load: float
    others: float
    elapsed: float

    def since(self, before: Self) -> "Used":
        """Returns what was used since `before`."""
        return Used(
            self.api - before.api,
            self.postgres - before.postgres,
            self.valkey - before.valkey,
            self.load - before.load,
            max(0.0, self.others - before.others),
            self.elapsed - before.elapsed,
        )


@dataclass(frozen=True, slots=True)
class Meter:
    """Reads the CPU times. `postgres` and `valkey` are the process ids of the servers."""

    postgres: int
    valkey: int

    @classmethod
    async def of(cls, settings: Settings) -> Self:
        """Finds the servers of these settings, which run on this machine."""
        connection = await connect(settings)
        try:
            backend: int = await connection.fetchval("SELECT pg_backend_pid()")
            return cls(processes.parent(backend), redis(settings).info("server")["process_id"])
        finally:
            await connection.close()

    def read(self, api: int) -> Used:
        """Returns the CPU time used until now. `api` is the process id; `others` is the rest of the machine."""
        service, postgres, valkey = map(processes.cpu_s, (api, self.postgres, self.valkey))
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        load = children.ru_utime + children.ru_stime
        others = processes.busy_s() - service - postgres - valkey - load - time.process_time()
        return Used(service, postgres, valkey, load, others, time.monotonic())
