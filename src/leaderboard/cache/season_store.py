"""Loads seasons of boards other than `default` beside the cache, and reads them.

A load becomes part of the cache only by a catching up that admits it (`sync/catch_up.py`).
"""

import secrets
from collections.abc import Mapping, Sequence

import structlog

from leaderboard.cache.format import encode_users
from leaderboard.cache.seasons import LEAST_WEIGHT, CachedSeason, PendingLoad, SeasonExport
from leaderboard.cache.store import IDLE_MS, LOAD_CHUNK, MAX_CLAIM_MS, CacheStore, is_wrong_type
from leaderboard.errors import CacheRefused
from leaderboard.model import User
from leaderboard.snapshot import SnapshotPosition

_log = structlog.get_logger(__name__)

_HALF_LIFE_MS = 60_000
"""After so long, a read counts half when it is decided which season has to go."""


class SeasonStore:
    """The cached seasons, in at most `max_users` users."""

    def __init__(self, store: CacheStore, max_users: int, claim_ms: int) -> None:
        """`claim_ms`: how long one process alone may load a season."""
        self._store = store
        self._scripts = store.scripts
        self._max_users = max_users
        self._claim_ms = claim_ms

    @property
    def keep(self) -> int:
        """The most users of one season."""
        return self._store.keep

    async def names(self) -> list[str]:
        """Return the names of the cached seasons. Raises CacheError."""
        return [name.decode() for name in await self._store.bulk_link.run(self._scripts.season_names())]

    async def claim(self, name: str, reads: int) -> str | None:
        """Claim the load of a season; returns the id of the load.

        `reads`: how often it was read since the last report. None if it is cached, if another process has the
        claim, or if there is no room, because all others are read as often. Raises CacheError.
        """
        load = secrets.token_hex(8)
        call = self._scripts.claim_season(
            load=load,
            season=name,
            least_weight=LEAST_WEIGHT,
            max_users=self._max_users,
            reads_of_it=reads,
            half_life_ms=_HALF_LIFE_MS,
            claim_ms=self._claim_ms,
        )
        return None if await self._store.bulk_link.run(call) is None else load

    async def offer(
        self, name: str, season: CachedSeason, users: Sequence[User], position: SnapshotPosition, reads: int
    ) -> Sequence[str] | None:
        """Write a loaded season beside the cache, to be admitted; returns the seasons evicted for it.

        `reads`: how often it was read since the last report. None if it is not needed any more, or if the others
        are read as often. Raises CacheError.
        """
        load = season.load
        for start in range(0, len(users), LOAD_CHUNK):
            rows = encode_users(users[start : start + LOAD_CHUNK], season.tie_bits)
            call = self._scripts.load_season(load=load, season=name, claim_ms=self._claim_ms, rows=rows)
            if await self._store.bulk_link.run(call) is None:
                return None
        reply = await self._store.bulk_link.run(
            self._scripts.offer(
                load=load,
                season=name,
                offer=bytes(PendingLoad(season, position)),
                count=len(users),
                least_weight=LEAST_WEIGHT,
                max_users=self._max_users,
                reads_of_it=reads,
                half_life_ms=_HALF_LIFE_MS,
                keep_ms=MAX_CLAIM_MS,
            )
        )
        return None if reply is None else [evicted.decode() for evicted in reply]

    async def note_reads(self, reads: Mapping[str, int]) -> list[str]:
        """Report how often seasons were read since the last report; returns the seasons that were evicted.

        Evicts those that are not read, and the ones read least if all have grown too large. Raises CacheError.
        """
        flat = [argument for item in reads.items() for argument in item]
        call = self._scripts.note_reads(
            half_life_ms=_HALF_LIFE_MS,
            idle_ms=IDLE_MS,
            least_weight=LEAST_WEIGHT,
            max_users=self._max_users,
            reads=flat,
        )
        return [name.decode() for name in await self._store.bulk_link.run(call)]

    async def evict(self, name: str) -> None:
        """Remove one season from the cache. Raises CacheError."""
        await self._store.bulk_link.run(self._scripts.evict(season=name))

    async def export(self, name: str) -> SeasonExport | None:
        """Return a whole season, None if it is not cached. Raises CacheError.

        A season that another program has written is evicted.
        """
        try:
            reply = await self._store.bulk_link.run(self._scripts.export_season(season=name))
            return None if reply is None else SeasonExport.parse(reply)
        except (CacheRefused, ValueError) as error:
            if isinstance(error, CacheRefused) and not is_wrong_type(error):
                raise
            _log.warning("evicted a season that could not be read", season=name, reason=str(error))
        await self.evict(name)
        return None
