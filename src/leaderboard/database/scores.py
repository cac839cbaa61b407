"""Sets scores, many in one statement."""

from collections.abc import Sequence

import asyncpg
import msgspec

from leaderboard.database.connections import Connections
from leaderboard.database.idempotency_keys import IdempotencyKey
from leaderboard.database.rows import Committed, committed_position
from leaderboard.database.sql import load_queries
from leaderboard.database.writing import NO_LIMIT, NotWritten, write
from leaderboard.model import ScoreSet
from leaderboard.tuning import WriteTuning


class NewScore(msgspec.Struct, frozen=True):
    """A score to set."""

    user_id: int
    total_score: int
    key: IdempotencyKey | None = None


class Scores:
    """Writes the scores in the table `users`."""

    def __init__(self, connections: Connections, tuning: WriteTuning) -> None:
        self._connections = connections
        self._tuning = tuning
        self._set_scores = load_queries("scores")["set_scores"]

    async def set(self, batch: Sequence[NewScore]) -> Committed[ScoreSet | NotWritten]:
        """Set scores in one transaction; a result is a ScoreSet, or UNKNOWN_USER or LOCKED.

        Several scores of one user are chained: each has the one before as its previous score, and only the last is
        written. Rows that another transaction has locked are skipped. Raises IdempotencyKeyInUse if an item's key
        exists already or is being inserted, and what `write` raises.
        """
        last: dict[int, int] = {}
        keys: list[tuple[str, str, str, int, int | None]] = []
        for item in batch:
            if item.key is not None:
                key = item.key
                keys.append((key.key, key.caller, key.fingerprint, item.user_id, last.get(item.user_id)))
            last[item.user_id] = item.total_score
        key_columns = zip(*keys, strict=True) if keys else [()] * 5
        lock_wait = f"{self._tuning.unique_wait_ms}ms" if keys else NO_LIMIT
        rows = await write(
            self._connections,
            self._tuning.attempts,
            self._set_scores,
            list(last),
            list(last.values()),
            lock_wait,
            *map(list, key_columns),
        )
        return Committed(_results(batch, rows), committed_position(rows))


def _results(batch: Sequence[NewScore], rows: Sequence[asyncpg.Record]) -> list[ScoreSet | NotWritten]:
    found = {row["user_id"]: row for row in rows}
    previous = {row["user_id"]: row["previous_score"] for row in rows}
    results: list[ScoreSet | NotWritten] = []
    for item in batch:
        row = found[item.user_id]
        if row["previous_score"] is None:
            results.append(NotWritten.LOCKED if row["known"] else NotWritten.UNKNOWN_USER)
            continue
        results.append(
            ScoreSet(
                item.user_id,
                row["user_name"],
                row["image_url"],
                item.total_score,
                previous[item.user_id],
                row["external_id"],
            )
        )
        previous[item.user_id] = item.total_score
    return results
