"""Redis set-ups: TLS, permissions, passwords, other tenants; and set-ups that are refused."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from chaos.cache_failover import from_cache
from leaderboard.app import App, cache_from
from leaderboard.cache import keys
from leaderboard.cache.link import Link
from leaderboard.cache.scripts import Scripts
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.store import CacheStore
from leaderboard.config import Settings
from leaderboard.errors import CacheError
from leaderboard.redis_url import parse_redis_url
from leaderboard.tuning import SyncTuning
from tests.deploy.certificates import Authority
from tests.deploy.redis_servers import SLOT, RedisCluster, RedisServer, Sentinels, server_program
from tests.system import ROOT, ApiProcess, SlowNetwork, environment, eventually, free_port, sql
from tests.system import until as until_true

pytestmark = pytest.mark.anyio

Serve = Callable[..., ApiProcess]
ODD = "p@ss:#/?,$%&=+ ü"
DOCS = (ROOT / "docs" / "deploy.md").read_text("utf-8")

FRESH_S = SyncTuning().fresh_s


def url(text: str) -> dict[str, SecretStr]:
    """Returns the setting for this URL."""
    return {"redis_url": SecretStr(text)}


def reads_are_cached(api: ApiProcess) -> None:
    """Asserts that every kind of call works and that reads are answered from Redis."""
    user_id = api.create("ada", 5).json()["userId"]
    assert api.set(user_id, 7).json()["previousScore"] == 5
    eventually(lambda: from_cache(api) > 0 or not api.top(1), what="reads are answered from Redis")
    assert api.top(1) == [(1, user_id, "ada", 7)]
    assert api.client.get(f"/leaderboard/user/{user_id}/context").json()["total"] == 1
    api.run("sync", "--rebuild")
    api.run("verify")


def events(api: ApiProcess, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Stops the process and returns the lines that it has logged."""
    api.stop()
    return capfd.readouterr().err.splitlines()


