"""What is done to the system, one function a fault. Each breaks something under load, and mends what needs a hand.

A fault says what the load may see meanwhile: whether calls may be refused, and whether a process was cut off
from Redis, so that answers may be old by a second. Everything else is held to the promises in full.
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import asyncpg

from chaos.history import Transaction
from chaos.proxy import Proxy, Wire
from chaos.rig import Api, Rig
from chaos.steps import STEPS
from leaderboard import app
from leaderboard.cache import keys
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey
from leaderboard.errors import CacheError
from leaderboard.observe import Metrics
from leaderboard.sync import CacheSync
from tests.system import eventually, own_ports, redis, sql


@dataclass
class Fork:
    """PostgreSQL lost the last commits: what was there until then, and what there is from then on."""

    transactions: list[Transaction]
    lost_from: float
    moved_at: float
    initial: dict[int, tuple[str, int]]
    mark: int


@dataclass
class Injection:
    """One time that a fault is injected."""

    rig: Rig
    chance: random.Random
    long: bool
    """The durations and numbers of a long run; else short ones."""
    mark: int
    """How much of the witness there was before."""
    times: int = 1
    fork: Fork | None = None

    def seconds(self, long: float, short: float) -> float:
        return long if self.long else short

    def number(self, long: int, short: int) -> int:
        return long if self.long else short

    def last(self, seconds: float) -> None:
        """Leave things as they are for so long: this is what the fault consists of."""
        time.sleep(seconds)

    @property
    def api(self) -> Api:
        return self.chance.choice(self.rig.apis)


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    inject: Callable[[Injection], None]
    refusals: bool = False
    """Calls may be refused with 503 while it lasts: PostgreSQL is concerned."""
    cut_off: bool = False
    """A process cannot reach Redis while another can."""
    shown_within_s: float = field(default=2.0)
    """By when the cache has to be in use and equal to PostgreSQL, after the fault has ended."""


# API processes


def kill_at_random(injection: Injection) -> None:
    injection.times = injection.number(40, 3)
    for number in range(injection.times):
        api = injection.rig.apis[number % len(injection.rig.apis)]
        injection.last(injection.chance.uniform(0.0, 0.4))
        _kill(injection.rig, api)


def kill_at_each_step(injection: Injection) -> None:
    rounds = injection.number(13, 1)
    rig, killed = injection.rig, 0
    for _ in range(rounds):
        for step in injection.chance.sample(STEPS, len(STEPS)):
            api = rig.apis[killed % len(rig.apis)]
            eventually(lambda api=api: api.status() == "ok", what=f"{api.name} is ready")  # type: ignore[misc]
            api.steps.arm(step, api.kill)
            eventually(lambda api=api: not api.steps.armed, what=f"{api.name} is at the step: {step}")  # type: ignore[misc]
            _kill(rig, api)
            killed += 1
    injection.times = killed


def _kill(rig: Rig, api: Api) -> None:
    """Kill it, if it is not dead yet, and start it again."""
    api.end()
    api.start()
    # The others go on; at least one of them is there.
    others = [other for other in rig.apis if other is not api]
    eventually(lambda: any(other.status() == "ok" for other in others), what="another process is ready")


# Redis


def flush(injection: Injection) -> None:
    injection.times = injection.number(50, 5)
    for _ in range(injection.times):
        redis(injection.rig.settings).flushall()
        injection.last(injection.chance.uniform(0.0, 0.2))


def delete_key(injection: Injection, key: str) -> None:
    injection.times = injection.number(30, 3)
    for _ in range(injection.times):
        redis(injection.rig.settings).delete(key)
        injection.last(injection.chance.uniform(0.0, 0.2))


def remove_member(injection: Injection) -> None:
    injection.times = injection.number(40, 4)
    with redis(injection.rig.settings) as by_hand:
        for number in range(injection.times):
            members = by_hand.zrange(keys.SCORES, 0, -1)
            if members:
                member = injection.chance.choice(members)
                if number % 2:
                    by_hand.hdel(keys.METADATA, member)
                else:
                    by_hand.zrem(keys.SCORES, member)
            injection.last(injection.chance.uniform(0.0, 0.2))


def full(injection: Injection) -> None:
    with redis(injection.rig.settings) as by_hand:
        by_hand.config_set("maxmemory", 1)
        injection.last(injection.seconds(5, 1))
        by_hand.config_set("maxmemory", 0)


def restart_redis_empty(injection: Injection) -> None:
    injection.times = injection.number(5, 1)
    for _ in range(injection.times):
        injection.rig.valkey.kill()
        injection.rig.valkey.start()
        injection.last(injection.chance.uniform(0.3, 1.0))


def stop_redis(injection: Injection) -> None:
    pid = injection.rig.valkey.pid
    assert pid is not None
    for seconds in (0.1, 0.3, 0.6, injection.seconds(10, 1.5)):
        os.kill(pid, signal.SIGSTOP)
        injection.last(seconds)
        os.kill(pid, signal.SIGCONT)
        injection.last(0.3)
    injection.times = 4


def redis_down(injection: Injection) -> None:
    injection.rig.valkey.kill()
    injection.last(injection.seconds(30, 2))
    injection.rig.valkey.start()


def redis_replica_behind(injection: Injection) -> None:
    """A replica that has not heard of its primary for a while takes its place."""
    rig = injection.rig
    behind = EmbeddedValkey(rig.new_folder(), binary=rig.servers.redis_binary, ports=own_ports())
    behind.folder.mkdir(parents=True)
    (behind.folder / "password").write_text(rig.valkey.password)
    with redis(rig.settings) as primary, Wires(rig) as wires:
        link = wires.new(rig.valkey.port)
        # It would wait for 5 s for others who want to follow.
        primary.config_set("repl-diskless-sync-delay", 0)
        behind.start()
        replica = redis(rig.settings.model_copy(update={"redis_url": type(rig.settings.redis_url)(behind.url)}))
        replica.config_set("masterauth", rig.valkey.password)
        replica.replicaof("127.0.0.1", link.port)
        eventually(lambda: replica.info("replication")["master_link_status"] == "up", what="the replica follows")
        eventually(lambda: replica.exists(keys.STATE), what="the replica holds the cache")
        link.set(Wire.SILENT)
        injection.last(injection.seconds(10, 1.5))
        old = rig.valkey
        old.kill()
        replica.replicaof("NO", "ONE")
        rig.lead_cache_to(behind)
        primary.close()
        replica.close()
        old.remove()


def redis_from_old_dump(injection: Injection) -> None:
    rig = injection.rig
    with redis(rig.settings) as by_hand:
        by_hand.save()
    injection.last(injection.seconds(5, 1))
    rig.valkey.kill()
    rig.valkey.start()
    (rig.valkey.folder / "dump.rdb").unlink()


def cut_off_from_redis(injection: Injection, wire: Wire) -> None:
    injection.times = injection.number(4, 1)
    for _ in range(injection.times):
        api = injection.api
        api.to_cache.set(wire)
        injection.last(injection.seconds(3, 1.5))
        api.to_cache.set(Wire.WHOLE)
        injection.last(0.5)


def rebuilds(injection: Injection) -> None:
    """One after the other, in a process that does nothing else."""
    injection.times = injection.number(1000, 60)

    async def work() -> None:
        truth, cache = app.database_from(injection.rig.settings), app.cache_from(injection.rig.settings)
        await truth.open()
        sync = CacheSync(truth, cache, Metrics(), 0.3)
        done = 0
        while done < injection.times:
            try:
                done += await sync.rebuild("asked for")
            except CacheError:
                await asyncio.sleep(0.01)
        await sync.close()
        await cache.close()
        await truth.close()

    asyncio.run(work())


# PostgreSQL


def kill_postgres(injection: Injection) -> None:
    injection.times = injection.number(5, 1)
    for _ in range(injection.times):
        injection.rig.postgres.kill()
        injection.last(injection.chance.uniform(0.0, 1.0))
        injection.rig.postgres.start()
        injection.last(1.0)


def restart_postgres(injection: Injection) -> None:
    injection.rig.postgres.stop()
    injection.last(injection.seconds(3, 1))
    injection.rig.postgres.start()


def crash_of_a_backend(injection: Injection) -> None:
    """PostgreSQL ends all others and recovers; transaction ids may be used again."""
    injection.times = injection.number(5, 1)
    for _ in range(injection.times):
        pids = eventually(lambda: _backends(injection.rig), what="a process has a backend")
        os.kill(injection.chance.choice(pids), signal.SIGKILL)
        injection.last(injection.chance.uniform(0.5, 1.5))


def _backends(rig: Rig) -> list[int]:
    """The processes' backends; none while PostgreSQL recovers."""
    with suppress(OSError, asyncpg.PostgresError):
        rows = rig.query(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = 'leaderboard' AND datname = current_database()"
        )
        return [row[0] for row in rows]
    return []


