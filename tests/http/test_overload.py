"""Overload and stores that hang: accepted requests are answered, others are refused at once."""

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
    """Returns how many batches of scores have started."""
    name = 'leaderboard_batch_items_count{queue="scores"} '
    lines = api.client.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_requests_end_at_their_deadline_and_cancelled_items_are_skipped(settings: Settings, serve: Serve) -> None:
    sql(settings, SIXTY)
    deadline_s = 1.5
    # The timeout of PostgreSQL is much longer, so the deadline of the request is what ends it.
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
        # This one stays in the queue until the first is done.
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
    assert row["total_score"] in {11, -60}, "the cancelled write was not done"


@pytest.mark.anyio
async def test_reads_from_postgres_leave_connections_to_writes(settings: Settings, db: asyncpg.Connection) -> None:
    running = App(settings.model_copy(update={"cache_size": 10}))
    async with running.running():
        for number in range(60):
            await running.service.writes.create_user(f"user {number}", None, -number)
        # Pages need the rank index; writes do not.
        lock = db.transaction()
        await lock.start()
        await db.execute("LOCK TABLE rank_index IN ACCESS EXCLUSIVE MODE")
        flood = [asyncio.create_task(running.service.reads.page(PageQuery(limit))) for limit in range(1, 21)]
        await until(lambda: db.fetch(BLOCKED), "the reads wait")
        async with asyncio.timeout(PATIENCE_S):
            for number in range(20):
                await running.service.writes.set_score(1, number)
                assert (await running.service.writes.create_user(f"newcomer {number}", None, 0)).total_score == 0
        assert not any(task.done() for task in flood), "the reads were waiting meanwhile"
        for task in flood:
            task.cancel()
        await lock.rollback()
        await asyncio.gather(*flood, return_exceptions=True)


def test_a_full_queue_refuses_at_once_and_answers_what_it_accepted(settings: Settings, serve: Serve) -> None:
    """PostgreSQL hangs. The maximum wait in a queue is a tenth of the request timeout."""
    sql(settings, SIXTY)
    api = serve(request_timeout_ms=20_000)
    assert len(api.client.get("/leaderboard?limit=5").json()["users"]) == 5

    def ask(limit: int) -> httpx.Response:
        return api.client.get(f"/leaderboard?limit={limit}")

    with ThreadPoolExecutor(64) as pool:
        with locked(settings):
            # Two are in PostgreSQL, two are next, and the rest would have to wait for those.
            let_in = [pool.submit(ask, limit) for limit in range(1, 5)]
            eventually(lambda: in_flight(api) == 5, what="all of them are active")

            def refused() -> httpx.Response | None:
                """Returns the first refusal; adds the requests accepted before it to `let_in`."""
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
            assert in_flight(api) == under_way, "a refused request uses nothing"
            assert not any(each.done() for each in let_in)
        assert [len(each.result().json()["users"]) for each in let_in] == list(range(1, len(let_in) + 1))
    assert ask(50).status_code == 200


def test_a_redis_that_hangs_slows_only_the_first_reads(
    settings: Settings, serve: Serve, own_valkey: EmbeddedValkey
) -> None:
    """A read that tried Redis would wait for the whole timeout of a call."""
    sql(settings, SIXTY)
    timeout_s = 1.0
    api = serve(redis_url=SecretStr(own_valkey.url), redis_timeout_ms=int(1000 * timeout_s))
    pid = own_valkey.pid
    assert pid is not None
    eventually(lambda: redis(api.settings).exists("{leaderboard}:state"))
    written = threading.Event()

    def change() -> int:
        """Writes until the end, so that the cache always has to catch up."""
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
            # By then every connection to it has timed out once.
            eventually(lambda: api.client.get("/readyz").json()["redis"] == "down", what="it is known to hang")
            for path in paths:
                assert api.client.get(path).status_code == 200
            rounds = 20
            started = time.monotonic()
            for path in paths * rounds:
                assert api.client.get(path).status_code == 200
                # They take a hundredth of that. If half of them tried Redis, they would take longer.
                assert time.monotonic() - started < timeout_s * rounds
        finally:
            os.kill(pid, signal.SIGCONT)
            written.set()
        assert writing.result() > 0
    eventually(lambda: api.client.get("/readyz").json()["redis"] == "up", what="it is used again")
