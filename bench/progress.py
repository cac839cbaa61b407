"""Tells what is being done, and that it still is."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_SILENT_S = 5


class Progress:
    """Lines on standard output, each with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line, or more."""
        print(f"{time.monotonic() - self._started:7.1f} s  {text}", flush=True)

    @asynccontextmanager
    async def during(self, text: str) -> AsyncIterator[None]:
        """Say so now, and again some times a minute until it is done."""
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