def start(settings: Settings) -> tuple[int, str]:
    """Starts the service with invalid settings; returns its exit status and standard error."""
    command = [sys.executable, "-m", "leaderboard", "serve", "--port", str(free_port())]
    ended = subprocess.run(
        command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    return ended.returncode, ended.stderr


# TLS


@pytest.fixture(scope="module")
def authority(module_folder: Path) -> Authority:
    return Authority(module_folder / "redis-authority")


@pytest.fixture
def with_tls(data_dir: Path, authority: Authority) -> Iterator[RedisServer]:
    """A server that accepts only TLS, from clients with a certificate."""
    with RedisServer(data_dir / "tls", server_program("redis", tls=True), authority=authority) as server:
        yield server


def files(server: RedisServer) -> dict[str, str]:
    """Returns the settings for TLS with this server."""
    return {
        "redis_sslrootcert": server.tls["ssl_ca_certs"],
        "redis_sslcert": server.tls["ssl_certfile"],
        "redis_sslkey": server.tls["ssl_keyfile"],
    }


def test_tls_with_a_private_authority_and_a_client_certificate(serve: Serve, with_tls: RedisServer) -> None:
    reads_are_cached(serve(**url(with_tls.url), **files(with_tls)))


@pytest.mark.parametrize("lacks", ["redis_sslrootcert", "redis_sslcert"])
def test_without_the_authority_or_the_client_certificate_there_is_no_cache(
    serve: Serve, with_tls: RedisServer, lacks: str
) -> None:
    given = files(with_tls)
    if lacks == "redis_sslcert":
        del given["redis_sslkey"]
    del given[lacks]
    api = serve(**url(with_tls.url), **given, wait_for="degraded")
    assert api.create("ada", 5).status_code == 201
    assert from_cache(api) == 0


def test_a_certificate_for_another_host(
    serve: Serve, data_dir: Path, authority: Authority, with_tls: RedisServer
) -> None:
    certificate, key = authority.issue("elsewhere", "redis.example")
    other = RedisServer(
        data_dir / "other",
        server_program("redis", tls=True),
        authority=authority,
        tls_cert_file=certificate,
        tls_key_file=key,
    )
    other.tls["ssl_check_hostname"] = False  # only in the test's client
    with other:
        serve(**url(f"rediss://{other.address}"), **files(with_tls), wait_for="degraded").stop()
        reads_are_cached(serve(**url(f"rediss://{other.address}"), **files(with_tls), redis_sslmode="verify-ca"))


def test_a_cluster_with_tls(serve: Serve, data_dir: Path, authority: Authority) -> None:
    with RedisCluster(data_dir / "cluster", server_program("redis", tls=True), authority=authority) as cluster:
        reads_are_cached(serve(**url(f"rediss://{cluster.seeds()[0]}"), **files(cluster.servers[0])))


def test_sentinels_with_tls_and_passwords(serve: Serve, data_dir: Path, authority: Authority) -> None:
    program = server_program("redis", tls=True)
    with Sentinels(
        data_dir / "sentinels",
        program,
        authority=authority,
        password="of-the-servers",  # pragma: allowlist secret
        sentinel_password="of-the-sentinels",  # pragma: allowlist secret
    ) as sentinels:
        reads_are_cached(
            serve(
                **url(f"rediss+sentinel://{','.join(sentinels.seeds())}/{sentinels.service}"),
                **files(sentinels.servers[0]),
                redis_password=SecretStr("of-the-servers"),
                redis_sentinel_password=SecretStr("of-the-sentinels"),
            )
        )


# Permissions, passwords, tenants


@pytest.fixture
def server(data_dir: Path) -> Iterator[RedisServer]:
    with RedisServer(data_dir / "redis", server_program()) as started:
        yield started


@pytest.mark.parametrize("name", ["valkey", "redis"])
def test_the_documented_permissions_are_enough(serve: Serve, data_dir: Path, name: str) -> None:
    (line,) = re.findall(r"^ACL SETUSER (leaderboard .*)$", DOCS, re.MULTILINE)
    words = [f">{ODD}" if word == "><password>" else word for word in line.split()]
    with RedisServer(data_dir / name, server_program(name)) as server:
        server.call("ACL", "SETUSER", *words)
        api = serve(**url(f"redis://leaderboard@{server.address}"), redis_password=SecretStr(ODD))
        reads_are_cached(api)
        # A rebuild while the service runs.
        server.call("FLUSHALL")
        eventually(lambda: server.call("HGET", keys.STATE, "valid") == b"1", what="the cache is rebuilt")
        assert server.call("ACL", "LOG") == []


@pytest.mark.parametrize("where", ["in the URL", "as a setting"])
def test_a_password_with_special_characters(serve: Serve, data_dir: Path, where: str) -> None:
    with RedisServer(data_dir / "redis", server_program(), requirepass=ODD) as server:
        if where == "in the URL":
            reads_are_cached(serve(**url(f"redis://:{quote(ODD, safe='')}@{server.address}/0")))
        else:
            reads_are_cached(serve(**url(f"redis://{server.address}"), redis_password=SecretStr(ODD)))


def test_a_wrong_password_logs_one_warning(
    serve: Serve, data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RedisServer(data_dir / "redis", server_program(), requirepass=ODD) as server:
        api = serve(**url(f"redis://:wrong@{server.address}"), log_level="warning", wait_for="degraded")
        reads_work_without_cache(api)
        lines = [line for line in events(api, capfd) if "Redis cannot be used" in line]
    assert len(lines) == 1
    assert "wrong" not in lines[0]


def reads_work_without_cache(api: ApiProcess) -> None:
    user_id = api.create("ada", 5).json()["userId"]
    for score in range(6, 16):
        assert api.set(user_id, score).status_code == 200
        assert api.top(1) == [(1, user_id, "ada", score)]
    assert api.client.get("/readyz").json()["redis"] == "down"
    assert "leaderboard_redis_up 0.0" in api.client.get("/metrics").text
    assert from_cache(api) == 0


@pytest.mark.parametrize("forbidden", ["evalsha", "eval"])
def test_if_scripts_are_forbidden_postgresql_answers_after_one_warning(
    serve: Serve, server: RedisServer, capfd: pytest.CaptureFixture[str], forbidden: str
) -> None:
    server.call("ACL", "SETUSER", "default", f"-{forbidden}")
    api = serve(**url(server.url), log_level="warning", wait_for="degraded")
    reads_work_without_cache(api)
    lines = [line for line in events(api, capfd) if "Redis cannot be used" in line]
    assert len(lines) == 1
    assert forbidden in lines[0]


def test_the_keys_of_another_tenant_are_kept(serve: Serve, server: RedisServer) -> None:
    server.call("SET", "leaderboard", "theirs")
    server.call("ZADD", "{other}:scores", 1, "theirs")
    reads_are_cached(serve(**url(server.url)))
    assert server.call("GET", "leaderboard") == b"theirs"
    assert server.call("ZRANGE", "{other}:scores", 0, -1) == [b"theirs"]
    ours = {name.decode() for name in server.call("KEYS", "*")} - {"leaderboard", "{other}:scores"}
    assert all(name.startswith("{leaderboard}:") for name in ours)


def test_an_eviction_policy_logs_a_warning(
    serve: Serve, data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RedisServer(
        data_dir / "redis", server_program(), maxmemory="50mb", maxmemory_policy="allkeys-lru"
    ) as server:
        api = serve(**url(server.url), workers=1, log_level="warning")
        reads_are_cached(api)
        # What eviction does: some key is gone.
        for name in (keys.SCORES, keys.METADATA, keys.STATE, keys.DELTAS):
            server.call("DEL", name)
            assert api.top(1) == [(1, 1, "ada", 7)]
            eventually(lambda: server.call("HGET", keys.STATE, "valid") == b"1", what="there is a cache")
        lines = events(api, capfd)
    assert [line for line in lines if "evict" in line and "allkeys-lru" in line]
    assert sum("evict" in line for line in lines) == 1


def test_a_server_with_a_high_latency(serve: Serve, server: RedisServer) -> None:
    """To connect takes several round trips, which is longer than the timeout of a call."""
    with SlowNetwork(server.port, 0.06) as slow:
        reads_are_cached(serve(**url(f"redis://127.0.0.1:{slow.port}"), redis_timeout_ms=200))


# Refused at the start


@pytest.fixture(scope="module")
def cluster(module_folder: Path) -> Iterator[RedisCluster]:
    with RedisCluster(module_folder / "cluster", server_program("redis"), replicas_each=0) as started:
        yield started


@pytest.fixture(scope="module")
def sentinels(module_folder: Path) -> Iterator[Sentinels]:
    with Sentinels(module_folder / "sentinels", server_program()) as started:
        # The default periods: the Sentinels make the old primary a replica only after ten seconds.
        for sentinel in started.sentinels:
            sentinel.call("SENTINEL", "DEBUG", "publish-period", "2000", "info-period", "10000")
        yield started


def refusal(settings: Settings, text: str) -> str:
    """Returns the one line with which the service refuses this URL."""
    status, output = start(settings.model_copy(update=url(text)))
    assert status == 2, output
    lines = [line for line in output.splitlines() if line.startswith("leaderboard: ")]
    assert len(lines) == 1, output
    return lines[0].removeprefix("leaderboard: ")


def test_a_sentinel_instead_of_a_server(settings: Settings, sentinels: Sentinels) -> None:
    address = sentinels.sentinels[0].address
    expected = f"REDIS_URL: {address} is a Sentinel; its URL begins with redis+sentinel://"
    assert refusal(settings, f"redis://{address}") == expected


def test_a_server_instead_of_a_sentinel(settings: Settings, server: RedisServer) -> None:
    line = refusal(settings, f"redis+sentinel://{server.address}/board")
    assert line == "REDIS_URL: redis+sentinel:// is for Sentinels, and this server is none"


def test_a_service_that_sentinel_does_not_know(settings: Settings, sentinels: Sentinels) -> None:
    line = refusal(settings, f"redis+sentinel://{','.join(sentinels.seeds())}/board")
    assert line == "REDIS_URL: Sentinel knows no service 'board'"


def test_several_servers_that_are_not_a_cluster(settings: Settings, server: RedisServer) -> None:
    line = refusal(settings, f"redis://{server.address},127.0.0.1:{free_port()}")
    assert line == f"REDIS_URL: several addresses are for a Redis Cluster, and {server.address} is not part of one"


def test_a_database_that_a_cluster_does_not_have(settings: Settings, cluster: RedisCluster) -> None:
    address = cluster.seeds()[0]
    assert refusal(settings, f"redis://{address}/1") == f"REDIS_URL: {address} has no database 1"


async def test_a_redis_that_is_too_old(settings: Settings) -> None:
    """A substitute for an old server, which cannot be installed beside the others."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(1000):
            hello = b"*4\r\n$7\r\nversion\r\n$5\r\n6.2.7\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
            writer.write(hello if b"HELLO" in command else b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as listening:
        address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        line = await asyncio.to_thread(refusal, settings, f"redis://{address}")
    assert line == f"REDIS_URL: {address} is Redis 6.2.7; Redis 7.0 or Valkey is needed"


def test_an_address_that_is_written_twice(serve: Serve) -> None:
    away = f"127.0.0.1:{free_port()}"
    serve(**url(f"redis+sentinel://{away},{away}/board"), wait_for="degraded")


async def test_the_start_does_not_wait_for_a_failover_to_end(serve: Serve) -> None:
    """The only Sentinel that answers conducts a failover, which may take minutes; here it never ends."""
    words = (b"ip", b"127.0.0.1", b"port", b"1", b"config-epoch", b"1", b"flags", b"master,failover_in_progress")
    reply = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(1000):
            writer.write(reply if b"MASTER" in command else b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as listening:
        address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started = partial(serve, **url(f"redis+sentinel://{address}/board"), wait_for="degraded")
        (await asyncio.to_thread(started)).stop()


# A failover, step by step


def sentinel_url(sentinels: Sentinels) -> str:
    return f"redis+sentinel://{','.join(sentinels.seeds())}/{sentinels.service}"


@pytest.fixture
async def app(settings: Settings, sentinels: Sentinels) -> AsyncIterator[App]:
    sentinels.settle()
    running = App(settings.model_copy(update=url(sentinel_url(sentinels))))
    async with running.running():
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition without blocking the service in this process."""
    await asyncio.to_thread(eventually, condition)


def in_use(server: RedisServer) -> bool:
    return bool(server.call("HGET", keys.STATE, "valid") == b"1")


def is_primary(server: RedisServer) -> bool:
    return server.info("replication")["role"] == "master"


async def test_a_writer_waits_where_others_may_have_another_primary(
    app: App, settings: Settings, sentinels: Sentinels
) -> None:
    """As after another process has found a new primary and removed the cache from this one."""
    primary = sentinels.primary()
    await until(lambda: in_use(primary))
    user = (await app.service.writes.create_user("ada", None, 0)).user_id
    primary.call("SET", keys.CLAIM, "left", "PX", 10_000)
    primary.call("DEL", keys.STATE, keys.SCORES, keys.METADATA)
    asked = time.monotonic()
    await app.service.writes.set_score(user, 5)
    assert time.monotonic() - asked >= FRESH_S
    assert sql(settings, "SELECT total_score FROM users")[0][0] == 5


async def test_a_writer_waits_where_no_node_of_the_cluster_has_answered_yet(settings: Settings) -> None:
    """The process starts while the nodes in its URL are down; other processes may know the other nodes."""
    nodes = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    running = App(settings.model_copy(update=url(f"redis://{nodes}")))
    async with running.running():
        asked = time.monotonic()
        await running.service.writes.create_user("ada", None, 0)
        assert time.monotonic() - asked >= FRESH_S


async def test_who_finds_the_new_primary_removes_the_cache_from_the_one_before(
    app: App, sentinels: Sentinels
) -> None:
    old = sentinels.primary()
    await until(lambda: in_use(old))
    sentinels.sentinels[0].call("SENTINEL", "FAILOVER", sentinels.service)
    await until(lambda: not in_use(old))
    assert is_primary(old)
    await until(lambda: sentinels.primary() is not old and in_use(sentinels.primary()))
    assert await app.cache.export() is not None


@pytest.fixture
async def linked(sentinels: Sentinels) -> AsyncIterator[tuple[Servers, Callable[[], Awaitable[Any]]]]:
    """The servers as one process sees them, and a call on a connection to the primary that was used once."""
    sentinels.settle()
    servers = Servers(parse_redis_url(sentinel_url(sentinels)), Login())
    link = Link(servers, 5.0)
    ask = partial(link.run, Scripts().poll(nonce="", lease_ms=0))
    try:
        await ask()
        yield servers, ask
    finally:
        await link.close()
        await servers.close()


async def fail_over(sentinels: Sentinels, servers: Servers) -> None:
    """Starts a failover and waits until this process has found the new primary."""
    sentinels.sentinels[0].call("SENTINEL", "FAILOVER", sentinels.service)
    await until(lambda: servers.switches > 0)


async def test_the_rebuild_is_claimed_before_the_cache_is_removed(
    sentinels: Sentinels, linked: tuple[Servers, Callable[[], Awaitable[Any]]]
) -> None:
    """Otherwise a rebuild in progress on the old primary could be installed between the two."""
    servers, ask = linked
    with sentinels.primary().client(socket_timeout=None) as client, client.monitor() as seen:
        await fail_over(sentinels, servers)
        await ask()
        commands = (command["command"].split() for command in seen.listen())
        leaving = (words[0] for words in commands if {keys.CLAIM, keys.STATE}.intersection(words))
        first_two = await asyncio.to_thread(lambda: [next(leaving), next(leaving)])
    assert first_two == ["SET", "DEL"]


async def test_an_idle_process_reads_from_the_new_primary(
    sentinels: Sentinels, linked: tuple[Servers, Callable[[], Awaitable[Any]]]
) -> None:
    servers, ask = linked
    old = sentinels.primary()
    await fail_over(sentinels, servers)
    new = next(server for server in sentinels.servers if server is not old)
    new.call("CONFIG", "RESETSTAT")
    await ask()
    assert "cmdstat_evalsha" in new.info("commandstats")
    assert is_primary(old)


async def answers(store: CacheStore) -> bool:
    with suppress(CacheError):
        await store.poll("", 0)
        return True
    return False


async def test_the_clusters_other_nodes_are_discovered(settings: Settings, cluster: RedisCluster) -> None:
    """The node in the URL may go down later."""
    owner = cluster.owner()
    seed = next(server for server in cluster.servers if server is not owner)
    store = cache_from(settings.model_copy(update=url(f"redis://{seed.address}")))
    try:
        assert await store.poll("", 0) is None
        seed.freeze()
        # This closes the connection.
        owner.call("CLIENT", "KILL", "TYPE", "normal")
        await until_true(partial(answers, store), "another node is asked")
    finally:
        seed.thaw()
        await store.close()


@pytest.mark.parametrize("claims", [False, True])
async def test_a_node_outside_the_cluster_is_not_the_only_one_asked(
    data_dir: Path, cluster: RedisCluster, claims: bool
) -> None:
    """The URL names it first: it is new, or it was cut off and still claims the slot."""
    with RedisServer(data_dir / "alone", server_program(), cluster_enabled=True) as alone:
        if claims:
            alone.call("CLUSTER", "ADDSLOTS", SLOT)
        servers = Servers(parse_redis_url(f"redis://{alone.address},{cluster.seeds()[0]}"), Login())
        store = CacheStore(servers, Scripts(), 5.0, 10, FRESH_S)
        try:
            await until_true(partial(answers, store), "another node is asked")
        finally:
            await store.close()
