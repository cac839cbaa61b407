"""Checks of what deploys the service: `make deploy-check`.

A check is a name and a function, listed in `CHECKS` of a module of this package, which `__main__` names. The
function raises Failed, or NotExercised where the machine lacks what it takes; otherwise the check has passed.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TOOLS = ROOT / ".venv-deploy" / "bin"
_LINES_SHOWN = 15


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

    Raises Failed, with the last lines of what it said, for another exit status than those accepted.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, "HELM_NO_PLUGINS": "1", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{Path(command[0]).name}: not done within {timeout_s:.0f} s") from None
    if done.returncode not in accept:
        said = (done.stdout + done.stderr).strip().splitlines()[-_LINES_SHOWN:]
        what = " ".join([Path(command[0]).name, *map(str, command[1:2])])
        raise Failed("\n".join([f"{what}: exit status {done.returncode}", *said]))
    return done.stdout
