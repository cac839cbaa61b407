"""Knows whether PostgreSQL and Redis answer, and whether writes are possible."""

import time

import structlog

from leaderboard.database.database import Database
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.metrics import Metrics
from leaderboard.snapshot import Position

_log = structlog.get_logger(__name__)


class Health:
    """The state of both stores as this process last saw it. None means not known yet."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._read_only = False
        self._unwritable_since: float | None = None
        self.epoch: str | None = None
        """The epoch of the database."""
        self.postgres_up: bool | None = None
        self.redis_up: bool | None = None

    @property
    def writable(self) -> bool:
        """Whether PostgreSQL takes writes, as far as is known."""
        return self.postgres_up is not False and not self._read_only

    @property
    def unwritable_s(self) -> float:
        """For how many seconds PostgreSQL has taken no writes; 0 while it does."""
        return 0.0 if self._unwritable_since is None else time.monotonic() - self._unwritable_since

    def check_postgres(self) -> None:
        """Raise DatabaseUnavailable while PostgreSQL is known to be unreachable."""
        if self.postgres_up is False:
            raise DatabaseUnavailable("PostgreSQL is unreachable")

    def check_writable(self) -> None:
        """Raise DatabaseUnavailable while PostgreSQL is known to be unreachable or to take no writes."""
        self.check_postgres()
        if not self.writable:
            raise DatabaseUnavailable("PostgreSQL takes no writes now")

    async def ask_postgres(self) -> Position:
        """Ask PostgreSQL for its present position, and note it. Raises DatabaseUnavailable."""
        position = await self._database.now()
        self.note_postgres(position)
        return position

    async def ask_whether_writable(self) -> None:
        """If PostgreSQL took no writes, ask whether it does now. Raises DatabaseUnavailable."""
        if not self._read_only:
            return
        try:
            await self._database.check_writable()
        except DatabaseReadOnly:
            return
        _log.info("PostgreSQL takes writes again")
        self._read_only = False
        self._note_writable()

    def note_postgres(self, position: Position) -> None:
        """Note that PostgreSQL has answered, and the epoch of its answer."""
        self.epoch = position.epoch
        if not self.postgres_up:
            if self.postgres_up is not None:
                _log.info("PostgreSQL can be used again")
            self._set_postgres_up(up=True)

    def note_postgres_down(self, error: Exception) -> None:
        """Note that PostgreSQL cannot be used."""
        if self.postgres_up is not False:
            _log.error("PostgreSQL cannot be used", error=str(error))
            self._set_postgres_up(up=False)

    def note_read_only(self, error: DatabaseReadOnly) -> None:
        """Note that PostgreSQL has refused a write because it takes none."""
        if not self._read_only:
            _log.error("PostgreSQL takes no writes", error=str(error))
        self._read_only = True
        self._note_writable()

    def note_redis(self) -> None:
        """Note that Redis has answered."""
        if not self.redis_up:
            if self.redis_up is not None:
                _log.info("Redis can be used again")
            self._set_redis_up(up=True)

    def note_redis_down(self, error: Exception) -> None:
        """Note that Redis cannot be used."""
        if self.redis_up is not False:
            _log.warning("Redis cannot be used, reads go to PostgreSQL", error=str(error))
            self._set_redis_up(up=False)

    def _set_postgres_up(self, *, up: bool) -> None:
        self.postgres_up = up
        self._metrics.postgres_up.set(up)
        self._note_writable()

    def _set_redis_up(self, *, up: bool) -> None:
        self.redis_up = up
        self._metrics.redis_up.set(up)

    def _note_writable(self) -> None:
        self._metrics.postgres_writable.set(self.writable)
        if self.writable:
            self._unwritable_since = None
        elif self._unwritable_since is None:
            self._unwritable_since = time.monotonic()