def open_transaction(injection: Injection) -> None:
    """It has changed users, and nobody sees that until it ends; meanwhile others commit.

    Users of its own: who wants a row that it holds is refused in time, which is another matter.
    """
    injection.rig.by_hand("INSERT INTO users (user_name, total_score) VALUES ('an early one', 600000)")
    with injection.rig.open_transaction() as held:
        held.run(
            "INSERT INTO users (user_name, total_score) VALUES ('a late one', 600001)",
            "UPDATE users SET total_score = 600002 WHERE user_name = 'an early one'",
        )
        injection.last(injection.seconds(20, 2))
        held.commit()
    injection.last(1.2)


def out_of_band(injection: Injection) -> None:
    rig, chance = injection.rig, injection.chance
    injection.times = injection.number(20, 3)
    for number in range(injection.times):
        base = 700_000 + 10_000 * number
        match number % 4:
            case 0:
                rig.by_hand(f"UPDATE users SET total_score = {base} + user_id WHERE user_id % 7 = {number % 7}")
            case 1:
                rig.by_hand(f"DELETE FROM users WHERE user_id = {chance.randint(20, 60)}")
            case 2:
                rig.by_hand(f"UPDATE users SET total_score = {-base} - user_id WHERE total_score > 0")
            case _:
                rig.by_hand(
                    f"INSERT INTO users (user_name, total_score) SELECT 'hand {number} ' || n, {base} + n"
                    " FROM generate_series(1, 5) AS n"
                )
        injection.last(chance.uniform(0.1, 0.5))


