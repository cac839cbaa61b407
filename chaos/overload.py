"""Sends many times the load that a process can serve.

It must answer as many requests as before, and refuse the others at once. Without bounds on the wait in a queue,
all would wait until their deadline, and few would be answered. The figures depend on the machine, so this is no
test.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from chaos.rig import Servers
from leaderboard import app
from leaderboard.config import Settings, load
from leaderboard.database.rank_index import DEFAULT_SEASON, WRITER_LOCK
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints
from tests.http.pressure import memory_mb
from tests.system import ApiProcess, connect, sql

NAME = "many times the load"
USERS = 40_000
FEW, MANY = 16, 300
"""Numbers of clients: as many as the process can serve, and more."""
IN_TIME_S = 1.0
LEAST_MEANWHILE, LEAST_AFTERWARDS = 0.8, 0.7
"""How many answers there must be, as a part of those to the few clients before."""
LONGEST_TO_REFUSE_S = 0.25
MOST_MB = 60


@dataclass
class Seen:
    """What clients got that ask for contexts, one after the other; after a refusal they pause."""

    api: ApiProcess
    seconds: float
    good: int = 0
    refused: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers in time per second."""
        return self.good / self.seconds

    def by(self, clients: int) -> Self:
        """Runs this many clients."""
        asyncio.run(self._all(clients))
        return self

    async def _all(self, clients: int) -> None:
        until = time.monotonic() + self.seconds
        await asyncio.gather(*(self._client(number, until) for number in range(clients)))

    async def _client(self, number: int, until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.api.settings.port)
        while time.monotonic() < until:
            number = (number * 7919 + 13) % USERS
            started = time.monotonic()
            writer.write(b"GET /leaderboard/user/%d/context HTTP/1.1\r\nHost: x\r\n\r\n" % (number + 1))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            body = await reader.readexactly(length)
            took_s = time.monotonic() - started
            if head.startswith(b"HTTP/1.1 200 "):
                self.good += took_s <= IN_TIME_S
            elif head.startswith(b"HTTP/1.1 503 ") and json.loads(body)["code"] == "overloaded":
                self.refused.append(took_s)
                await asyncio.sleep(0.3)
            else:
                self.others.append(head.decode())
        writer.close()


class Overload(NamedTuple):
    """What was seen before, during and after the overload."""

    before: Seen
    meanwhile: Seen
    afterwards: Seen
    grown_mb: float

    @property
    def missed(self) -> list[str]:
        """The conditions that did not hold."""
        before, meanwhile, afterwards, grown_mb = self
        wanted = {
            "no request is refused before": not before.refused,
            "requests are refused meanwhile": bool(meanwhile.refused),
            "no request is refused afterwards": not afterwards.refused,
            "there are no other answers": not (before.others + meanwhile.others + afterwards.others),
            f"{LEAST_MEANWHILE:.0%} of the answers come meanwhile": meanwhile.rate
            >= LEAST_MEANWHILE * before.rate,
            f"{LEAST_AFTERWARDS:.0%} of the answers come afterwards": afterwards.rate
            >= LEAST_AFTERWARDS * before.rate,
            f"a refusal takes at most {LONGEST_TO_REFUSE_S} s": self._refusal_s <= LONGEST_TO_REFUSE_S,
            f"the process grows by at most {MOST_MB} MB": grown_mb <= MOST_MB,
        }
        return [what for what, is_so in wanted.items() if not is_so]

    @property
    def _refusal_s(self) -> float:
        return statistics.median(self.meanwhile.refused or [0.0])

    def __str__(self) -> str:
        before, meanwhile, afterwards, grown_mb = self
        return (
            f"{NAME}: {before.rate:,.0f} answers a second to {FEW} clients; {meanwhile.rate:,.0f} to {MANY}, and"
            f" {len(meanwhile.refused) / meanwhile.seconds:,.0f} refusals, at the median after"
            f" {1000 * self._refusal_s:.0f} ms; {afterwards.rate:,.0f} to {FEW} afterwards; {grown_mb:.0f} MB more"
            + "".join(f"\n  NOT TRUE: {missed}" for missed in self.missed)
        )


def measure(folder: Path, servers: Servers) -> Overload:
    """Measures it, on separate servers."""
    with (
        EmbeddedPostgres(folder / "overload", bin_dir=servers.postgres_bin) as postgres,
        EmbeddedValkey(folder / "overload", binary=servers.redis_binary) as valkey,
    ):
        postgres.create_database("leaderboard")
        settings = load(None, **vars(Endpoints.of(postgres, valkey)), cache_size=10, log_level="error")
        asyncio.run(app.database_from(settings).migrate(lambda _line: None))
        sql(
            settings,
            "INSERT INTO users (user_name, total_score)"
            " SELECT 'u' || i, -i / 2 FROM generate_series(1, $1::int) AS i",
            USERS,
        )
        # Then each context counts all users above.
        with _no_rank_index(settings):
            api = ApiProcess(settings)
            try:
                api.start()
                before = Seen(api, 2.5).by(FEW)
                memory_before = memory_mb(api)
                Seen(api, 2).by(MANY)
                meanwhile = Seen(api, 5).by(MANY)
                grown_mb = memory_mb(api) - memory_before
                return Overload(before, meanwhile, Seen(api, 2.5).by(FEW), grown_mb)
            finally:
                api.kill()
                api.client.close()


@contextmanager
def _no_rank_index(settings: Settings) -> Iterator[None]:
    """Holds the lock without which the rank index cannot be built."""
    with asyncio.Runner() as runner:
        connection = runner.run(connect(settings))
        runner.run(connection.execute("SELECT pg_advisory_lock($1, $2)", WRITER_LOCK, DEFAULT_SEASON))
        yield
        runner.run(connection.close())
