"""Stopping: by one signal or two, to the main process or the whole process group."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest

from leaderboard.config import Settings
from tests.http.pressure import connect, in_flight, locked, rest
from tests.system import PATIENCE_S, ApiProcess, eventually, sql

Serve = Callable[..., ApiProcess]

LONG_S = 60.0
"""The request timeout and the stop delay, in seconds; a worker that hangs is killed after that."""


def ends(api: ApiProcess) -> bool:
    """Returns True if it ends within half the time after which it would be killed or its delay would be over."""
    assert api.process is not None
    try:
        status = api.process.wait(LONG_S / 2)
    except subprocess.TimeoutExpired:
        return False
    api.process = None
    return status == 0


@pytest.mark.parametrize("how", ["ctrl-c", "group", "process"])
def test_it_stops_at_once(serve: Callable[..., ApiProcess], how: str) -> None:
    """With two signals Granian's worker hung until it was killed: by Ctrl-C 1 time in 20."""
    for number in range(3):
        api = serve(workers=2, request_timeout_ms=int(1000 * LONG_S))
        assert api.create(f"user {number}").status_code == 201
        assert api.process is not None
        group = api.process.pid
        match how:
            case "ctrl-c":
                os.killpg(api.process.pid, signal.SIGINT)
            case "group":
                os.killpg(api.process.pid, signal.SIGTERM)
            case "process":
                api.process.terminate()
        assert ends(api)
        eventually(lambda group=group: not alive(group), what="all of its processes have ended")  # type: ignore[misc]


