"""`wrk`, the load generator: a program of its own, because Python could not ask as fast as is answered."""

import asyncio
import math
import os
import shutil
import signal
from pathlib import Path

import msgspec

_SCRIPT = Path(__file__).with_name("work.lua")
_TIMEOUT = "30s"


class NoWrk(Exception):
    """The program is missing; says how to get it."""


class Load(msgspec.Struct, frozen=True):
    """What wrk saw. It corrects its quantiles for the requests that it would have sent, had it not waited."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    refused: int
    broken: int
    late: int


def find() -> str:
    """Where it is. Raises NoWrk."""
    path = shutil.which("wrk")
    if path is None:
        raise NoWrk("wrk is not on the PATH; install it, as by: apt install wrk")
    return path


async def run(url: str, connections: int, seconds: float, **environment: object) -> Load:
    """Send what work.lua makes of this environment for so long, which need not be whole seconds."""
    values = {f"BENCH_{name.upper()}": str(value) for name, value in environment.items()}
    process = await asyncio.create_subprocess_exec(
        find(),
        *("--threads", "1", "--connections", str(connections), "--timeout", _TIMEOUT),
        # It counts in whole seconds: this is only for when nobody is left to tell it.
        *("--duration", f"{math.ceil(seconds) + 5}s", "--script", str(_SCRIPT), url),
        env={**os.environ, **values},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.sleep(seconds)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"wrk ended with {process.returncode}: {output.decode()}")
    return msgspec.json.decode(output.splitlines()[-1], type=Load)
