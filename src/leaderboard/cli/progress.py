"""Shows the progress of an import: a bar on a terminal, otherwise a line every two seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from leaderboard import importing

_SECONDS_BETWEEN_LINES = 2.0


@contextlib.contextmanager
def progress_display() -> Iterator[Callable[[importing.Progress], None]]:
    """Yield a function that shows the progress it is called with."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _bars(bar)


class _StageClock:
    """Measures the seconds since the present stage began: since the last progress of the one before."""

    def __init__(self) -> None:
        self._stage = ""
        self._stage_began = self._last_call = time.monotonic()

    def elapsed_s(self, stage: str) -> float:
        if stage != self._stage:
            self._stage, self._stage_began = stage, self._last_call
        self._last_call = time.monotonic()
        return max(self._last_call - self._stage_began, 0.001)


def _bars(bar: Progress) -> Callable[[importing.Progress], None]:
    clock = _StageClock()
    tasks: dict[str, TaskID] = {}

    def show(progress: importing.Progress) -> None:
        speed = progress.rows / clock.elapsed_s(progress.stage)
        if progress.stage not in tasks:
            tasks[progress.stage] = bar.add_task(progress.stage, rows=0, speed=0.0)
        bar.update(
            tasks[progress.stage],
            total=progress.total,
            completed=progress.done,
            rows=progress.rows,
            speed=speed,
        )

    return show


def _lines() -> Callable[[importing.Progress], None]:
    clock = _StageClock()
    shown = time.monotonic()

    def show(progress: importing.Progress) -> None:
        nonlocal shown
        elapsed_s = clock.elapsed_s(progress.stage)
        finished = progress.done == progress.total
        if not finished and time.monotonic() - shown < _SECONDS_BETWEEN_LINES:
            return
        shown = time.monotonic()
        line = f"{progress.stage}: {progress.rows:,} rows, {progress.rows / elapsed_s:,.0f} rows/s"
        if progress.total and not finished:
            left_s = elapsed_s * (progress.total - progress.done) / max(progress.done, 1)
            line += f", {progress.done / progress.total:.0%}, {left_s:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return show
