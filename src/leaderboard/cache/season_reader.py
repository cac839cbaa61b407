"""Answers queries about seasons of boards other than `default`, as `reader.py` does for `default`.

A season that is in the cache is at the snapshot of the cache. So one call of `read_seasons.lua` says whether that
may be read now, and in which version each season is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from leaderboard.cache.format import decode_delta, parse_epoch
from leaderboard.cache.reader import Reading, results_of
from leaderboard.cache.scripts import Argument, Call
from leaderboard.cache.season_replica import SeasonReplica, SeasonReplicas
from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.seasons import CachedSeason, season_name
from leaderboard.cache.store import CacheStore
from leaderboard.errors import LeaderboardError
from leaderboard.model import Result
from leaderboard.queries import RankingQuery

_LOADS = 2
"""Replicas that one batch loads. Queries about further seasons go to PostgreSQL: no batch takes long."""
_FIELDS = 5
"""Values in a reply of `read_seasons.lua` before the seasons."""

_log = structlog.get_logger(__name__)

_Results = list[Result | LeaderboardError | None]


class SeasonReader:
    """Reads the cached seasons. One batch is one call, and an export for each season without a replica."""

    def __init__(self, store: CacheStore, seasons: SeasonStore, max_users: int) -> None:
        """The replicas have `max_users` users at most, all together."""
        self._store = store
        self._scripts = store.scripts
        self._seasons = seasons
        self._link = store.link(on_connect=self._note_token)
        self._untrusted_token: bytes | None = None
        self._last_token = b""
        self._replicas = SeasonReplicas(max_users)
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Connect before the first request, as `CacheReader` does. Raises CacheError."""
        await self._link.run(self._scripts.read_seasons(max_age_us=0, known_token=b"", current=0, versions=()))

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def read(self, queries: Sequence[RankingQuery[Any]], max_age_s: float | None) -> Reading | None:
        """Answer what the cache can answer; None if its state must not be read.

        `max_age_s` None accepts any age, and an invalid state. Raises CacheError.
        """
        by_name: dict[str, list[int]] = {}
        for at, query in enumerate(queries):
            if query.season is not None:
                by_name.setdefault(season_name(query.season), []).append(at)
        results: _Results = [None] * len(queries)
        async with self._lock:
            reading = await self._read(by_name, queries, results, max_age_s)
            if reading is None:
                return None
            missing, epoch, age_s = reading
            if missing:
                loaded = {name: by_name[name] for name in missing[:_LOADS] if await self._load_replica(name)}
                if loaded and await self._read(loaded, queries, results, max_age_s) is None:
                    return None
        return Reading(epoch, age_s, results)

    async def _read(
        self,
        by_name: dict[str, list[int]],
        queries: Sequence[RankingQuery[Any]],
        results: _Results,
        max_age_s: float | None,
    ) -> tuple[list[str], str, float] | None:
        """Put the results of replicas into `results`; return the seasons that need a replica, epoch and age."""
        max_age_us = -1 if max_age_s is None else int(max_age_s * 1e6)
        replicas = {name: self._replicas.get(name) for name in by_name}
        # First those that were current at the last token. While it is the token, the script leaves them out.
        names = sorted(by_name, key=lambda name: not self._is_current(replicas[name]))
        current = sum(map(self._is_current, replicas.values()))
        versions: list[Argument] = []
        for name in names:
            replica = replicas[name]
            versions += (name, b"" if replica is None else replica.token)
        reply = await self._link.run(
            self._scripts.read_seasons(
                max_age_us=max_age_us, known_token=self._last_token, current=current, versions=versions
            )
        )
        if len(reply) < _FIELDS:
            return None
        now, token, stored_epoch, asof, left_out, *found = reply
        if max_age_s is not None and token == self._untrusted_token:
            return None
        self._last_token = token
        try:
            epoch, age_s = parse_epoch(stored_epoch), (now - int(asof)) / 1e6
        except ValueError as error:
            raise await self._store.drop_damaged(error, token) from error
        missing = []
        for name, answer in zip(names[left_out:], found, strict=True):
            moved = answer is not None and self._move(name, replicas[name], token, *answer)
            if not moved:
                replicas[name] = None
                self._replicas.drop(name)
                if answer is not None:
                    missing.append(name)
        for name, replica in replicas.items():
            if replica is not None:
                found_here = results_of([queries[at] for at in by_name[name]], replica)
                for at, result in zip(by_name[name], found_here, strict=True):
                    results[at] = result
        if not epoch:
            return None
        return missing, epoch, age_s

    def _is_current(self, replica: SeasonReplica | None) -> bool:
        return replica is not None and replica.checked_at == self._last_token

    def _move(
        self, name: str, replica: SeasonReplica | None, token: bytes, entry: bytes, deltas: Sequence[bytes] | None
    ) -> bool:
        """Move a replica to the state with `token`; returns False if it has to be loaded."""
        if replica is None or deltas is None:
            return False
        try:
            season = CachedSeason.parse(entry)
            if replica.load != season.load:
                return False
            for delta in map(decode_delta, filter(None, deltas)):
                replica.apply(delta)
        except ValueError:
            return False  # Loading it evicts a season that another program has written.
        if not replica.move_to(season):
            _log.error(
                "the replica of a season differed from the cache",
                season=name,
                users=len(replica),
                instead_of=season.count,
            )
            return False
        if deltas:
            self._replicas.put(name, replica)
        replica.checked_at = token
        return True

    async def _load_replica(self, name: str) -> bool:
        """Load a whole season, in whatever state; returns False if it is not cached. Raises CacheError."""
        export = await self._seasons.export(name)
        if export is None:
            return False
        self._replicas.put(name, SeasonReplica(export))
        return True

    async def _note_token(self, run: Callable[[Call], Awaitable[Any]]) -> None:
        """Do not trust the state that a new connection finds, until its token changes. As in `CacheReader`."""
        reply = await run(self._scripts.poll(nonce="", lease_ms=0))
        self._untrusted_token = reply[3] if len(reply) > 1 else None
