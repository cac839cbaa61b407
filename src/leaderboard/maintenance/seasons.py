"""Ends seasons that are past their end, and deletes the entries of unregistered seasons."""

import asyncio
from typing import Protocol

import structlog

from leaderboard.database.boards import Boards
from leaderboard.periodic import every

_END_EVERY_S = 1.0
_DELETE_EVERY_S = 60.0
_SEASONS = 100
"""How many unregistered seasons one turn looks at."""
_BATCH = 1000
"""How many entries one statement deletes."""

_log = structlog.get_logger(__name__)


class EndsSeasons(Protocol):
    """What ends the seasons that are past their end: `service/boards.py`."""

    async def end_due(self) -> int: ...


class SeasonKeeper:
    """Ends seasons, as one process among several, and deletes what no season needs."""

    def __init__(self, service: EndsSeasons, boards: Boards) -> None:
        self._service = service
        self._boards = boards

    async def run(self) -> None:
        """Work on timers, until cancelled."""
        await asyncio.gather(
            every(_END_EVERY_S, "ending seasons", self.end_due, at_once=True),
            every(_DELETE_EVERY_S, "deleting entries of old seasons", self.delete_orphans),
        )

    async def end_due(self) -> None:
        """End every season that is past its end. Raises DatabaseUnavailable."""
        await self._service.end_due()

    async def delete_orphans(self) -> None:
        """Delete the entries of unregistered seasons, in batches. Raises DatabaseUnavailable."""
        deleted = 0
        for season_id in await self._boards.orphans(_SEASONS):
            while count := await self._boards.delete_orphans(season_id, _BATCH):
                deleted += count
        if deleted:
            _log.info("deleted the entries of old seasons", entries=deleted)
