"""The CPU time and memory of trees of processes, from Linux's /proc."""

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
    """What a process and its descendants have used, and those of them that have ended and been waited for."""
    processes = _all()
    return sum(processes[pid].cpu_s for pid in _tree(root, processes) if pid in processes)


def busy_s() -> float:
    """What all the machine's cores have used since it was started, for us or for others."""
    user, nice, system, _idle, _iowait, *others = _PROC.joinpath("stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *others))) / _TICKS


def parent(pid: int) -> int:
    """The process that started this one."""
    return _all()[pid].parent


def largest_bytes(root: int) -> int:
    """The resident memory of that one in the tree which has most."""
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
        except OSError:  # it has just ended
            continue
        # After the name, which may contain anything.
        fields = text.rpartition(")")[2].split()
        found[int(folder.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])) / _TICKS)
    return found


def _resident(pid: int) -> int:
    return int(_PROC.joinpath(str(pid), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
