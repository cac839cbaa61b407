"""Runs programs in a clean environment and, for root, as another account."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess
from types import MappingProxyType
from typing import Any, NamedTuple

ENVIRONMENT = MappingProxyType({"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"})
"""The environment of all programs started here.

The caller's PG*, LD_* and locale variables must not reach the servers, because their messages are parsed.
"""


class Account(NamedTuple):
    """A user and group of this machine, by number."""

    uid: int
    gid: int


def popen_options(account: Account | None) -> dict[str, Any]:
    """Return arguments for Popen that run a program as `account`, or as the caller for None."""
    as_account = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
    # Another account might not be allowed to enter the caller's working directory.
    return {"cwd": "/", "env": dict(ENVIRONMENT), "stdin": DEVNULL, **as_account}


def run(command: list[str], account: Account | None = None, **variables: str) -> CompletedProcess[str]:
    """Run a program to its end, for at most 60 s, and capture its output.

    `variables` are added to its environment.
    """
    options = popen_options(account)
    options["env"] |= variables
    return subprocess.run(  # noqa: S603
        command, check=False, capture_output=True, text=True, errors="surrogateescape", timeout=60, **options
    )


def may_enter(account: Account, folder: Path) -> bool:
    """Return whether `account` may enter `folder`."""
    return run(["/bin/sh", "-c", 'cd -- "$0"', str(folder)], account).returncode == 0


def command_line(pid: int) -> str:
    """Return a process's command line, or an empty string for a zombie or a missing process."""
    if not Path("/proc/self").exists():
        return run(["ps", "-ww", "-o", "command=", "-p", str(pid)]).stdout
    with suppress(FileNotFoundError, ProcessLookupError):
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    return ""
