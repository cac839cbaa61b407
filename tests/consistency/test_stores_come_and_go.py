"""Redis and PostgreSQL absent, lost, emptied and back: the calls work as far as they can, and all heals alone."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import httpx
import pytest
from pydantic import SecretStr

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey
from tests.system import ApiProcess, comes_to_show, eventually, in_thread, redis, sql

Serve = Callable[..., ApiProcess]


def answers_from(api: ApiProcess, source: str) -> float:
    lines = api.client.get("/metrics").text.splitlines()
    name = f'leaderboard_answers_total{{source="{source}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def reads_come_from(api: ApiProcess, source: str) -> bool:
    before = answers_from(api, source)
    api.top(3)
    return answers_from(api, source) > before


def status(api: ApiProcess) -> dict[str, str]:
    return dict(api.client.get("/readyz").json())


def every_call_works(api: ApiProcess, expected_size: int) -> int:
    """Create, set and read; returns the new user's id."""
    created = api.create(f"user {expected_size}", 5)
    assert created.status_code == 201, created.text
    user_id = int(created.json()["userId"])
    assert api.set(user_id, 1000 + user_id).json()["previousScore"] == 5
    assert api.top(1)[0][1:] == (user_id, f"user {expected_size}", 1000 + user_id)
    context = api.client.get(f"/leaderboard/user/{user_id}/context").json()
    assert context["user"]["rank"] == 1
    assert api.client.get(f"/users/{user_id}").json()["score"] == 1000 + user_id
    page = api.client.get("/leaderboard?limit=1").json()
    assert (page["users"][0]["userId"], page["total"]) == (user_id, context["total"])
    assert api.client.get("/users/999999").status_code == 404
    return user_id


def test_without_redis_every_call_works_and_it_is_used_when_it_comes(
    settings: Settings, serve: Serve, own_valkey: EmbeddedValkey
) -> None:
    own_valkey.stop()
    api = serve(redis_url=SecretStr(own_valkey.url), wait_for="degraded")
    every_call_works(api, 1)
    assert status(api)["redis"] == "down"

    own_valkey.start()
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
    assert status(api)["status"] == "ok"
    every_call_works(api, 2)

    own_valkey.kill()
    every_call_works(api, 3)
    own_valkey.start()
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used again")
    every_call_works(api, 4)


KEYS = ("{leaderboard}:scores", "{leaderboard}:users:metadata", "{leaderboard}:state")


def test_a_lost_key_is_noticed_at_once_and_healed(settings: Settings, serve: Serve) -> None:
    api = serve(sync_interval_ms=50)
    by_hand = redis(settings)
    for number, (key, how) in enumerate(product(KEYS, ("delete", "another type"))):
        every_call_works(api, 3 * number)
        eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
        by_hand.delete(key)
        if how == "another type":
            by_hand.set(key, "what is this")
        every_call_works(api, 3 * number + 1)
        eventually(lambda: reads_come_from(api, "cache"), what=f"the cache is used again: {key}, {how}")
        every_call_works(api, 3 * number + 2)


@pytest.mark.parametrize("field", ["token", "epoch", "snapshot", "floor", "count", "total", "asof", "valid"])
def test_a_damaged_state_is_noticed_and_healed(settings: Settings, serve: Serve, field: str) -> None:
    api = serve(sync_interval_ms=50)
    by_hand = redis(settings)
    for number, value in enumerate((None, "", "x")):
        every_call_works(api, 2 * number)
        eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
        if value is None:
            by_hand.hdel("{leaderboard}:state", field)
        else:
            by_hand.hset("{leaderboard}:state", field, value)
        every_call_works(api, 2 * number + 1)
        eventually(lambda: reads_come_from(api, "cache"), what=f"the cache is used again after {value!r}")
        eventually(lambda: in_thread(compared(settings)), what=f"the cache can be compared after {value!r}")


async def compared(settings: Settings) -> int | None:
    """How many users the cache was compared with PostgreSQL for, None if it could not be; fails if it differs."""
    parts = App(settings)
    await parts.database.open()
    try:
        audit = await parts.sync.auditor.audit()
    finally:
        await parts.cache.close()
        await parts.database.close()
    assert (audit.differences, audit.totals) == ([], None)
    return audit.compared


@pytest.mark.parametrize("hang_s", [0.1, 0.33, 0.5, 0.7])
def test_after_redis_hung_no_acknowledged_write_is_missing(
    settings: Settings, serve: Serve, own_valkey: EmbeddedValkey, hang_s: float
) -> None:
    """Long enough to give up waiting for the cache, and not so long that what it holds is too old to be read."""
    mine = {"redis_url": SecretStr(own_valkey.url), "redis_timeout_ms": 200, "audit_interval_s": 0}
    writer, reader = serve(**mine), serve(**mine)
    user_id = every_call_works(writer, 1)
    pid = own_valkey.pid
    assert pid is not None
    with ThreadPoolExecutor(1) as pool:
        for score in range(5000, 5005):
            eventually(lambda: reads_come_from(reader, "cache"), what="the cache is used")
            os.kill(pid, signal.SIGSTOP)
            try:
                write = pool.submit(writer.set, user_id, score)
                # Not for a condition: Redis is to stand still for so long.
                time.sleep(hang_s)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert write.result().status_code == 200
            for api in (reader, writer):
                assert api.client.get(f"/users/{user_id}").json()["score"] == score


