"""Starts the development servers, also in a process of their own, and asks them and the machine about them."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey
from leaderboard.dev.process import command_line
from tests.system import PATIENCE_S, own_ports

ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root runs PostgreSQL as another account")

POSTGRES = [None, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
"""None is the wheel's; the others are installed on this machine."""
VALKEY = [
    None,
    *(path for path in [Path("/usr/bin/redis-server"), Path("/usr/bin/valkey-server")] if path.exists()),
]

postgres_in = partial(EmbeddedPostgres, durable=False, ports=own_ports())
"""A PostgreSQL with its data in a folder."""
valkey_in = partial(EmbeddedValkey, ports=own_ports())
"""A Valkey with its data in a folder."""

OWNER = """
import json, sys, time
from pathlib import Path
from tests.dev.servers import postgres_in, valkey_in
folder = Path(sys.argv[1])
with postgres_in(folder) as postgres, valkey_in(folder) as valkey:
    print(json.dumps([postgres.pid, valkey.pid, postgres.port, valkey.port]), flush=True)
    time.sleep(600)
"""
"""A program that starts both servers, prints their process ids and ports, and keeps them for ten minutes."""


def owner(data_dir: Path, script: str = OWNER) -> subprocess.Popen[str]:
    """Start a process that owns the data folder."""
    # SIGINT is ignored in processes that a shell starts in the background.
    take_sigint = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{take_sigint}\n{script}", str(data_dir)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def numbers_from(process: subprocess.Popen[str]) -> list[int]:
    """Read what OWNER prints when its servers are ready."""
    assert process.stdout
    numbers = json.loads(process.stdout.readline())
    assert isinstance(numbers, list)
    return numbers


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def gone(pid: int | None) -> bool:
    return pid is None or command_line(pid) == ""


def running_in(folder: Path) -> list[int]:
    """Return every process that has a path below `folder` in its command line or as its working directory."""
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
    """Return what psql prints for a statement. Raises AssertionError with its error."""
    connection = f"host={postgres.host} port={postgres.port} user={postgres.user} dbname='{database}'"
    done = subprocess.run(
        [str(postgres.programs / "psql"), connection, "-XAtw", "-v", "ON_ERROR_STOP=1", "-c", sql],
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
    """Return each command's reply, strings without their length, after an AUTH."""
    replies = []
    address = (valkey.host, valkey.port)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection, connection.makefile("rb") as lines:
        for command in (f"AUTH {valkey.password if password is None else password}", *commands):
            connection.sendall(command.encode() + b"\r\n")
            reply = lines.readline().decode().strip()
            replies.append(lines.readline().decode().strip() if reply[0] == "$" and reply != "$-1" else reply)
    return replies[1:]
