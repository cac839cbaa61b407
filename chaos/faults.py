"""The faults, one function each. Each breaks something under load, and repairs what does not repair itself.

A fault says what clients may see meanwhile: whether calls may be refused, and whether a process is cut off from
Redis, so that answers may be one second old. Apart from that, all promises hold.
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

from chaos.history import Season, Transaction, Users
from chaos.proxy import LinkState, Proxy
from chaos.rig import Api, Rig
from chaos.steps import STEPS
from leaderboard import app
from leaderboard.cache import keys
from leaderboard.cache.seasons import CachedSeason
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey
from leaderboard.errors import CacheError
from tests.system import eventually, own_ports, redis, sql


@dataclass
class Fork:
    """PostgreSQL lost its last commits: the transactions until then, and the state from then on."""

    transactions: list[Transaction]
    lost_from: float
    moved_at: float
    initial: dict[Season, Users]
    mark: int


@dataclass
class Injection:
    """One injection of a fault."""

    rig: Rig
    chance: random.Random
    long: bool
    """Whether durations and numbers are those of `make chaos`; else shorter."""
    mark: int
    """The last `seq` of the witness before."""
    times: int = 1
    fork: Fork | None = None

    def seconds(self, long: float, short: float) -> float:
        return long if self.long else short

    def number(self, long: int, short: int) -> int:
        return long if self.long else short

    def wait(self, seconds: float) -> None:
        """Lets the fault last this long."""
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
    """Whether calls may be refused with 503 while it lasts, because PostgreSQL is concerned."""
    cut_off: bool = False
    """Whether a process cannot reach Redis while another can."""
    shown_within_s: float = field(default=2.0)
    """How soon after the fault the cache must be valid and equal to PostgreSQL."""


# API processes


def kill_at_random(injection: Injection) -> None:
    injection.times = injection.number(40, 3)
    for number in range(injection.times):
        api = injection.rig.apis[number % len(injection.rig.apis)]
        injection.wait(injection.chance.uniform(0.0, 0.4))
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
    """Kills the process, if it is still running, and starts it again."""
    api.end()
    api.start()
    # At least one of the others serves.
    others = [other for other in rig.apis if other is not api]
    eventually(lambda: any(other.status() == "ok" for other in others), what="another process is ready")


# Redis


def flush(injection: Injection) -> None:
    injection.times = injection.number(50, 5)
    for _ in range(injection.times):
        redis(injection.rig.settings).flushall()
        injection.wait(injection.chance.uniform(0.0, 0.2))


def delete_key(injection: Injection, key: str) -> None:
    injection.times = injection.number(30, 3)
    for _ in range(injection.times):
        redis(injection.rig.settings).delete(key)
        injection.wait(injection.chance.uniform(0.0, 0.2))


def remove_member(injection: Injection) -> None:
    injection.times = injection.number(40, 4)
    with redis(injection.rig.settings) as by_hand:
        for number in range(injection.times):
            seasons = [CachedSeason.parse(entry) for entry in by_hand.hvals(keys.SEASONS)]
            cached = [(keys.SCORES, keys.METADATA)]
            for season in seasons:
                names = keys.loading_season(season.load, "")
                cached.append((names["loading_scores"], names["loading_metadata"]))
            scores, metadata = injection.chance.choice(cached)
            members = by_hand.zrange(scores, 0, -1)
            if members:
                member = injection.chance.choice(members)
                if number % 2:
                    by_hand.hdel(metadata, member)
                else:
                    by_hand.zrem(scores, member)
            injection.wait(injection.chance.uniform(0.0, 0.2))


def maxmemory_reached(injection: Injection) -> None:
    with redis(injection.rig.settings) as by_hand:
        by_hand.config_set("maxmemory", 1)
        injection.wait(injection.seconds(5, 1))
        by_hand.config_set("maxmemory", 0)


def restart_redis_empty(injection: Injection) -> None:
    injection.times = injection.number(5, 1)
    for _ in range(injection.times):
        injection.rig.valkey.kill()
        injection.rig.valkey.start()
        injection.wait(injection.chance.uniform(0.3, 1.0))


def stop_redis(injection: Injection) -> None:
    pid = injection.rig.valkey.pid
    assert pid is not None
    for seconds in (0.1, 0.3, 0.6, injection.seconds(10, 1.5)):
        os.kill(pid, signal.SIGSTOP)
        injection.wait(seconds)
        os.kill(pid, signal.SIGCONT)
        injection.wait(0.3)
    injection.times = 4


def redis_down(injection: Injection) -> None:
    injection.rig.valkey.kill()
    injection.wait(injection.seconds(30, 2))
    injection.rig.valkey.start()


def redis_replica_behind(injection: Injection) -> None:
    """Promotes a replica that has received nothing from its primary for a while."""
    rig = injection.rig
    behind = EmbeddedValkey(rig.new_folder(), binary=rig.servers.redis_binary, ports=own_ports())
    behind.folder.mkdir(parents=True)
    (behind.folder / "password").write_text(rig.valkey.password)
    with redis(rig.settings) as primary, Proxies(rig) as proxies:
        link = proxies.new(rig.valkey.port)
        # By default the primary waits 5 s for further replicas.
        primary.config_set("repl-diskless-sync-delay", 0)
        behind.start()
        replica = redis(rig.settings.model_copy(update={"redis_url": type(rig.settings.redis_url)(behind.url)}))
        replica.config_set("masterauth", rig.valkey.password)
        replica.replicaof("127.0.0.1", link.port)
        eventually(lambda: replica.info("replication")["master_link_status"] == "up", what="the replica follows")
        eventually(lambda: replica.exists(keys.STATE), what="the replica holds the cache")
        link.set(LinkState.SILENT)
        injection.wait(injection.seconds(10, 1.5))
        old = rig.valkey
        old.kill()
        replica.replicaof("NO", "ONE")
        rig.switch_cache(behind)
        primary.close()
        replica.close()
        old.remove()


def redis_from_old_dump(injection: Injection) -> None:
    rig = injection.rig
    with redis(rig.settings) as by_hand:
        by_hand.save()
    injection.wait(injection.seconds(5, 1))
    rig.valkey.kill()
    rig.valkey.start()
    (rig.valkey.folder / "dump.rdb").unlink()


def cut_off_from_redis(injection: Injection, state: LinkState) -> None:
    injection.times = injection.number(4, 1)
    for _ in range(injection.times):
        api = injection.api
        api.to_cache.set(state)
        injection.wait(injection.seconds(3, 1.5))
        api.to_cache.set(LinkState.OPEN)
        injection.wait(0.5)


def rebuilds(injection: Injection) -> None:
    """Rebuilds the cache again and again, from this process."""
    injection.times = injection.number(1000, 60)

    async def work() -> None:
        parts = app.App(injection.rig.settings)
        await parts.database.open()
        done = 0
        while done < injection.times:
            try:
                done += await parts.sync.synchronizer.rebuild("asked for")
            except CacheError:
                await asyncio.sleep(0.01)
        await parts.close()

    asyncio.run(work())


# PostgreSQL

_OF_LAST = "season_id = (SELECT season_id FROM boards WHERE name = 'last')"


def kill_postgres(injection: Injection) -> None:
    injection.times = injection.number(5, 1)
    for _ in range(injection.times):
        injection.rig.postgres.kill()
        injection.wait(injection.chance.uniform(0.0, 1.0))
        injection.rig.postgres.start()
        injection.wait(1.0)


def restart_postgres(injection: Injection) -> None:
    injection.rig.postgres.stop()
    injection.wait(injection.seconds(3, 1))
    injection.rig.postgres.start()


def crash_of_a_backend(injection: Injection) -> None:
    """PostgreSQL ends all other backends and recovers; transaction ids may be used again."""
    injection.times = injection.number(5, 1)
    for _ in range(injection.times):
        pids = eventually(lambda: _backends(injection.rig), what="a process has a backend")
        os.kill(injection.chance.choice(pids), signal.SIGKILL)
        injection.wait(injection.chance.uniform(0.5, 1.5))


def _backends(rig: Rig) -> list[int]:
    """Returns the pids of the processes' backends; none while PostgreSQL recovers."""
    with suppress(OSError, asyncpg.PostgresError):
        rows = rig.query(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = 'leaderboard' AND datname = current_database()"
        )
        return [row[0] for row in rows]
    return []


