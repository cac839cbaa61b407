"""CPU time and memory of process trees, from Linux's /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_s: float


def cpu_s(root: int) -> float:
    """Returns the CPU time of a process and its descendants, ended ones included, in seconds."""
    processes = _all()
    return sum(processes[pid].cpu_s for pid in _tree(root, processes) if pid in processes)


def busy_s() -> float:
    """Returns the CPU time of all cores since the start of the machine, in seconds."""
    user, nice, system, _idle, _iowait, *others = _PROC.joinpath("stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *others))) / _TICKS


def parent(pid: int) -> int:
    """Returns the pid of the parent process."""
    return _all()[pid].parent


def largest_bytes(root: int) -> int:
    """Returns the resident memory of the largest process of the tree."""
    return max(_resident(pid) for pid in _tree(root, _all()))


def _tree(root: int, processes: dict[int, _Process]) -> set[int]:
    tree, before = {root}, 0
    while len(tree) > before:
        before = len(tree)
        tree |= {pid for pid, process in processes.items() if process.parent in tree}
    return tree


def _all() -> dict[int, _Process]:
    found = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            text = folder.joinpath("stat").read_text("utf-8", "replace")
        except OSError:  # the process has just ended
            continue
        # After the name, which may contain anything.
        fields = text.rpartition(")")[2].split()
        found[int(folder.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])) / _TICKS)
    return found


def _resident(pid: int) -> int:
    return int(_PROC.joinpath(str(pid), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
