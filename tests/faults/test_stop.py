"""Being told to stop: in order, at once, once or twice, alone or with the terminal's whole process group."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest

from leaderboard.config import Settings
from tests.faults.pressure import connect, in_flight, locked, rest
from tests.system import ApiProcess, eventually, sql

Serve = Callable[..., ApiProcess]


@pytest.mark.parametrize("how", ["ctrl-c", "group", "process"])
def test_it_stops_at_once(serve: Callable[..., ApiProcess], how: str) -> None:
    """Granian's worker hung until it was killed, 4 s later, when it was told twice: 1 time in 20 by Ctrl-C."""
    for _ in range(5):
        api = serve(workers=2)
        assert api.create(f"user {time.monotonic()}").status_code == 201
        assert api.process is not None
        started = time.monotonic()
        match how:
            case "ctrl-c":
                os.killpg(api.process.pid, signal.SIGINT)
            case "group":
                os.killpg(api.process.pid, signal.SIGTERM)
            case "process":
                api.process.terminate()
        assert api.process.wait(10) == 0
        assert time.monotonic() - started < 3
        group = api.process.pid
        eventually(lambda group=group: not alive(group), 2, "none of its processes is left")  # type: ignore[misc]
        api.process = None


def test_told_twice_in_the_midst_of_a_write_it_answers_and_stops(settings: Settings, serve: Serve) -> None:
    """As by an impatient Ctrl-C. The write waits until both have arrived."""
    api = serve()
    assert api.create("ada").status_code == 201
    assert api.process is not None
    with ThreadPoolExecutor(1) as pool:
        with locked(settings):
            write = pool.submit(api.set, 1, 5)
            eventually(lambda: in_flight(api) == 2, 5, "the write is under way")
            started = time.monotonic()
            for _ in range(2):
                os.killpg(api.process.pid, signal.SIGINT)
                # Not for a condition: two signals at once are one.
                time.sleep(0.1)
        assert write.result().status_code == 200
        assert api.process.wait(10) == 0
        assert time.monotonic() - started < 3
    api.process = None


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def fresh(api: ApiProcess, method: str, path: str, **more: object) -> httpx.Response:
    """Asked on a connection of its own."""
    with httpx.Client(base_url=api.url, timeout=10) as client:
        return client.request(method, path, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_on_sigterm_it_says_so_goes_on_for_a_while_and_ends_in_order(serve: Serve, workers: int) -> None:
    api = serve(stop_delay_ms=1500, workers=workers)
    assert api.client.get("/livez").headers.get("connection") is None
    assert api.process is not None
    started = time.monotonic()
    api.process.terminate()
    eventually(lambda: fresh(api, "GET", "/readyz").json()["status"] == "stopping", 0.5)
    number = 0
    while time.monotonic() < started + 1.2:
        number += 1
        ready = fresh(api, "GET", "/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        assert ready.headers["connection"] == "close"
        assert fresh(api, "GET", "/livez").status_code == 200
        created = fresh(api, "POST", "/users", json={"username": f"late {number}"})
        assert (created.status_code, created.headers["connection"]) == (201, "close")
        assert fresh(api, "GET", "/leaderboard/top/10").status_code == 200
    # One that was open before is told as well.
    assert api.client.get("/leaderboard/top/10").headers["connection"] == "close"
    assert api.process.wait(5) == 0
    assert 1.5 <= time.monotonic() - started < 3
    assert sql(api.settings, "SELECT count(*) FROM users")[0]["count"] == number
    api.process = None


def test_sigint_to_the_main_process_alone_has_no_delay(serve: Serve) -> None:
    api = serve(stop_delay_ms=20_000, workers=2)
    assert api.process is not None
    started = time.monotonic()
    api.process.send_signal(signal.SIGINT)
    assert api.process.wait(10) == 0
    assert time.monotonic() - started < 3
    api.process = None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_while_workers_are_starting_it_stops(serve: Serve, number: signal.Signals) -> None:
    """A worker that had just been forked took no notice, and was killed after all that it might have needed."""
    for _ in range(4):
        # One of them is ready, the others are perhaps not.
        api = serve(stop_delay_ms=0, workers=6)
        assert api.process is not None
        started = time.monotonic()
        api.process.send_signal(number)
        assert api.process.wait(10) == 0
        assert time.monotonic() - started < 5
        api.process = None


def test_what_is_under_way_is_finished(settings: Settings, serve: Serve) -> None:
    api = serve()
    user_id = int(api.create("ada").json()["userId"])
    assert api.process is not None
    with ThreadPoolExecutor(2) as pool:
        with locked(settings):
            write = pool.submit(fresh, api, "POST", f"/users/{user_id}/score", json={"score": 7})
            eventually(lambda: in_flight(api) == 2, 2)
            api.process.terminate()
            eventually(lambda: not accepts(api), 2, "it accepts no more")
        answer = write.result()
    assert (answer.status_code, answer.json()["score"]) == (200, 7)
    assert api.process.wait(5) == 0
    api.process = None


def accepts(api: ApiProcess) -> bool:
    try:
        return fresh(api, "GET", "/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_a_client_that_stalls_does_not_hold_up_the_end(serve: Serve) -> None:
    api = serve(request_timeout_ms=1000)
    assert api.process is not None
    head = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    with connect(api, head) as stalled, connect(api, b"GET / HT"), connect(api):
        eventually(lambda: in_flight(api) == 2, 2)
        started = time.monotonic()
        api.process.terminate()
        assert rest(stalled).startswith(b"HTTP/1.1 408 ")
        assert api.process.wait(10) == 0
        # Not killed in the end, which would be 2 s after its deadline.
        assert time.monotonic() - started < 1 + 1.5
    api.process = None


@dataclass
class Balancer:
    """Sends requests to whichever process says that it is ready, as seen every 50 ms."""

    backends: list[ApiProcess]
    ready: list[ApiProcess] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        with httpx.Client(timeout=2) as client:
            while not self.done.wait(0.05):
                ready = []
                for api in self.backends:
                    with suppress(httpx.TransportError):
                        if client.get(f"{api.url}/readyz", headers={"Connection": "close"}).status_code == 200:
                            ready.append(api)
                self.ready = ready

    def send(self, number: int) -> tuple[int, int]:
        """Set scores and read until the end; how many requests failed, and how many scores were acknowledged."""
        failed = score = 0
        with httpx.Client(timeout=10) as client:
            while not self.done.is_set():
                api = self.ready[score % len(self.ready)]
                try:
                    answer = client.post(f"{api.url}/users/{number}/score", json={"score": score + 1})
                    # The one before was acknowledged, perhaps by the other process.
                    assert answer.json()["previousScore"] == score, answer.text
                    assert client.get(f"{api.url}/users/{number}").json()["score"] == score + 1
                except (httpx.TransportError, KeyError):
                    failed += 1
                score += 1
        return failed, score


def test_processes_that_are_rolled_fail_no_request_and_lose_no_write(settings: Settings, serve: Serve) -> None:
    backends = [serve(stop_delay_ms=400), serve(stop_delay_ms=400)]
    users = [int(backends[0].create(f"user {number}").json()["userId"]) for number in range(8)]
    balancer = Balancer(backends, list(backends))
    with ThreadPoolExecutor(10) as pool:
        watching = pool.submit(balancer.watch)
        sending = [pool.submit(balancer.send, user_id) for user_id in users]
        try:
            for _ in range(3):
                for api in backends:
                    assert api.process is not None
                    api.process.terminate()
                    assert api.process.wait(10) == 0
                    api.process = None
                    api.start()
                    eventually(lambda api=api: api in balancer.ready, 5)  # type: ignore[misc]
        finally:
            balancer.done.set()
        watching.result()
        outcomes = [each.result() for each in sending]
    assert [failed for failed, _ in outcomes] == [0] * len(users)
    scores = {row["user_id"]: row["total_score"] for row in sql(settings, "SELECT * FROM users")}
    assert scores == {user_id: score for user_id, (_, score) in zip(users, outcomes, strict=True)}
    assert sum(score for _, score in outcomes) > 100
