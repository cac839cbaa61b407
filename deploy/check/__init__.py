"""Checks of what deploys the service: `make deploy-check`.

A check is a name and a function, listed in `CHECKS` of a module of this package, which `__main__` names. The
function raises Failed, or NotExercised where the machine lacks what it takes; otherwise the check has passed.
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
    """What was checked is wrong; says how."""


class NotExercised(Exception):
    """The check could not be made on this machine; says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `run` returns a remark for the table, or nothing; it raises Failed or NotExercised."""

    name: str
    run: Callable[[], str | None]


def impossible(name: str, reason: str) -> Check:
    """Something that no machine like this can check, so that the table says so."""

    def run() -> None:
        raise NotExercised(reason)

    return Check(name, run)


def find(program: str) -> str | None:
    """The path of a program that runs here: the one of `make deploy-check`, or else the one on the path."""
    for found in (shutil.which(program, path=_TOOLS), shutil.which(program)):
        if found is None:
            continue
        try:
            subprocess.run([found, "--help"], capture_output=True, timeout=60, check=False)
        except OSError:
            # For another kind of machine.
            continue
        return found
    return None


def need(program: str) -> str:
    """The path of a program. Raises NotExercised if there is none that runs here."""
    found = find(program)
    if found is None:
        raise NotExercised(f"{program} is not installed")
    return found


def execute(*command: str | Path, timeout_s: float = 120, accept: Sequence[int] = (0,)) -> str:
    """Run a command in the repository and return its standard output.

    Raises Failed, with the last lines of what it said, for another exit status than those accepted, and when it
    takes longer than `timeout_s`.
    """
    named = " ".join([Path(command[0]).name, *map(str, command[1:3])])
    environment = {**os.environ, "HELM_NO_PLUGINS": "1", "NO_COLOR": "1"}
    # The options of `make deploy-check` are not those of a make that a check runs.
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
        said = (output + errors).strip().splitlines()[-_LINES_SHOWN:]
        raise Failed("\n".join([f"{named}: exit status {process.returncode}", *said]))
    return output


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """End a command and what it started as Ctrl-C does, so that tests and scripts remove what they made."""
    for number, wait_s in ((signal.SIGINT, _CLEANING_UP_S), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=wait_s)
            return


def within(seconds: float, what: str, condition: Callable[[], bool]) -> None:
    """Try until the condition holds; OSError means that it does not. Raises Failed."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)
