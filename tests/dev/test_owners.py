"""A data folder has one owner at a time, and a killed owner's servers are ended by the next."""

import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from leaderboard.dev import EmbeddedError
from leaderboard.dev.process import popen_options
from tests.dev.servers import ask, gone, kill, numbers_from, owner, psql, running_in
from tests.dev.servers import postgres_in as patient_postgres_in
from tests.dev.servers import valkey_in as patient_valkey_in
from tests.system import PATIENCE_S, eventually

pytestmark = pytest.mark.slow

postgres_in = partial(patient_postgres_in, lock_timeout_s=0.2)
valkey_in = partial(patient_valkey_in, lock_timeout_s=0.2)

SECOND_OWNER = """
import sys
from pathlib import Path
from leaderboard.dev import EmbeddedError, EmbeddedValkey
try:
    EmbeddedValkey(Path(sys.argv[1])).start()
except EmbeddedError as error:
    print(error)
"""


def test_one_owner_at_a_time(data_dir: Path) -> None:
    with postgres_in(data_dir) as postgres, valkey_in(data_dir) as valkey:
        for second in (postgres_in(data_dir), valkey_in(data_dir)):
            with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
                second.start()
        process = owner(data_dir, SECOND_OWNER)
        assert f"in use by process {os.getpid()}" in process.communicate(timeout=PATIENCE_S)[0]
        assert psql(postgres, "SELECT 1") == "1"
        assert ask(valkey, "PING") == ["+PONG"]
    with valkey_in(data_dir) as next_owner:
        assert ask(next_owner, "PING") == ["+PONG"]


def test_the_next_owner_ends_the_servers_of_a_killed_one(data_dir: Path) -> None:
    process = owner(data_dir)
    postgres_pid, valkey_pid, postgres_port, valkey_port = numbers_from(process)
    kill(process)
    assert not gone(postgres_pid)
    assert not gone(valkey_pid)
    with patient_postgres_in(data_dir) as postgres, patient_valkey_in(data_dir) as valkey:
        assert gone(postgres_pid)
        assert gone(valkey_pid)
        assert (postgres.port, valkey.port) == (postgres_port, valkey_port)
        assert psql(postgres, "SELECT 1") == "1"
        assert ask(valkey, "PING") == ["+PONG"]
    assert running_in(data_dir) == []


def test_remove_ends_the_servers_of_a_killed_owner_and_deletes_the_data(data_dir: Path) -> None:
    process = owner(data_dir)
    numbers_from(process)
    postgres, valkey = postgres_in(data_dir), valkey_in(data_dir)
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


def test_an_interrupted_initdb_is_started_again(data_dir: Path) -> None:
    process = owner(data_dir)
    folder = data_dir / "postgres"
    eventually(lambda: list(folder.glob("unfinished-*/PG_VERSION")))
    kill(process)
    assert not (folder / "cluster").exists()
    (folder / "unfinished-older").mkdir()
    with patient_postgres_in(data_dir) as postgres:
        assert psql(postgres, "SELECT 1") == "1"
    assert not (folder / "unfinished-older").exists()
    eventually(lambda: running_in(data_dir) == [])


@pytest.mark.parametrize("stage", ["initdb", "running"])
def test_ctrl_c_leaves_nothing_running(data_dir: Path, stage: str) -> None:
    process = owner(data_dir)
    if stage == "initdb":
        eventually(lambda: list(data_dir.glob("postgres/unfinished-*/PG_VERSION")))
    else:
        numbers_from(process)
    os.killpg(process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=PATIENCE_S)[1]
    assert running_in(data_dir) == []
    if stage == "running":
        assert "database system is shut down" in (data_dir / "postgres" / "server.log").read_text()


def test_a_process_id_that_another_process_has_now_is_left_alone(data_dir: Path) -> None:
    with postgres_in(data_dir) as postgres:
        psql(postgres, "CREATE TABLE t AS SELECT 7 AS n")
        sleeper = subprocess.Popen(["sleep", "600"], **popen_options(postgres.account))
        try:
            for alive in (True, False):
                postgres.kill()
                lines = postgres.pid_file.read_text().splitlines()
                postgres.pid_file.write_text("\n".join([str(sleeper.pid), *lines[1:], ""]))
                assert psql(postgres.start(), "SELECT n FROM t") == "7"
                assert gone(sleeper.pid) != alive
                # From here on it is a zombie, like a killed server in a container whose init does not reap.
                os.kill(sleeper.pid, signal.SIGKILL)
                eventually(lambda: gone(sleeper.pid))
        finally:
            sleeper.wait()
