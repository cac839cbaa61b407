"""Redis or PostgreSQL is missing, killed, emptied or read-only, and later works again."""

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
    """Creates a user, sets a score and reads. Returns the id of the user."""
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


def test_every_call_works_without_redis_and_redis_is_used_once_it_is_up(
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


def test_a_lost_key_is_noticed_at_once_and_rebuilt(settings: Settings, serve: Serve) -> None:
    api = serve(sync_interval_ms=50)
    client = redis(settings)
    for number, (key, how) in enumerate(product(KEYS, ("delete", "another type"))):
        every_call_works(api, 3 * number)
        eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
        client.delete(key)
        if how == "another type":
            client.set(key, "a string")
        every_call_works(api, 3 * number + 1)
        eventually(lambda: reads_come_from(api, "cache"), what=f"the cache is used again: {key}, {how}")
        every_call_works(api, 3 * number + 2)


@pytest.mark.parametrize("field", ["token", "epoch", "snapshot", "floor", "count", "total", "asof", "valid"])
def test_a_damaged_state_is_noticed_and_rebuilt(settings: Settings, serve: Serve, field: str) -> None:
    api = serve(sync_interval_ms=50)
    client = redis(settings)
    for number, value in enumerate((None, "", "x")):
        every_call_works(api, 2 * number)
        eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
        if value is None:
            client.hdel("{leaderboard}:state", field)
        else:
            client.hset("{leaderboard}:state", field, value)
        every_call_works(api, 2 * number + 1)
        eventually(lambda: reads_come_from(api, "cache"), what=f"the cache is used again after {value!r}")
        eventually(lambda: in_thread(compared(settings)), what=f"the cache can be compared after {value!r}")


async def compared(settings: Settings) -> int | None:
    """Returns the number of compared users, or None if no comparison was possible. Fails at a difference."""
    app = App(settings)
    await app.database.open()
    try:
        audit = await app.sync.auditor.audit()
    finally:
        await app.cache.close()
        await app.database.close()
    assert (audit.differences, audit.totals) == ([], None)
    return audit.compared


@pytest.mark.parametrize("hang_s", [0.1, 0.33, 0.5, 0.7])
def test_after_redis_hung_no_acknowledged_write_is_missing(
    settings: Settings, serve: Serve, own_valkey: EmbeddedValkey, hang_s: float
) -> None:
    """Redis hangs long enough that the writer stops waiting, and not so long that the cache is too old to read."""
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
                # Not for a condition: Redis is paused for this time.
                time.sleep(hang_s)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert write.result().status_code == 200
            for api in (reader, writer):
                assert api.client.get(f"/users/{user_id}").json()["score"] == score


@pytest.mark.parametrize("command", ["FLUSHALL", "ZREM", "HDEL"])
def test_an_empty_or_inconsistent_cache_is_noticed_at_once_and_rebuilt(
    settings: Settings, serve: Serve, command: str
) -> None:
    api = serve()
    user_id = every_call_works(api, 1)
    every_call_works(api, 2)
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
    member = f"{user_id:010d}"
    client = redis(settings)
    match command:
        case "FLUSHALL":
            client.flushall()
        case "ZREM":
            client.zrem("{leaderboard}:scores", member)
        case "HDEL":
            client.hdel("{leaderboard}:users:metadata", member)
    assert user_id in [standing[1] for standing in api.top(10)]
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used again")
    assert user_id in [standing[1] for standing in api.top(10)]


def test_every_call_works_when_redis_is_full(settings: Settings, serve: Serve, own_valkey: EmbeddedValkey) -> None:
    api = serve(redis_url=SecretStr(own_valkey.url))
    every_call_works(api, 1)
    full = redis(api.settings)
    full.config_set("maxmemory", 1)
    every_call_works(api, 2)
    full.config_set("maxmemory", 0)
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used again")
    every_call_works(api, 3)


def test_without_postgres_writes_are_rejected_and_reads_have_an_age(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres
) -> None:
    api = serve_on(serve, own_postgres, settings)
    user_id = every_call_works(api, 1)
    eventually(lambda: reads_come_from(api, "cache"), what="the cache is used")
    before = api.top(10)

    own_postgres.kill()
    refused = api.set(user_id, 1)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["code"] in {"unavailable", "outcome_unknown"}
    assert api.create("new").status_code == 503

    answer = eventually(lambda: with_age(api, "/leaderboard/top/10"), what="responses have an Age header")
    assert answer is not None
    assert int(answer.headers["age"]) >= 1
    assert [standing["userId"] for standing in answer.json()["users"]] == [standing[1] for standing in before]
    context = api.client.get(f"/leaderboard/user/{user_id}/context")
    assert (context.status_code, context.json()["user"]["userId"]) == (200, user_id)
    assert "age" in context.headers
    # Pages never come from the cache, so there are no stale ones. A 404 has no Age, and the user may exist by now.
    for path in ("/leaderboard", "/leaderboard?around_rank=1", "/users/999", "/leaderboard/user/999/context"):
        refused = api.client.get(path)
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


def test_a_service_that_starts_before_its_database_works_once_the_database_is_up(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres
) -> None:
    api = serve_on(serve, own_postgres, settings)
    api.stop()
    own_postgres.stop()
    api.start(wait_for="unavailable")
    assert api.client.get("/leaderboard/top/1").status_code == 503
    own_postgres.start()
    eventually(lambda: status(api)["status"] == "ok", what="PostgreSQL is up")
    every_call_works(api, 1)


def serve_on(serve: Serve, server: EmbeddedPostgres, settings: Settings, **overrides: object) -> ApiProcess:
    """Starts an API process on a migrated database of another PostgreSQL."""
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


def test_changes_by_sql_are_shown_soon(settings: Settings, serve: Serve) -> None:
    api = serve()
    user_id = every_call_works(api, 1)
    sql(settings, "UPDATE users SET total_score = 7, user_name = 'renamed' WHERE user_id = $1", user_id)
    comes_to_show(lambda: api.top(1) == [(1, user_id, "renamed", 7)])
    sql(settings, "INSERT INTO users (user_name, total_score) VALUES ('by hand', 8)")
    comes_to_show(lambda: api.top(1)[0][2] == "by hand")
    sql(settings, "TRUNCATE users CASCADE")
    comes_to_show(lambda: api.top(1) == [])


def test_a_read_only_primary_is_reported_and_used_for_reads(settings: Settings, serve: Serve) -> None:
    api = serve(ready_without_writes_s=1)
    user_id = every_call_works(api, 1)
    database = settings.db_name
    sql(settings, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    # The setting applies to new sessions only.
    sql(
        settings,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()",
        database,
    )
    refused = eventually(lambda: refused_write(api, user_id), 10, "writes are refused")
    assert refused is not None
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("unavailable", "1")
    eventually(lambda: status(api)["writes"] == "refused", what="/readyz reports that writes are refused")
    assert api.client.get(f"/users/{user_id}").status_code == 200
    eventually(lambda: api.client.get("/readyz").status_code == 503, 10, "the service is no longer ready")
    assert api.client.get(f"/users/{user_id}").status_code == 200

    admin = settings.model_copy(update={"db_name": "postgres"})
    sql(admin, f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
    eventually(lambda: api.set(user_id, 77).status_code == 200, 10, "writes are accepted again")
    assert status(api) == status(api) | {"status": "ok", "writes": "accepted"}


def refused_write(api: ApiProcess, user_id: int) -> httpx.Response | None:
    answer = api.set(user_id, 76)
    return answer if answer.status_code == 503 and answer.json()["code"] == "unavailable" else None
