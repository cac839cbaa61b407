"""Clients that send slowly, stall or never read: they are disconnected, and others are not affected."""

import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from leaderboard.config import Settings
from tests.http.pressure import connect, in_flight, is_reset, memory_mb, rest
from tests.system import ApiProcess, eventually, sql

Serve = Callable[..., ApiProcess]

LIMIT_S = 1.0
"""The time limits in these tests, in seconds. A client that is not disconnected makes a test wait much longer."""
POST = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
NAME = b'{"username": "slow"}'


@pytest.fixture
def api(serve: Serve) -> ApiProcess:
    return serve(request_timeout_ms=int(1000 * LIMIT_S), idle_timeout_ms=int(1000 * LIMIT_S))


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raises the limit of open files of this process, for many connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def others_are_answered(api: ApiProcess, requests: int = 200) -> None:
    for _ in range(requests):
        assert api.client.get("/leaderboard/top/10").status_code == 200


@pytest.mark.parametrize(
    ("begun", "path"),
    [
        (b"Content-Length: 100\r\n\r\n" + NAME, b"/users"),
        (b"Transfer-Encoding: chunked\r\n\r\n14\r\n" + NAME + b"\r\n", b"/users"),
        (b"Content-Length: 100\r\n\r\n", b"/users/1/score"),
        (b"Content-Length: 100\r\n\r\n", b"/no/such/path"),
    ],
    ids=["length", "chunked", "nothing", "no such path"],
)
def test_a_body_that_does_not_end_gets_408(api: ApiProcess, begun: bytes, path: bytes) -> None:
    started = time.monotonic()
    with connect(api, POST.replace(b"/users", path) + begun) as connection:
        answer = rest(connection)
    assert time.monotonic() - started >= LIMIT_S
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["code"] == "request_timeout"
    assert api.top(10) == []
    eventually(lambda: in_flight(api) == 1, what="only who asks for the metrics is left")


def is_cut_off(connection: socket.socket, data: bytes) -> bool:
    """Sends `data` repeatedly, with pauses. Returns True if the server closes the connection."""
    started = time.monotonic()
    try:
        while time.monotonic() - started < 30 * LIMIT_S:
            connection.sendall(data)
            time.sleep(0.05)
    except ConnectionError:
        return True
    return False


def test_a_body_sent_byte_by_byte_gets_no_more_time(api: ApiProcess) -> None:
    with connect(api, POST + b"Content-Length: 1000\r\n\r\n") as connection:
        assert is_cut_off(connection, b" ")


def test_a_body_that_does_not_follow_100_continue_gets_408(api: ApiProcess) -> None:
    with connect(api, POST + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n") as connection:
        answers = rest(connection)
    assert answers.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ")
    eventually(lambda: in_flight(api) == 1, 5, "only who asks for the metrics is left")


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 100\r\n\r\n", b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"],
    ids=["length", "expect"],
)
def test_a_get_does_not_wait_for_a_body(api: ApiProcess, body: bytes) -> None:
    with connect(api, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + body) as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Half: ", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"],
    ids=["silent", "half a line", "half a head", "kept alive"],
)
def test_a_connection_without_a_request_is_closed(api: ApiProcess, sent: bytes) -> None:
    with connect(api, sent) as connection:
        # Raises if the connection stays open.
        rest(connection)


def test_headers_sent_byte_by_byte_are_cut_off(api: ApiProcess) -> None:
    with connect(api, b"GET /livez HTTP/1.1\r\n") as connection:
        assert is_cut_off(connection, b"X-More: y\r\n")


