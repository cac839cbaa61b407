"""The use cases of one process, wired to its stores."""

from dataclasses import dataclass

from leaderboard.batching import QueueLimits
from leaderboard.database.database import Database
from leaderboard.health import Health
from leaderboard.maintenance.idempotency_keys import KeyLimiter
from leaderboard.metrics import Metrics
from leaderboard.service.boards import BoardService
from leaderboard.service.cache_reads import CacheReads
from leaderboard.service.entries import EntryWrites
from leaderboard.service.idempotency import Idempotency
from leaderboard.service.reads import Reads
from leaderboard.service.scores import Scores
from leaderboard.service.user_ids import UserIds
from leaderboard.service.users import UserService
from leaderboard.service.writes import Writes
from leaderboard.sync.visibility import Visibility
from leaderboard.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Service:
    """What HTTP and the command line call."""

    reads: Reads
    writes: Writes
    boards: BoardService
    entries: EntryWrites
    scores: Scores
    users: UserService

    @classmethod
    def build(
        cls,
        database: Database,
        cache: CacheReads,
        visibility: Visibility,
        health: Health,
        key_limiter: KeyLimiter,
        metrics: Metrics,
        limits: QueueLimits,
        tuning: Tuning,
        *,
        read_connections: int,
        stale_reads: bool,
    ) -> "Service":
        """Wire the parts. Reads use `read_connections` of PostgreSQL's at the same time, three at least."""
        idempotency = Idempotency(database.idempotency_keys, visibility, health, key_limiter, limits)
        user_ids = UserIds(database, visibility, health, metrics, limits, tuning.remembered_ids)
        boards = BoardService(database, visibility, health, user_ids)
        writes = Writes(database, visibility, health, idempotency, user_ids, metrics, limits, tuning.writes)
        reads = Reads(
            database,
            cache,
            visibility,
            health,
            metrics,
            user_ids,
            limits,
            connections=read_connections,
            stale_reads=stale_reads,
        )
        entries = EntryWrites(
            database, boards, visibility, health, idempotency, user_ids, metrics, limits, tuning.writes
        )
        users = UserService(database, visibility, health, user_ids, writes)
        return cls(reads, writes, boards, entries, Scores(reads, writes, entries), users)

    async def close(self) -> None:
        """Finish what was begun."""
        await self.reads.close()
        await self.writes.close()
        await self.entries.close()