def truncate(injection: Injection) -> None:
    rig = injection.rig
    injection.times = injection.number(3, 1)
    for number in range(injection.times):
        rig.by_hand("TRUNCATE users")
        injection.last(injection.chance.uniform(0.2, 0.6))
        rig.by_hand(
            "INSERT INTO users (user_id, user_name, total_score)"
            f" SELECT n, 'user ' || n, {800_000 + 1000 * number} + n FROM generate_series(1, 60) AS n"
        )
        injection.last(0.5)


def too_much_to_be_listed(injection: Injection) -> None:
    """What a statement over more than 20,000 rows leaves behind: all users changed, and only a barrier in the log.

    They are all tied then, so that the order of the board is that of the ids.
    """
    injection.times = injection.number(10, 2)
    for number in range(injection.times):
        injection.rig.by_hand(
            f"UPDATE users SET total_score = {850_000 + number}",
            "DELETE FROM user_changes WHERE xid = pg_current_xact_id()",
            "INSERT INTO user_changes (user_id) VALUES (NULL)",
        )
        injection.last(injection.chance.uniform(0.5, 1.2))


def delete_the_rank_index(injection: Injection) -> None:
    injection.times = injection.number(30, 3)
    for _ in range(injection.times):
        injection.rig.query("DELETE FROM rank_index")
        injection.last(injection.chance.uniform(0.0, 0.5))


def put_back_an_old_rank_index(injection: Injection) -> None:
    """As good as ever, since its snapshot comes with it; every second time as if out of a dump, and then void."""
    rig = injection.rig
    injection.times = injection.number(20, 4)
    for number in range(injection.times):
        copies = rig.query("SELECT snapshot::text, fences, counts, total FROM rank_index")
        injection.last(injection.chance.uniform(0.3, 1.0))
        for copy in copies:
            written_by = "pg_current_xact_id()" if number % 2 == 0 else "written_by"
            rig.query(
                f"UPDATE rank_index SET written_by = {written_by}, snapshot = $1::text::pg_snapshot,"
                " fences = $2, counts = $3, total = $4",
                *copy,
            )
        injection.last(injection.chance.uniform(0.1, 0.5))


