"""More than can be done, and stores that stand still: those let in are answered, others are refused at once."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.dev import EmbeddedValkey
from leaderboard.queries import PageQuery
from tests.http.pressure import in_flight, locked
from tests.system import PATIENCE_S, ApiProcess, eventually, redis, sql, until

Serve = Callable[..., ApiProcess]

SIXTY = "INSERT INTO users (user_name, total_score) SELECT 'u' || i, -i FROM generate_series(1, 60) AS i"
"""Users whose ids are their ranks."""
BLOCKED = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'leaderboard'"
    " AND wait_event_type = 'Lock'"
)
"""The statements of the service that wait for a lock."""


def batches(api: ApiProcess) -> float:
    """How many batches of scores have begun."""
    name = 'leaderboard_batch_items_count{queue="scores"} '
    lines = api.client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_no_request_outlives_its_deadline_and_what_nobody_waits_for_is_not_done(
    settings: Settings, serve: Serve
) -> None:
    sql(settings, SIXTY)
    deadline_s = 1.5
    # PostgreSQL is waited for much longer than that, so that it is the request's own deadline that ends it.
    api = serve(request_timeout_ms=int(1000 * deadline_s), db_timeout_ms=60_000, cache_size=10)
    deep = "/leaderboard/user/60/context"
    assert api.client.get(deep).status_code == 200
    assert api.set(60, -60).status_code == 200
    before = batches(api)
    with ThreadPoolExecutor(2) as pool, locked(settings):
        read = pool.submit(api.client.get, deep)
        started = time.monotonic()
        sent = pool.submit(api.set, 60, 11)
        eventually(lambda: batches(api) > before, what="the first write has left the queue")
        # This one does not leave it before the first has been done.
        waiting = api.set(60, 12)
        begun = sent.result()
        assert time.monotonic() - started >= deadline_s
        for answer, code in (
            (read.result(), "overloaded"),
            (begun, "outcome_unknown"),
            (waiting, "overloaded"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, code)
            assert answer.headers["retry-after"] == "1"
    eventually(lambda: api.set(1, 99).status_code == 200, what="writes work")
    (row,) = sql(settings, "SELECT total_score FROM users WHERE user_id = 60")
    assert row["total_score"] in {11, -60}, "a cancelled write is not done"


@pytest.mark.anyio
async def test_reads_from_postgres_leave_connections_to_writes(settings: Settings, db: asyncpg.Connection) -> None:
    running = App(settings.model_copy(update={"cache_size": 10}))
    async with running.running():
        for number in range(60):
            await running.writes.create_user(f"user {number}", None, -number)
        # Every page waits for this session: it reads the index by this function.
        await db.execute(
            "ALTER FUNCTION rank_index_now RENAME TO rank_index_at_once;"
            "CREATE FUNCTION rank_index_now(most integer, OUT valid boolean, OUT pending integer,"
            " OUT checkpoints bigint[], OUT counts integer[], OUT pending_places bigint[],"
            " OUT pending_sums integer[], OUT total integer) LANGUAGE sql AS"
            " 'SELECT i.* FROM (SELECT pg_advisory_xact_lock_shared(77)) AS held, rank_index_at_once(most) AS i'"
        )
        await db.execute("SELECT pg_advisory_lock(77)")
        flood = [asyncio.create_task(running.reads.page(PageQuery(limit))) for limit in range(1, 21)]
        await until(lambda: db.fetch(BLOCKED), "the reads wait")
        for number in range(20):
            await running.writes.set_score(1, number)
            assert (await running.writes.create_user(f"newcomer {number}", None, 0)).total_score == 0
        assert not any(task.done() for task in flood), "there was a flood meanwhile"
        for task in flood:
            task.cancel()
        await db.execute("SELECT pg_advisory_unlock(77)")
        await asyncio.gather(*flood, return_exceptions=True)


def test_who_would_wait_for_long_is_refused_at_once_and_who_was_let_in_is_answered(
    settings: Settings, serve: Serve
) -> None:
    """PostgreSQL stands still; a tenth of a request's time is what the queue for it may take."""
    sql(settings, SIXTY)
    api = serve(request_timeout_ms=20_000)
    assert len(api.client.get("/leaderboard?limit=5").json()["users"]) == 5

    def ask(limit: int) -> httpx.Response:
        return api.client.get(f"/leaderboard?limit={limit}")

    with ThreadPoolExecutor(64) as pool:
        with locked(settings):
            # Two are asked of PostgreSQL at once, two go next, and the rest would have to wait for those.
            let_in = [pool.submit(ask, limit) for limit in range(1, 5)]
            eventually(lambda: in_flight(api) == 5, what="all of them are under way")

            def refused() -> httpx.Response | None:
                """The first refusal; whoever is let in until then is one of them."""
                time.sleep(0.1)
                asked = pool.submit(ask, len(let_in) + 1)
                eventually(lambda: asked.done() or in_flight(api) == len(let_in) + 2)
                if asked.done():
                    return asked.result()
                let_in.append(asked)
                return None

            answer = eventually(refused, what="the queue takes no more")
            under_way = in_flight(api)
            for _ in range(200):
                assert answer is not None
                assert (answer.status_code, answer.json()["code"]) == (503, "overloaded"), answer.text
                assert "the queue for postgres is longer than 2 s" in answer.json()["detail"]
                assert answer.headers["retry-after"] == "1"
                answer = ask(50)
            assert in_flight(api) == under_way, "whom it refuses it holds nothing for"
            assert not any(each.done() for each in let_in)
        assert [len(each.result().json()["users"]) for each in let_in] == list(range(1, len(let_in) + 1))
    assert ask(50).status_code == 200


def test_a_redis_that_hangs_costs_reads_nothing_but_at_first(
    settings: Settings, serve: Serve, own_valkey: EmbeddedValkey
) -> None:
    """Each read that tried Redis would wait for as long as a call to it may take."""
    sql(settings, SIXTY)
    timeout_s = 1.0
    api = serve(redis_url=SecretStr(own_valkey.url), redis_timeout_ms=int(1000 * timeout_s))
    pid = own_valkey.pid
    assert pid is not None
    eventually(lambda: redis(api.settings).exists("{leaderboard}:state"))
    written = threading.Event()

    def change() -> int:
        """Write until the end, so that the cache has to be caught up all the while."""
        writes = 0
        with httpx.Client(base_url=api.url, timeout=PATIENCE_S) as client:
            while not written.is_set():
                assert client.post("/users/60/score", json={"score": -60 - writes}).status_code == 200
                writes += 1
        return writes

    paths = ("/leaderboard/top/10", "/users/60", "/leaderboard/user/5/context")
    with ThreadPoolExecutor(1) as pool:
        os.kill(pid, signal.SIGSTOP)
        try:
            writing = pool.submit(change)
            # By then every connection to it has been waited for once.
            eventually(lambda: api.client.get("/readyz").json()["redis"] == "down", what="it is known to hang")
            for path in paths:
                assert api.client.get(path).status_code == 200
            rounds = 20
            started = time.monotonic()
            for path in paths * rounds:
                assert api.client.get(path).status_code == 200
                # They take a hundredth of that. If every second one tried Redis, it would be more.
                assert time.monotonic() - started < timeout_s * rounds
        finally:
            os.kill(pid, signal.SIGCONT)
            written.set()
        assert writing.result() > 0
    eventually(lambda: api.client.get("/readyz").json()["redis"] == "up", what="it is used again")
