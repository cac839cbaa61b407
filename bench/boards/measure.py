"""Runs the parts of a plan, on servers of their own."""

import os
import time

from bench import processes
from bench.boards.fill import connected
from bench.boards.large import measure_large
from bench.boards.many import measure_many
from bench.boards.plan import DEPTH, ENDS, IDLE, MEMORY, SPREAD, WARM, Plan
from bench.boards.result import Result
from bench.progress import Progress
from bench.servers import servers
from leaderboard.config import Settings


async def measure(plan: Plan, progress: Progress) -> Result:
    """Measures all parts of the plan. Raises WrongAnswer."""
    began, busy, ours = time.monotonic(), processes.busy_s(), processes.cpu_s(os.getpid())
    many = large = None
    postgres = ""
    if {SPREAD, WARM, IDLE, MEMORY}.intersection(plan.parts):
        with servers(log_level="error", stop_delay_ms=0) as settings:
            postgres = await _version(settings, progress)
            many = await measure_many(settings, plan, progress)
    if {ENDS, DEPTH}.intersection(plan.parts):
        with servers(log_level="error", stop_delay_ms=0) as settings:
            postgres = await _version(settings, progress)
            large = await measure_large(settings, plan, progress)
    took_s = time.monotonic() - began
    others = processes.busy_s() - busy - (processes.cpu_s(os.getpid()) - ours)
    return Result(plan, postgres, took_s, max(0.0, others) / took_s / (os.cpu_count() or 1), many, large)


async def _version(settings: Settings, progress: Progress) -> str:
    """Returns the version of PostgreSQL."""
    async with connected(settings, progress) as filler:
        return str(await filler.value("version"))