@pytest.mark.usefixtures("many_files")
def test_a_thousand_idle_connections_do_not_affect_others(serve: Serve) -> None:
    api = serve(workers=1)
    others_are_answered(api)
    before = memory_mb(api)
    with ExitStack() as stack:
        for number in range(1100):
            head = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
            stack.enter_context(connect(api, [b"", head, head + b"\r\n"][number % 3]))
        others_are_answered(api)
        # A further connection is served too, so this is not the maximum.
        with connect(api, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as newcomer:
            assert rest(newcomer).startswith(b"HTTP/1.1 200 ")
        assert memory_mb(api) - before < 60


def test_clients_that_never_read_are_disconnected_and_use_little_memory(settings: Settings, serve: Serve) -> None:
    sql(settings, "INSERT INTO users (user_name) SELECT 'player ' || i FROM generate_series(1, 60000) AS i")
    # Long enough for all of them to be active at once.
    api = serve(request_timeout_ms=3000, queue_limit=1000)
    others_are_answered(api)
    assert len(api.client.get("/leaderboard/top/60000").content) > 4_000_000
    before = peak = memory_mb(api)
    with ExitStack() as stack:
        for number in range(60):
            request = b"GET /leaderboard/top/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (59_000 + number)
            stack.enter_context(connect(api, request, buffer=4096))

        def are_given_up() -> bool:
            nonlocal peak
            others_are_answered(api, 20)
            peak = max(peak, memory_mb(api))
            return in_flight(api) == 1

        eventually(are_given_up, what="each is given up after its deadline")
        # Each response has 4 to 5 MB, and no two are the same.
        assert peak - before < 150


TOP = b"GET /leaderboard/top/%d HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports what a client has acknowledged")
@pytest.mark.parametrize(("n", "requests"), [(300, 300), (8000, 3)], ids=["pipelined", "large"])
def test_a_connection_whose_client_never_reads_is_reset(
    settings: Settings, api: ApiProcess, n: int, requests: int
) -> None:
    sql(settings, "INSERT INTO users (user_name) SELECT 'player ' || i FROM generate_series(1, 8000) AS i")
    eventually(lambda: len(api.top(n)) == n)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(api, TOP % n * requests, buffer=4096)) for _ in range(20)]
        eventually(lambda: all(is_reset(client) for client in clients), 30, "their connections are ended")
    assert api.client.get("/livez").status_code == 200


def unsent(api: ApiProcess) -> int:
    """Returns the maximum of the bytes that the kernel buffers for one client."""
    port = f":{api.settings.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    return max(int(line[4].partition(":")[0], 16) for line in lines if line[1].endswith(port))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
def test_the_kernel_buffers_little_for_a_client_that_never_reads(settings: Settings, serve: Serve) -> None:
    api = serve()
    sql(settings, "INSERT INTO users (user_name) SELECT 'player ' || i FROM generate_series(1, 300) AS i")
    eventually(lambda: len(api.top(300)) == 300)
    held = [0]

    def full() -> bool:
        held.append(unsent(api))
        return held[-1] > 0 and held[-50:] == [held[-1]] * 50

    with connect(api, TOP % 300 * 300, buffer=4096):
        eventually(full, 30, "nothing more is sent")
        assert held[-1] < 1_000_000


def test_a_client_that_reads_slowly_but_steadily_gets_everything(settings: Settings, serve: Serve) -> None:
    """It reads for about three times as long as a client may read nothing."""
    limit_s = 3
    api = serve(idle_timeout_ms=1000 * limit_s)
    sql(settings, "INSERT INTO users (user_name) SELECT 'player ' || i FROM generate_series(1, 8000) AS i")
    eventually(lambda: len(api.top(8000)) == 8000)
    last = (TOP % 300).replace(b"Host: x", b"Host: x\r\nConnection: close")
    received = b""
    started = time.monotonic()
    with connect(api, TOP % 300 * 20 + TOP % 8000 + TOP % 300 * 19 + last, buffer=4096) as client:
        while data := client.recv(8192):
            received += data
            # Not to wait for a condition: this is the speed of the client.
            time.sleep(0.05)
    assert time.monotonic() - started > 2 * limit_s
    assert received.count(b"HTTP/1.1 200 ") == 41
    assert received.count(b'"rank":300,') == 41
    assert received.count(b'"rank":8000,') == 1
    assert received.endswith(b"}]}")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_a_gigabyte_is_refused_and_not_buffered(api: ApiProcess, chunked: bool) -> None:
    before = memory_mb(api)
    mebibyte = b" " * 2**20
    head = POST + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 1073741824\r\n\r\n")
    with connect(api, head) as connection:
        connection.settimeout(2)
        sent = 0
        try:
            for _ in range(1024):
                connection.sendall(b"100000\r\n" + mebibyte + b"\r\n" if chunked else mebibyte)
                sent += 1
        except OSError:
            pass
        assert sent < 20, "the body is not read on"
    assert memory_mb(api) - before < 30
    with connect(api, head + (b"100000\r\n" if chunked else b"") + b" " * 20_000) as connection:
        assert b'"code":"body_too_large"' in rest(connection)