def open_transaction(injection: Injection) -> None:
    """A transaction changes users and stays open while others commit.

    It changes its own users only, because a write to a row that it has locked would be refused.
    """
    injection.rig.by_hand("INSERT INTO users (user_name, total_score) VALUES ('an early one', 600000)")
    with injection.rig.open_transaction() as held:
        held.run(
            "INSERT INTO users (user_name, total_score) VALUES ('a late one', 600001)",
            "UPDATE users SET total_score = 600002 WHERE user_name = 'an early one'",
        )
        injection.wait(injection.seconds(20, 2))
        held.commit()
    injection.wait(1.2)


def out_of_band(injection: Injection) -> None:
    rig, chance = injection.rig, injection.chance
    injection.times = injection.number(20, 5)
    for number in range(injection.times):
        base = 700_000 + 10_000 * number
        match number % 5:
            case 4:
                rig.by_hand(
                    f"UPDATE scores SET sort_key = {base} + user_id"
                    f" WHERE user_id % 7 = {number % 7} AND {_OF_LAST}"
                )
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
        injection.wait(chance.uniform(0.1, 0.5))


def truncate(injection: Injection) -> None:
    rig = injection.rig
    injection.times = injection.number(3, 1)
    for number in range(injection.times):
        rig.by_hand("TRUNCATE users CASCADE")
        injection.wait(injection.chance.uniform(0.2, 0.6))
        rig.by_hand(
            "INSERT INTO users (user_id, user_name, total_score)"
            f" SELECT n, 'user ' || n, {800_000 + 1000 * number} + n FROM generate_series(1, 60) AS n"
        )
        injection.wait(0.5)


