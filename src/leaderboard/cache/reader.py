"""Answers queries from this process's replica of the cache, after asking Redis whether it may be read."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from leaderboard.cache.format import decode_delta, parse_epoch
from leaderboard.cache.replica import Replica
from leaderboard.cache.scripts import Call
from leaderboard.cache.state import Export, is_complete
from leaderboard.cache.store import CacheStore
from leaderboard.errors import LeaderboardError
from leaderboard.model import Result
from leaderboard.queries import RankingQuery

_ATTEMPTS = 3
"""How often the replica is loaded for one batch before the batch goes to PostgreSQL."""
_FIELDS = 8
"""Values in a reply of `read.lua` before the deltas, if the state may be read."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """Results for a batch of queries, all from one state of the cache.

    A result is an error if the query has none, and None if the cache does not reach far enough.
    """

    epoch: str
    age_s: float
    results: list[Result | LeaderboardError | None]


class CacheReader:
    """Reads the cache. One batch is one call of `read.lua`."""

    def __init__(self, store: CacheStore) -> None:
        self._store = store
        self._scripts = store.scripts
        self._link = store.link(on_connect=self._note_token)
        self._untrusted_token: bytes | None = None
        self._replica = Replica()
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Connect before the first request, and do not trust the state that is found then. Raises CacheError."""
        await self.read((), None)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def read(self, queries: Sequence[RankingQuery[Any]], max_age_s: float | None) -> Reading | None:
        """Answer what the cache can answer; None if its state must not be read.

        `max_age_s` None accepts any age, and an invalid state: for when PostgreSQL cannot be asked. Raises
        CacheError.
        """
        max_age_us = -1 if max_age_s is None else int(max_age_s * 1e6)
        async with self._lock:
            for _ in range(_ATTEMPTS):
                reply = await self._link.run(
                    self._scripts.read(max_age_us=max_age_us, replica_token=self._replica.token)
                )
                if len(reply) < _FIELDS:
                    return None
                now, token, stored_epoch, asof, total, floor, count, known, *deltas = reply
                if max_age_s is not None and token == self._untrusted_token:
                    return None
                try:
                    epoch, age_s = parse_epoch(stored_epoch), (now - int(asof)) / 1e6
                    complete = is_complete(floor, count, int(total))
                except ValueError as error:
                    raise await self._store.drop_damaged(error, token) from error
                if not epoch:
                    return None
                if known and self._apply(deltas):
                    self._replica.set_state(token, int(total), complete=complete)
                    if len(self._replica) == count:
                        return Reading(epoch, age_s, results_of(queries, self._replica))
                    _log.error("the replica differed from the cache", users=len(self._replica), instead_of=count)
                if not await self._load_replica():
                    return None
        return None

    def check_replica(self, export: Export) -> bool:
        """Return whether the replica, if it is at that state, is equal to it; drops one that is not."""
        if self._replica.token != export.token or self._replica.users() == export.users:
            return True
        self._replica = Replica()
        return False

    def _apply(self, deltas: Sequence[bytes]) -> bool:
        """Apply the deltas to the replica; returns False if another program has written them."""
        try:
            for delta in map(decode_delta, filter(None, deltas)):
                self._replica.apply(delta)
        except ValueError:
            return False
        return True

    async def _load_replica(self) -> bool:
        """Load the whole cache, in whatever state; returns False if there is none. Raises CacheDamaged."""
        export = await self._store.export()
        if export is None:
            return False
        self._replica = Replica(export.token, export.users)
        return True

    async def _note_token(self, run: Callable[[Call], Awaitable[Any]]) -> None:
        """Do not trust the state that a new connection finds, until its token changes.

        The server may be one that is behind. Another token shows that a process has caught up on it.
        """
        reply = await run(self._scripts.poll(nonce="", lease_ms=0))
        self._untrusted_token = reply[3] if len(reply) > 1 else None


def results_of(queries: Sequence[RankingQuery[Any]], replica: Replica) -> list[Result | LeaderboardError | None]:
    """Return a result for each query: its error if it has none, None where the replica does not reach."""
    results: list[Result | LeaderboardError | None] = [query.result_from(replica) for query in queries]
    if replica.complete and None in results:
        return [
            query.not_found() if found is None else found for query, found in zip(queries, results, strict=True)
        ]
    return results
