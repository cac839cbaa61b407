"""Work on a timer goes on after an error."""

import asyncio

import pytest
from structlog.testing import capture_logs

from leaderboard.errors import CacheUnavailable, DatabaseUnavailable
from leaderboard.periodic import every
from tests.system import PATIENCE_S

pytestmark = pytest.mark.anyio


async def test_work_goes_on_after_any_error() -> None:
    errors = [DatabaseUnavailable("away"), CacheUnavailable("away"), ValueError("a fault of the program")]
    came_again = asyncio.Event()

    async def work() -> None:
        if errors:
            raise errors.pop(0)
        came_again.set()

    with capture_logs() as logs:
        timer = asyncio.create_task(every(0.001, "the work", work, at_once=True))
        again = asyncio.create_task(came_again.wait())
        await asyncio.wait({timer, again}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        for task in (timer, again):
            task.cancel()
        await asyncio.gather(timer, again, return_exceptions=True)
    assert came_again.is_set()
    assert [line["event"] for line in logs] == ["the work failed"], "an absent store is not logged here"