def test_two_signals_during_a_write_still_answer_it(settings: Settings, serve: Serve) -> None:
    """As with Ctrl-C pressed twice. The write waits until both signals have arrived."""
    # A worker that hangs is killed after 42 s: longer than `ends` waits, and shorter than the client does.
    api = serve(request_timeout_ms=40_000)
    assert api.create("ada").status_code == 201
    assert api.process is not None
    with ThreadPoolExecutor(1) as pool:
        with locked(settings):
            write = pool.submit(api.set, 1, 5)
            eventually(lambda: in_flight(api) == 2, what="the write is active")
            for _ in range(2):
                os.killpg(api.process.pid, signal.SIGINT)
                # Not to wait for a condition: two signals at once would be one.
                time.sleep(0.1)
        assert write.result().status_code == 200
        assert ends(api)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def fresh(api: ApiProcess, method: str, path: str, **more: object) -> httpx.Response:
    """Sends a request on a new connection."""
    with httpx.Client(base_url=api.url, timeout=PATIENCE_S) as client:
        return client.request(method, path, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_reports_not_ready_then_serves_for_the_delay_then_stops(serve: Serve, workers: int) -> None:
    delay_s = 3.0
    api = serve(stop_delay_ms=int(1000 * delay_s), workers=workers)
    assert api.client.get("/livez").headers.get("connection") is None
    assert api.process is not None
    started = time.monotonic()
    api.process.terminate()
    eventually(lambda: fresh(api, "GET", "/readyz").json()["status"] == "stopping")
    created_names = 2
    for number in range(created_names):
        ready = fresh(api, "GET", "/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        assert ready.headers["connection"] == "close"
        assert fresh(api, "GET", "/livez").status_code == 200
        created = fresh(api, "POST", "/users", json={"username": f"late {number}"})
        assert (created.status_code, created.headers["connection"]) == (201, "close")
        assert fresh(api, "GET", "/leaderboard/top/10").status_code == 200
    # A connection that was open before is closed too.
    assert api.client.get("/leaderboard/top/10").headers["connection"] == "close"
    assert ends(api)
    assert time.monotonic() - started >= delay_s
    assert sql(api.settings, "SELECT count(*) FROM users")[0]["count"] == created_names


def test_sigint_to_the_main_process_alone_has_no_delay(serve: Serve) -> None:
    api = serve(stop_delay_ms=int(1000 * LONG_S), workers=2)
    assert api.process is not None
    api.process.send_signal(signal.SIGINT)
    assert ends(api)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_start_stops_them(serve: Serve, number: signal.Signals) -> None:
    """A worker that had just been forked ignored the signal, and was killed after the whole timeout."""
    for _ in range(2):
        # One of them is ready, the others may not be.
        api = serve(stop_delay_ms=0, request_timeout_ms=int(1000 * LONG_S), workers=6)
        assert api.process is not None
        api.process.send_signal(number)
        assert ends(api)


def test_active_requests_are_finished(settings: Settings, serve: Serve) -> None:
    api = serve()
    user_id = int(api.create("ada").json()["userId"])
    assert api.process is not None
    with ThreadPoolExecutor(2) as pool:
        with locked(settings):
            write = pool.submit(fresh, api, "POST", f"/users/{user_id}/score", json={"score": 7})
            eventually(lambda: in_flight(api) == 2)
            api.process.terminate()
            eventually(lambda: not accepts(api), what="it accepts no more")
        answer = write.result()
    assert (answer.status_code, answer.json()["score"]) == (200, 7)
    assert ends(api)


def accepts(api: ApiProcess) -> bool:
    try:
        return fresh(api, "GET", "/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_a_stalled_client_does_not_delay_the_stop(serve: Serve) -> None:
    # With this delay, which SIGINT skips, it would be killed long after the deadline of its requests.
    api = serve(request_timeout_ms=1000, stop_delay_ms=int(1000 * LONG_S))
    assert api.process is not None
    head = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    with connect(api, head) as stalled, connect(api, b"GET / HT"), connect(api):
        eventually(lambda: in_flight(api) == 2)
        api.process.send_signal(signal.SIGINT)
        assert rest(stalled).startswith(b"HTTP/1.1 408 ")
        assert ends(api)


@dataclass
class Balancer:
    """Sends requests to a process that reports ready; checks all of them every 50 ms."""

    backends: list[ApiProcess]
    ready: list[ApiProcess] = field(default_factory=list)
    acknowledged: dict[int, int] = field(default_factory=dict)
    """The last acknowledged score by user."""
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self.done.wait(0.05):
                ready = []
                for api in self.backends:
                    with suppress(httpx.TransportError):
                        if client.get(f"{api.url}/readyz", headers={"Connection": "close"}).status_code == 200:
                            ready.append(api)
                self.ready = ready

    def send(self, user_id: int) -> int:
        """Sets scores and reads until the end. Returns how many requests failed."""
        failed = score = 0
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self.done.is_set():
                api = self.ready[score % len(self.ready)]
                try:
                    answer = client.post(f"{api.url}/users/{user_id}/score", json={"score": score + 1})
                    # The score before was acknowledged, perhaps by the other process.
                    assert answer.json()["previousScore"] == score, answer.text
                    assert client.get(f"{api.url}/users/{user_id}").json()["score"] == score + 1
                except (httpx.TransportError, KeyError):
                    failed += 1
                score += 1
                self.acknowledged[user_id] = score
        return failed

    def notice(self, api: ApiProcess) -> None:
        """Waits until nothing is sent to a process that is not ready."""
        eventually(lambda: api not in self.ready, what="it is not sent to")
        before = dict(self.acknowledged)
        # Threads that had chosen it before have got their response, and have chosen again.
        eventually(lambda: all(self.acknowledged[user_id] > before[user_id] + 1 for user_id in before))


def test_a_rolling_restart_fails_no_request_and_loses_no_write(settings: Settings, serve: Serve) -> None:
    backends = [serve(stop_delay_ms=int(1000 * LONG_S)) for _ in range(2)]
    users = [int(backends[0].create(f"user {number}").json()["userId"]) for number in range(4)]
    balancer = Balancer(backends, list(backends), dict.fromkeys(users, 0))
    with ThreadPoolExecutor(5) as pool:
        watching = pool.submit(balancer.watch)
        sending = [pool.submit(balancer.send, user_id) for user_id in users]
        try:
            for _ in range(2):
                for api in backends:
                    assert api.process is not None
                    api.process.terminate()
                    balancer.notice(api)
                    # Its delay was long enough.
                    api.process.send_signal(signal.SIGINT)
                    assert ends(api)
                    api.start()
                    eventually(lambda api=api: api in balancer.ready)  # type: ignore[misc]
        finally:
            balancer.done.set()
        watching.result()
        assert [each.result() for each in sending] == [0] * len(users)
    scores = {row["user_id"]: row["total_score"] for row in sql(settings, "SELECT * FROM users")}
    assert scores == balancer.acknowledged


def hanging(settings: Settings, hangs: str) -> ApiProcess:
    brief = settings.model_copy(update={"request_timeout_ms": 1000, "stop_delay_ms": 0})
    return ApiProcess(brief, "tests.hanging_stop", HANGS=hangs)


def test_a_process_that_hangs_writes_where(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    """Granian would kill it, which leaves no trace of why."""
    hanging(settings, "closing").start().stop()
    log = capfd.readouterr().err
    assert "tests/hanging_stop.py" in log, "the stack of each thread"
    assert "Killing worker" not in log


def test_a_thread_that_never_ends_does_not_delay_the_end(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    hanging(settings, "thread").start().stop()
    log = capfd.readouterr().err
    assert "hanging_stop.py" not in log
    assert "Killing worker" not in log
