"""Makes PostgreSQL fail over while clients read and write through two API processes, and reports what they saw.

`python -m chaos.failover --rounds 10` prints for each round after how many seconds each process wrote again.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from chaos.clients import Client, at_work, lost, new_clients, stores
from chaos.nodes import Node
from chaos.proxy import LinkState, Loop, Proxy
from leaderboard.config import Settings
from leaderboard.dev import EmbeddedPostgres
from tests.system import ApiProcess, eventually

Way = Literal["standby behind the address", "old connections hang", "the way is silent", "killed"]
WAYS: tuple[Way, ...] = ("standby behind the address", "old connections hang", "the way is silent", "killed")


@dataclass
class Seen:
    """What the clients of one failover saw."""

    back_after_s: list[float]
    """For each process, from when the new primary was reachable until it acknowledged a write."""
    refused: int
    lost: list[str]
    old: list[str]


class Switch(Protocol):
    """An address that can be pointed to another server, as those of a Proxy and of PgBouncer."""

    @property
    def port(self) -> int: ...

    def move(self, target: int, *, close: bool = True) -> None: ...


class Failover:
    """A primary, two API processes that reach it through a proxy or a pooler, and their clients."""

    def __init__(
        self, seed: EmbeddedPostgres, settings: Settings, switch: Switch, apis: Sequence[ApiProcess]
    ) -> None:
        """`settings` name the database, which is on `seed`."""
        self._seed = seed
        self._settings = settings
        self._switch = switch
        self._apis = apis
        self._primary = Node.standby_of(seed, seed.port, settings)
        self._primary.promote()
        switch.move(self._primary.port)

    def run(self, way: Way, patience_s: float = 60) -> Seen:
        """Fails over once. The standby is synchronous, so no acknowledged write may be lost."""
        old = self._primary
        new = self._primary = Node.standby_of(self._seed, old.port, self._settings)
        old.wait_for_each_commit()
        clients = new_clients(self._apis)
        try:
            with at_work(clients):
                self._fail_over(way, old, new, clients)
                moved = time.monotonic()
                eventually(lambda: all(client.back_at(moved) for client in clients), patience_s, "writes are back")
        finally:
            old.remove()
        return Seen(
            back_after_s=[(client.back_at(moved) or 0) - moved for client in clients],
            refused=sum(client.refused for client in clients),
            lost=lost(clients, new.settings),
            old=[text for client in clients for text in client.old],
        )

    def _fail_over(self, way: Way, old: Node, new: Node, clients: Sequence[Client]) -> None:
        """Makes `new` take over from `old`. After this, new connections reach `new`."""
        refused = [client.refused for client in clients]

        def every_process_refuses() -> bool:
            return all(client.refused > before + 5 for client, before in zip(clients, refused, strict=True))

        if way == "standby behind the address":
            old.stop()
            old.come_back_as_standby()
            eventually(every_process_refuses, what="every process has reached the standby")
            new.promote()
            self._switch.move(new.port, close=False)
            return
        if way == "killed":
            old.stop(signal.SIGKILL)
            new.promote()
            self._switch.move(new.port)
            return
        assert isinstance(self._switch, Proxy)
        if way == "old connections hang":
            self._switch.freeze()
            old.stop(signal.SIGKILL)
            new.promote()
            self._switch.move(new.port, close=False)
        else:
            self._switch.set(LinkState.SILENT)
            eventually(every_process_refuses, what="every process has noticed")
            old.stop(signal.SIGKILL)
            new.promote()
            self._switch.freeze()
            self._switch.move(new.port, close=False)
            self._switch.set(LinkState.OPEN)

    def close(self) -> None:
        """Ends the server that is the primary now."""
        self._primary.remove()


@contextmanager
def prepared(
    seed: EmbeddedPostgres, settings: Settings, serve: Callable[..., ApiProcess], switch: Switch | None = None
) -> Iterator[Failover]:
    """Prepares a failover.

    `settings` name a migrated database of `seed`. `serve` starts a process with overrides of its settings.
    `switch` points to `seed`; without one, a Proxy is used.
    """
    with Loop() as loop:
        switch = switch or Proxy(loop, seed.port)
        apis = [serve(db_port=switch.port) for _ in range(2)]
        failover = Failover(seed, settings, switch, apis)
        try:
            yield failover
        finally:
            failover.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        postgres, settings, _ = stack.enter_context(stores())

        def serve(**overrides: object) -> ApiProcess:
            api = ApiProcess(settings.model_copy(update=overrides))
            stack.callback(api.kill)
            return api.start()

        failover = stack.enter_context(prepared(postgres, settings, serve))
        lost_writes = old_reads = 0
        for number in range(1, rounds + 1):
            way = WAYS[(number - 1) % len(WAYS)]
            seen = failover.run(way)
            lost_writes, old_reads = lost_writes + len(seen.lost), old_reads + len(seen.old)
            back = ", ".join(f"{seconds:.2f} s" for seconds in seen.back_after_s)
            print(f"{number:2}  {way}: writes back after {back}; {seen.refused} refused", flush=True)
            for line in (*seen.lost, *seen.old):
                print(f"    {line}")
        print(f"lost writes: {lost_writes}, old reads: {old_reads}")
    sys.exit(1 if lost_writes or old_reads else 0)


if __name__ == "__main__":
    main()
