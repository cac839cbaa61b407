"""Checks of the deployment files: `make deploy-check`.

A check is a name and a function. Each module of this package has its checks in `CHECKS`, and `__main__` lists the
modules. The function raises Failed, or NotExercised if the machine lacks a program; otherwise the check has
passed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TOOLS = ROOT / ".venv-deploy" / "bin"
_LINES_SHOWN = 15
_CLEANING_UP_S = 60


class Failed(Exception):
    """The check failed; the message is the reason."""


class NotExercised(Exception):
    """The check could not run on this machine; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check. `run` returns a remark for the table, or None; it raises Failed or NotExercised."""

    name: str
    run: Callable[[], str | None]


def impossible(name: str, reason: str) -> Check:
    """Returns a check that no single machine can run, so that the table lists it with the reason."""

    def run() -> None:
        raise NotExercised(reason)

    return Check(name, run)


def find(program: str) -> str | None:
    """Returns the path of a program that runs here, or None. `.venv-deploy` takes precedence over PATH."""
    for found in (shutil.which(program, path=_TOOLS), shutil.which(program)):
        if found is None:
            continue
        try:
            subprocess.run([found, "--help"], capture_output=True, timeout=60, check=False)
        except OSError:
            # Built for another architecture.
            continue
        return found
    return None


def need(program: str) -> str:
    """Returns the path of a program. Raises NotExercised if none runs here."""
    found = find(program)
    if found is None:
        raise NotExercised(f"{program} is not installed")
    return found


def execute(*command: str | Path, timeout_s: float = 120, accept: Sequence[int] = (0,)) -> str:
    """Runs a command in the repository and returns its standard output.

    Raises Failed if the exit status is not in `accept`, with the last lines of the output, and if the command
    takes longer than `timeout_s`.
    """
    named = " ".join([Path(command[0]).name, *map(str, command[1:3])])
    environment = {**os.environ, "HELM_NO_PLUGINS": "1", "NO_COLOR": "1"}
    # A check may run make, which must not get the options of `make deploy-check`.
    environment.pop("MAKEFLAGS", None)
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _interrupt(process)
            raise Failed(f"{named}: not done within {timeout_s:.0f} s") from None
        except BaseException:
            _interrupt(process)
            raise
    if process.returncode not in accept:
        last = (output + errors).strip().splitlines()[-_LINES_SHOWN:]
        raise Failed("\n".join([f"{named}: exit status {process.returncode}", *last]))
    return output


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """Ends a command and its children with SIGINT, so that tests and scripts clean up; then with SIGKILL."""
    for number, wait_s in ((signal.SIGINT, _CLEANING_UP_S), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=wait_s)
            return


def within(seconds: float, what: str, condition: Callable[[], bool]) -> None:
    """Polls until the condition is true; OSError counts as false. Raises Failed after that many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def expect(what: str, found: object, expected: object) -> None:
    """Raises Failed unless both are equal."""
    if found != expected:
        raise Failed(f"{what}: {found}, not {expected}")