def barrier_in_the_log(injection: Injection) -> None:
    """Changes all users of two boards and logs only barriers, as statements over more than 20,000 rows do.

    All scores are equal then, so the order of the boards is that of the ids.
    """
    injection.times = injection.number(10, 2)
    for number in range(injection.times):
        injection.rig.by_hand(
            f"UPDATE users SET total_score = {850_000 + number}",
            f"UPDATE scores SET sort_key = {850_000 + number} WHERE {_OF_LAST}",
            "DELETE FROM changes WHERE xid = pg_current_xact_id()",
            "INSERT INTO changes (season_id, user_id) VALUES (1, NULL)",
            "INSERT INTO changes (season_id, user_id) SELECT season_id, NULL FROM boards WHERE name = 'last'",
        )
        injection.wait(injection.chance.uniform(0.5, 1.2))


def delete_the_rank_index(injection: Injection) -> None:
    injection.times = injection.number(30, 3)
    for _ in range(injection.times):
        injection.rig.query("DELETE FROM rank_index")
        injection.wait(injection.chance.uniform(0.0, 0.5))


def put_back_an_old_rank_index(injection: Injection) -> None:
    """Writes older rows of the rank index back.

    They are correct, because each has its snapshot. Every second one is invalid, as from a dump.
    """
    rig = injection.rig
    injection.times = injection.number(20, 4)
    for number in range(injection.times):
        copies = rig.query("SELECT snapshot::text, keys, ids, counts, total FROM rank_index")
        injection.wait(injection.chance.uniform(0.3, 1.0))
        for copy in copies:
            written_by = "pg_current_xact_id()" if number % 2 == 0 else "written_by"
            rig.query(
                f"UPDATE rank_index SET written_by = {written_by}, snapshot = $1::text::pg_snapshot,"
                " keys = $2, ids = $3, counts = $4, total = $5",
                *copy,
            )
        injection.wait(injection.chance.uniform(0.1, 0.5))