def pool_exhausted(injection: Injection) -> None:
    """All connections of the processes wait for a lock, and no other can be had."""
    rig = injection.rig
    with rig.open_transaction() as held:
        held.run("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        injection.last(injection.seconds(4, 2))
        held.run("ROLLBACK")


def no_connections_left(injection: Injection) -> None:
    """The sessions of the processes are ended, and PostgreSQL gives them no others."""
    rig = injection.rig
    others = rig.settings.model_copy(update={"db_name": "postgres"})
    sql(others, "ALTER DATABASE leaderboard WITH ALLOW_CONNECTIONS false")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'leaderboard'"
    sql(others, end)
    injection.last(injection.seconds(3, 1))
    sql(others, "ALTER DATABASE leaderboard WITH ALLOW_CONNECTIONS true")


def promoted_synchronous_standby(injection: Injection) -> None:
    rig = injection.rig
    with Wires(rig) as wires:
        link = wires.new(rig.postgres.port)
        standby = _standby(rig, link.port)
        rig.query("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        rig.query("SELECT pg_reload_conf()")
        eventually(lambda: _replicates(rig, "sync"), what="the standby is synchronous")
        injection.last(injection.seconds(3, 1))
        old = rig.postgres
        rig.to_postgres(Wire.CUT)
        old.kill()
        _promote(rig, standby)
        rig.to_postgres(Wire.WHOLE)
        old.remove()
        injection.last(injection.seconds(2, 1))


def promoted_standby_that_is_behind(injection: Injection) -> None:
    """It lacks the last commits, acknowledged ones as well. What PostgreSQL has lost is gone."""
    rig = injection.rig
    with Wires(rig) as wires:
        link = wires.new(rig.postgres.port)
        standby = _standby(rig, link.port)
        eventually(lambda: _replicates(rig, "async"), what="the standby follows")
        injection.last(injection.seconds(2, 0.5))
        link.set(Wire.SILENT)
        injection.last(injection.seconds(3, 1))
        rig.to_postgres(Wire.CUT)
        lost_from = time.monotonic()
        transactions = rig.transactions(injection.mark)
        old = rig.postgres
        old.kill()
        _promote(rig, standby)
        initial, mark = rig.state()
        moved_at = time.monotonic()
        rig.to_postgres(Wire.WHOLE)
        old.remove()
        injection.fork = Fork(transactions, lost_from, moved_at, initial, mark)
        injection.last(injection.seconds(3, 1.5))


def _standby(rig: Rig, port: int) -> EmbeddedPostgres:
    """A started standby of the present primary, which it reaches by that port."""
    folder = rig.new_folder()
    standby = EmbeddedPostgres(folder, bin_dir=rig.servers.postgres_bin, durable=rig.durable, ports=own_ports())
    standby.folder.mkdir(parents=True)
    cluster = standby.folder / "cluster"
    primary = rig.postgres
    conninfo = (
        f"host=127.0.0.1 port={port} user={primary.user} password={primary.password} application_name=standby"
    )
    program = str(primary.programs / "pg_basebackup")
    subprocess.run([program, "-d", conninfo, "-D", str(cluster), "-R", "-c", "fast", "--no-sync"], check=True)
    shutil.copy(primary.home / "password", standby.folder / "password")
    owner = primary.cluster.stat()
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    for name in ("postmaster.pid", "postmaster.opts"):
        Path(cluster, name).unlink(missing_ok=True)
    return standby.start()


def _replicates(rig: Rig, how: str) -> bool:
    rows = rig.query("SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1", how)
    return len(rows) == 1


def _promote(rig: Rig, standby: EmbeddedPostgres) -> None:
    rig.lead_to(standby)
    rig.query("SELECT pg_promote()")
    rig.query("ALTER SYSTEM RESET synchronous_standby_names")
    rig.query("SELECT pg_reload_conf()")


class Wires:
    """Wires that exist for the time of a fault."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._made: list[Proxy] = []

    def new(self, target: int) -> Proxy:
        self._made.append(Proxy(self._rig.loop, target))
        return self._made[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self._made:
            wire.set(Wire.CUT)


FAULTS = (
    Fault("an API process is killed at a random moment", kill_at_random),
    Fault("an API process is killed at each step of a write", kill_at_each_step),
    Fault("PostgreSQL is killed", kill_postgres, refusals=True),
    Fault("Redis: FLUSHALL", flush),
    *(
        Fault(f"Redis: DEL {key}", lambda injection, key=key: delete_key(injection, key))  # type: ignore[misc]
        for key in (keys.SCORES, keys.METADATA, keys.STATE)
    ),
    Fault("Redis: one member removed by hand", remove_member),
    Fault("Redis: maxmemory reached", full),
    Fault("Redis: restarted empty", restart_redis_empty),
    Fault("Redis: SIGSTOP, up to 10 s", stop_redis),
    Fault("Redis: down for 30 s", redis_down),
    Fault("Redis: replaced by a replica 10 s behind", redis_replica_behind),
    Fault("Redis: started from an old dump", redis_from_old_dump),
    Fault("PostgreSQL: restarted", restart_postgres, refusals=True),
    Fault("PostgreSQL: a transaction open for 20 s", open_transaction),
    Fault("PostgreSQL: a backend crashes", crash_of_a_backend, refusals=True),
    Fault("PostgreSQL: a synchronous standby promoted", promoted_synchronous_standby, refusals=True),
    Fault("PostgreSQL: a standby promoted that lacks commits", promoted_standby_that_is_behind, refusals=True),
    Fault("psql: UPDATE, DELETE, INSERT", out_of_band),
    Fault("psql: TRUNCATE", truncate),
    Fault("psql: more than the log lists", too_much_to_be_listed),
    Fault("psql: DELETE FROM rank_index", delete_the_rank_index),
    Fault("psql: an old copy of the rank index put back", put_back_an_old_rank_index),
    Fault(
        "one process cut off from Redis: silence",
        lambda injection: cut_off_from_redis(injection, Wire.SILENT),
        cut_off=True,
    ),
    Fault(
        "one process cut off from Redis: refused",
        lambda injection: cut_off_from_redis(injection, Wire.CUT),
        cut_off=True,
    ),
    Fault("1,000 rebuilds during writes", rebuilds),
    Fault("the pool exhausted: everything waits for a lock", pool_exhausted, refusals=True),
    Fault("PostgreSQL: no connection to be had", no_connections_left, refusals=True),
)
