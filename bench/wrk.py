"""Runs `wrk`, the load generator. Python would be slower than the service."""

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
    """The program is missing. The text says how to install it."""


class Load(msgspec.Struct, frozen=True):
    """The results of wrk. Its quantiles include the requests that it did not send while it waited."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    refused: int
    broken: int
    late: int


def find() -> str:
    """Returns the path of the program. Raises NoWrk."""
    path = shutil.which("wrk")
    if path is None:
        raise NoWrk("wrk is not on the PATH; install it, as by: apt install wrk")
    return path


async def run(url: str, connections: int, seconds: float, **environment: object) -> Load:
    """Runs work.lua with this environment for `seconds`, which need not be a whole number."""
    values = {f"BENCH_{name.upper()}": str(value) for name, value in environment.items()}
    process = await asyncio.create_subprocess_exec(
        find(),
        *("--threads", "1", "--connections", str(connections), "--timeout", _TIMEOUT),
        # It counts in whole seconds. This ends it if this process cannot.
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
