"""Prints what a benchmark is doing, and repeats it while that goes on."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_SILENT_S = 5


class Progress:
    """Prints lines with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Prints one or more lines."""
        print(f"{time.monotonic() - self._started:7.1f} s  {text}", flush=True)

    @asynccontextmanager
    async def during(self, text: str) -> AsyncIterator[None]:
        """Prints `text` now, and again every few seconds until the end."""
        self.say(text)
        ticker = asyncio.create_task(self._repeat(text))
        try:
            yield
        finally:
            ticker.cancel()
            with suppress(asyncio.CancelledError):
                await ticker

    async def _repeat(self, text: str) -> None:
        while True:
            await asyncio.sleep(_SILENT_S)
            self.say(f"  … {text}")