def pool_exhausted(injection: Injection) -> None:
    """All connections of the processes wait for a lock."""
    rig = injection.rig
    with rig.open_transaction() as held:
        held.run("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        injection.wait(injection.seconds(4, 2))
        held.run("ROLLBACK")


def no_connections_left(injection: Injection) -> None:
    """PostgreSQL ends the connections of the processes and refuses new ones."""
    rig = injection.rig
    others = rig.settings.model_copy(update={"db_name": "postgres"})
    sql(others, "ALTER DATABASE leaderboard WITH ALLOW_CONNECTIONS false")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'leaderboard'"
    sql(others, end)
    injection.wait(injection.seconds(3, 1))
    sql(others, "ALTER DATABASE leaderboard WITH ALLOW_CONNECTIONS true")


def promoted_synchronous_standby(injection: Injection) -> None:
    rig = injection.rig
    with Proxies(rig) as proxies:
        link = proxies.new(rig.postgres.port)
        standby = _standby(rig, link.port)
        rig.query("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        rig.query("SELECT pg_reload_conf()")
        eventually(lambda: _replicates(rig, "sync"), what="the standby is synchronous")
        injection.wait(injection.seconds(3, 1))
        old = rig.postgres
        rig.set_postgres_links(LinkState.CUT)
        old.kill()
        _promote(rig, standby)
        rig.set_postgres_links(LinkState.OPEN)
        old.remove()
        injection.wait(injection.seconds(2, 1))


def promoted_standby_that_is_behind(injection: Injection) -> None:
    """Promotes a standby that lacks the last commits, acknowledged ones too. They are lost in PostgreSQL."""
    rig = injection.rig
    with Proxies(rig) as proxies:
        link = proxies.new(rig.postgres.port)
        standby = _standby(rig, link.port)
        eventually(lambda: _replicates(rig, "async"), what="the standby follows")
        injection.wait(injection.seconds(2, 0.5))
        link.set(LinkState.SILENT)
        injection.wait(injection.seconds(3, 1))
        rig.set_postgres_links(LinkState.CUT)
        lost_from = time.monotonic()
        transactions = rig.transactions(injection.mark)
        old = rig.postgres
        old.kill()
        _promote(rig, standby)
        initial, mark = rig.state()
        moved_at = time.monotonic()
        rig.set_postgres_links(LinkState.OPEN)
        old.remove()
        injection.fork = Fork(transactions, lost_from, moved_at, initial, mark)
        injection.wait(injection.seconds(3, 1.5))


def _standby(rig: Rig, port: int) -> EmbeddedPostgres:
    """Starts a standby of the present primary, which it reaches by that port."""
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
    rig.switch_postgres(standby)
    rig.query("SELECT pg_promote()")
    rig.query("ALTER SYSTEM RESET synchronous_standby_names")
    rig.query("SELECT pg_reload_conf()")


class Proxies:
    """Proxies that exist while a fault lasts."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._made: list[Proxy] = []

    def new(self, target: int) -> Proxy:
        self._made.append(Proxy(self._rig.loop, target))
        return self._made[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._made:
            proxy.set(LinkState.CUT)


FAULTS = (
    Fault("an API process is killed at a random moment", kill_at_random),
    Fault("an API process is killed at each step of a write", kill_at_each_step),
    Fault("PostgreSQL is killed", kill_postgres, refusals=True),
    Fault("Redis: FLUSHALL", flush),
    *(
        Fault(f"Redis: DEL {key}", lambda injection, key=key: delete_key(injection, key))  # type: ignore[misc]
        for key in (keys.SCORES, keys.METADATA, keys.STATE, keys.SEASONS)
    ),
    Fault("Redis: one member removed by hand", remove_member),
    Fault("Redis: maxmemory reached", maxmemory_reached),
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
    Fault("psql: more than the log lists", barrier_in_the_log),
    Fault("psql: DELETE FROM rank_index", delete_the_rank_index),
    Fault("psql: an old copy of the rank index put back", put_back_an_old_rank_index),
    Fault(
        "one process cut off from Redis: silence",
        lambda injection: cut_off_from_redis(injection, LinkState.SILENT),
        cut_off=True,
    ),
    Fault(
        "one process cut off from Redis: refused",
        lambda injection: cut_off_from_redis(injection, LinkState.CUT),
        cut_off=True,
    ),
    Fault("1,000 rebuilds during writes", rebuilds),
    Fault("the pool exhausted: everything waits for a lock", pool_exhausted, refusals=True),
    Fault("PostgreSQL: no connection to be had", no_connections_left, refusals=True),
)
