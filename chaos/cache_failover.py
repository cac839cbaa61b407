"""Makes Redis fail over while clients read and write through two API processes, and reports what they saw.

`python -m chaos.cache_failover` prints a line for each set-up and fault: after how many seconds each process
acknowledged a write again, and after how many each answered from Redis again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import SecretStr

from chaos.clients import at_work, lost, new_clients, stores
from leaderboard.cache import keys
from leaderboard.config import Settings
from tests.deploy.redis_servers import PROGRAMS, SLOT, RedisCluster, RedisServer, Sentinels, server_program
from tests.system import ApiProcess, eventually

HALF_MOVED_S = 0.5


@dataclass
class Seen:
    """What the clients of one fault saw."""

    writes_after_s: float
    """From the fault until every process had acknowledged a write."""
    cached_after_s: float
    """From the fault until every process had answered from the server that holds the cache now."""
    refused: int
    reads: int
    lost: list[str]
    old: list[str]

    def __str__(self) -> str:
        return (
            f"writes back after {self.writes_after_s:.2f} s, cached reads after {self.cached_after_s:.2f} s;"
            f" {self.refused} writes refused, {self.reads} reads, {len(self.lost)} writes lost,"
            f" {len(self.old)} reads old"
        )


class SetUp(Protocol):
    """Several servers, one of which holds the cache."""

    def settle(self) -> None:
        """Waits until all servers have their normal roles."""

    def serving(self) -> RedisServer:
        """Returns the server that holds the cache now."""


T = TypeVar("T", bound=SetUp)


@dataclass(frozen=True)
class Fault(Generic[T]):
    """A fault of the server that holds the cache.

    `start` causes it. If another server takes over, `repair` then brings the old one back.
    """

    name: str
    start: Callable[[T, RedisServer], None]
    repair: Callable[[T, RedisServer], None] | None = None


def watch(apis: Sequence[ApiProcess], settings: Settings, setup: T, fault: Fault[T]) -> Seen:
    """Runs clients, causes the fault, and waits until every process reads from Redis again."""
    setup.settle()
    clients = new_clients(apis)
    with at_work(clients):
        eventually(lambda: all(from_cache(api) > 5 for api in apis), what="every process reads from Redis")
        old = setup.serving()
        began = time.monotonic()
        fault.start(setup, old)
        if fault.repair is not None:
            eventually(lambda: setup.serving() is not old, what="another server has taken over")
            fault.repair(setup, old)
        eventually(lambda: has_valid_cache(setup.serving()), what="there is a cache")
        before = [from_cache(api) for api in apis]
        eventually(
            lambda: all(from_cache(api) > least for api, least in zip(apis, before, strict=True)),
            what="every process reads from Redis again",
        )
        cached = time.monotonic()
        # Time for a process that has not noticed the failover to show an old score.
        later = time.monotonic() + 2
        eventually(lambda: all(client.back_at(later) for client in clients), what="writes go on")
    return Seen(
        writes_after_s=max((client.back_at(began) or 0) - began for client in clients),
        cached_after_s=cached - began,
        refused=sum(client.refused for client in clients),
        reads=sum(client.reads for client in clients),
        lost=lost(clients, settings),
        old=[text for client in clients for text in client.old],
    )


def from_cache(api: ApiProcess) -> float:
    """Returns how many answers this process has given from Redis."""
    found = 'leaderboard_answers_total{source="cache"}'
    lines = api.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(found))


def has_valid_cache(server: RedisServer) -> bool:
    """Returns whether the server holds a cache that may be read."""
    return bool(server.call("HGET", keys.STATE, "valid") == b"1")


class Cluster(RedisCluster):
    """Three masters with a replica each."""

    _served: RedisServer

    def serving(self) -> RedisServer:
        """Returns the owner of the slot of the keys; while there is none, the last one."""
        if any(self._claims(SLOT)):
            self._served = self.owner()
        return self._served

    @staticmethod
    def faults() -> "list[Fault[Cluster]]":
        """Returns the faults of the master that holds the cache."""
        return [
            Fault("master killed", _kill, _start),
            Fault("master hangs", _freeze, _thaw),
            Fault("failover by hand", Cluster.hand_over, _nothing),
            Fault("slot moves", Cluster.move_half_then_all, _nothing),
            Fault("slot begins to move, and stays", Cluster.move_half_then_nothing),
        ]

    def hand_over(self, master: RedisServer) -> None:
        """Makes the replica take over from a running master."""
        self.replica_of(master).call("CLUSTER", "FAILOVER")

    def move_half_then_all(self, master: RedisServer) -> None:
        """Moves the slot, with a pause of `HALF_MOVED_S` half-way."""
        to = self._move_half(master)
        self.move_keys(to)
        self.end_move(to)

    def move_half_then_nothing(self, master: RedisServer) -> None:
        """Begins to move the slot, pauses half-way and stops. The moved keys are lost."""
        to = self._move_half(master)
        for node in (master, to):
            node.call("CLUSTER", "SETSLOT", SLOT, "STABLE")
        to.call("FLUSHALL")

    def _move_half(self, master: RedisServer) -> RedisServer:
        to = next(node for node in self.masters() if node is not master)
        self.begin_move(to)
        self.move_keys(to, keys=[keys.SCORES])
        time.sleep(HALF_MOVED_S)
        return to


class WithSentinels(Sentinels):
    """A primary and a replica, watched by three Sentinels."""

    def serving(self) -> RedisServer:
        """Returns the primary."""
        return self.primary()

    @staticmethod
    def faults() -> "list[Fault[WithSentinels]]":
        """Returns the faults of the primary, which stays one until a Sentinel makes it a replica."""
        return [
            Fault("primary killed", _kill, _start),
            Fault("primary hangs", _freeze, _thaw),
            Fault("failover by hand", WithSentinels.hand_over, _nothing),
        ]

    def hand_over(self, _primary: RedisServer) -> None:
        """Has the replica promoted while the primary runs."""
        self.sentinels[0].call("SENTINEL", "FAILOVER", self.service)


def _kill(_setup: SetUp, server: RedisServer) -> None:
    server.kill()


def _start(_setup: SetUp, server: RedisServer) -> None:
    server.start()


def _freeze(_setup: SetUp, server: RedisServer) -> None:
    server.freeze()


def _thaw(_setup: SetUp, server: RedisServer) -> None:
    server.thaw()


def _nothing(_setup: SetUp, _server: RedisServer) -> None:
    """The old server needs no repair."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos.cache_failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--program", choices=PROGRAMS, default="valkey")
    asked = parser.parse_args()
    with ExitStack() as stack:
        _, settings, folder = stack.enter_context(stores())
        program = server_program(asked.program)

        def serve(url: str) -> ApiProcess:
            api = ApiProcess(settings.model_copy(update={"redis_url": SecretStr(url)}))
            stack.callback(api.kill)
            return api.start()

        def run(name: str, setup: T, faults: Sequence[Fault[T]], url: str) -> bool:
            apis = [serve(url) for _ in range(2)]
            kept = True
            for fault in faults * asked.rounds:
                seen = watch(apis, settings, setup, fault)
                print(f"{name}, {fault.name}: {seen}", flush=True)
                for line in (*seen.lost, *seen.old):
                    print(f"    {line}")
                kept = kept and not seen.lost and not seen.old
            for api in apis:
                api.kill()
            return kept

        with Cluster(folder / "cluster", program) as cluster:
            kept = run("Cluster", cluster, Cluster.faults(), "redis://" + ",".join(cluster.seeds()[:2]))
        with WithSentinels(folder / "sentinels", program) as sentinels:
            url = f"redis+sentinel://{','.join(sentinels.seeds())}/{sentinels.service}"
            kept = run("Sentinel", sentinels, WithSentinels.faults(), url) and kept
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