@pytest.mark.parametrize("command", ["FLUSHALL", "ZREM", "HDEL"])
def test_an_emptied_or_torn_cache_is_noticed_at_once_and_healed(
    settings: Settings, serve: Serve, command: str
) -> None:
    api = serve()
    user_id = every_call_works(api, 1)
    every_call_works(api, 2)
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
    member = f"{user_id:010d}"
    by_hand = redis(settings)
    match command:
        case "FLUSHALL":
            by_hand.flushall()
        case "ZREM":
            by_hand.zrem("{leaderboard}:scores", member)
        case "HDEL":
            by_hand.hdel("{leaderboard}:users:metadata", member)
    assert user_id in [standing[1] for standing in api.top(10)]
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used again")
    assert user_id in [standing[1] for standing in api.top(10)]


def test_a_full_redis_costs_no_answer(settings: Settings, serve: Serve, own_valkey: EmbeddedValkey) -> None:
    api = serve(redis_url=SecretStr(own_valkey.url))
    every_call_works(api, 1)
    full = redis(api.settings)
    full.config_set("maxmemory", 1)
    every_call_works(api, 2)
    full.config_set("maxmemory", 0)
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used again")
    every_call_works(api, 3)


def test_without_postgres_writes_are_refused_and_reads_tell_their_age(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres
) -> None:
    api = serve_on(serve, own_postgres, settings)
    user_id = every_call_works(api, 1)
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
    shown = api.top(10)

    own_postgres.kill()
    refused = api.set(user_id, 1)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["code"] in {"unavailable", "outcome_unknown"}
    assert api.create("nobody").status_code == 503

    answer = eventually(lambda: with_age(api, "/leaderboard/top/10"), what="answers tell their age")
    assert answer is not None
    assert int(answer.headers["age"]) >= 1
    assert [standing["userId"] for standing in answer.json()["users"]] == [standing[1] for standing in shown]
    context = api.client.get(f"/leaderboard/user/{user_id}/context")
    assert (context.status_code, context.json()["user"]["userId"]) == (200, user_id)
    assert "age" in context.headers
    # The cache has no pages, and so has nothing older to say.
    for page in ("/leaderboard", "/leaderboard?around_rank=1"):
        refused = api.client.get(page)
        assert (refused.status_code, refused.json()["code"], "age" in refused.headers) == (
            503,
            "unavailable",
            False,
        )
        assert refused.headers["retry-after"] == "1"
    assert status(api) == status(api) | {"status": "degraded", "postgres": "down", "redis": "up"}

    own_postgres.start()
    eventually(lambda: status(api)["status"] == "ok", what="PostgreSQL is back")
    every_call_works(api, 2)
    assert "age" not in api.client.get("/leaderboard/top/10").headers


def test_stale_reads_can_be_switched_off(settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres) -> None:
    api = serve_on(serve, own_postgres, settings, stale_reads="off")
    every_call_works(api, 1)
    own_postgres.kill()
    eventually(lambda: api.client.get("/leaderboard/top/10").status_code == 503, what="reads are refused")
    assert api.client.get("/readyz").status_code == 503
    assert api.client.get("/livez").status_code == 200


def test_a_service_that_starts_before_its_database_serves_as_soon_as_it_is_there(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres
) -> None:
    api = serve_on(serve, own_postgres, settings)
    api.stop()
    own_postgres.stop()
    api.start(wait_for="unavailable")
    assert api.client.get("/leaderboard/top/1").status_code == 503
    own_postgres.start()
    eventually(lambda: status(api)["status"] == "ok", what="PostgreSQL is there")
    every_call_works(api, 1)


def serve_on(serve: Serve, server: EmbeddedPostgres, settings: Settings, **overrides: object) -> ApiProcess:
    """An API process on a migrated database of another PostgreSQL."""
    mine = {
        "db_port": server.port,
        "db_name": "leaderboard",
        "db_password": SecretStr(server.password),
        **overrides,
    }
    ApiProcess(settings.model_copy(update=mine)).run("migrate")
    return serve(**mine)


def with_age(api: ApiProcess, path: str) -> httpx.Response | None:
    answer = api.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer if "age" in answer.headers else None


def test_out_of_band_changes_show_within_a_second(settings: Settings, serve: Serve) -> None:
    api = serve()
    user_id = every_call_works(api, 1)
    sql(settings, "UPDATE users SET total_score = 7, user_name = 'renamed' WHERE user_id = $1", user_id)
    comes_to_show(lambda: api.top(1) == [(1, user_id, "renamed", 7)])
    sql(settings, "INSERT INTO users (user_name, total_score) VALUES ('by hand', 8)")
    comes_to_show(lambda: api.top(1)[0][2] == "by hand")
    sql(settings, "TRUNCATE users")
    comes_to_show(lambda: api.top(1) == [])


def test_a_primary_that_takes_no_writes_is_said_so_and_used_for_reads(settings: Settings, serve: Serve) -> None:
    api = serve(ready_without_writes_s=1)
    user_id = every_call_works(api, 1)
    database = settings.db_name
    sql(settings, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    # As after a restart of the server or a change of its configuration: new sessions only.
    sql(
        settings,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
        database,
    )
    refused = eventually(lambda: refused_write(api, user_id), 10, "writes are refused")
    assert refused is not None
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("unavailable", "1")
    eventually(lambda: status(api)["writes"] == "refused", what="it is said so")
    assert api.client.get(f"/users/{user_id}").status_code == 200
    eventually(lambda: api.client.get("/readyz").status_code == 503, 10, "it is not ready any more")
    assert api.client.get(f"/users/{user_id}").status_code == 200

    admin = settings.model_copy(update={"db_name": "postgres"})
    sql(admin, f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
    eventually(lambda: api.set(user_id, 77).status_code == 200, 10, "writes are taken again")
    assert status(api) == status(api) | {"status": "ok", "writes": "accepted"}


def refused_write(api: ApiProcess, user_id: int) -> httpx.Response | None:
    answer = api.set(user_id, 76)
    return answer if answer.status_code == 503 and answer.json()["code"] == "unavailable" else None
