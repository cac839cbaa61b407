"""Keeps the change log short."""

from leaderboard.database.change_log import ChangeLog
from leaderboard.periodic import every
from leaderboard.tuning import LogTuning


class LogPruner:
    """Deletes old rows of the change log; several processes may do so at the same time."""

    def __init__(self, change_log: ChangeLog, tuning: LogTuning) -> None:
        self._change_log = change_log
        self._tuning = tuning

    async def run(self) -> None:
        """Prune on a timer, until cancelled."""
        await every(self._tuning.prune_every_s, "pruning the change log", self.prune)

    async def prune(self) -> None:
        """Delete all rows that may be deleted, in batches. Raises DatabaseUnavailable."""
        await self._change_log.reset()
        while await self._change_log.prune(self._tuning) == self._tuning.prune_batch:
            pass
