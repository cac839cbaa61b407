"""A low limit of open files: fewer clients are served at a time, the others wait, and no process spins."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from leaderboard.config import Settings
from tests.http.pressure import connect, open_files, rest
from tests.system import ROOT, ApiProcess, environment, eventually

Serve = Callable[..., ApiProcess]

LIMIT = 200
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_clients_never_use_the_last_open_file(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    """Otherwise the server would retry accept in a loop, and could not open a connection to PostgreSQL."""
    api = serve(open_files=LIMIT)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(api, LIVE)) for _ in range(240)]
        served, others = clients[:120], clients[120:]
        for client in served:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert open_files(api) < LIMIT - 12, "files are left for connections to PostgreSQL"
        for client in served:
            client.close()
        for client in others:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 "), "waiting clients are served"
        assert open_files(api) < LIMIT - 12
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "MAX_CONNECTIONS" in line]
    assert '"level": "warning"' in line
    assert f'"open_files": {LIMIT}' in line
    assert '"max_connections": 4096' in line
    with connect(api, LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as newcomer:
        assert rest(newcomer).startswith(b"HTTP/1.1 200 ")


def test_a_limit_too_low_for_clients_is_an_error_at_the_start(settings: Settings) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 70 && exec "$@"', "sh", sys.executable, "-m", "leaderboard", "serve"],
        env=environment(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert "limit of open files is 70" in line
    assert "ulimit -n" in line


def test_a_limit_of_1024_files_serves_most_clients(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    serve(open_files=1024, max_connections=900)
    assert "MAX_CONNECTIONS" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports how many wait")
def test_clients_waiting_to_be_accepted_are_logged(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    api = serve(max_connections=16, idle_timeout_ms=1000)
    said = ""

    def logged() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "clients wait to be accepted" in said

    with ExitStack() as stack:
        # Idle connections that are closed are replaced by others, which are idle too.
        for _ in range(120):
            stack.enter_context(connect(api))
        eventually(logged, 30)
