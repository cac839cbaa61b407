"""The composition root: opens the stores, wires them to each other, and closes them in the reverse order."""

import asyncio
import contextlib
import gc
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog

from leaderboard import tls
from leaderboard.batching import Bounds
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.store import CacheStore
from leaderboard.config import Settings
from leaderboard.credentials import KeyRing, parse_keys
from leaderboard.database.connections import Connections
from leaderboard.database.rank_index import RankIndex
from leaderboard.database.store import Database
from leaderboard.errors import CacheError
from leaderboard.http.access import Access
from leaderboard.http.limits import Limiter
from leaderboard.http.page.pages import Pages
from leaderboard.http.routes import Api
from leaderboard.http.watchdog import Watchdog
from leaderboard.idempotency import KeyBounds
from leaderboard.observe import Metrics
from leaderboard.rank_keeper import RankIndexMaintainer
from leaderboard.redis_url import parse_redis_url
from leaderboard.service import Leaderboard
from leaderboard.setting_formats import host_names, networks, rate
from leaderboard.sync import CacheSync

_OTHER_CONNECTIONS = 7
"""Connections that reads leave: for scores, new users, idempotency keys, catching up, a rebuild, ranks, timers."""

_QUEUE_SHARE = 0.1
"""The longest wait in a queue, as a share of the request timeout."""

_log = structlog.get_logger(__name__)


def database_from(settings: Settings) -> Database:
    """PostgreSQL as the settings name it, not yet open."""
    connect = {
        "host": settings.db_host,
        "port": settings.db_port,
        "database": settings.db_name,
        "user": settings.db_user,
        "password": settings.db_password.get_secret_value(),
        "ssl": _postgres_tls(settings),
    }
    return Database(Connections(connect, settings.db_pool_size, settings.db_timeout_ms / 1000))


def _postgres_tls(settings: Settings) -> str | ssl.SSLContext:
    """As libpq does it: `require` verifies the certificate only where it is said by which authorities."""
    mode = settings.db_sslmode
    if mode in {"disable", "allow", "prefer"}:
        return mode
    return tls.client_context(
        authorities=settings.db_sslrootcert,
        certificate=settings.db_sslcert,
        key=settings.db_sslkey,
        verify=mode != "require" or bool(settings.db_sslrootcert),
        check_host=mode == "verify-full",
    )


def cache_from(settings: Settings) -> CacheStore:
    """Redis as the settings name it; connects when first used."""
    url = parse_redis_url(settings.redis_url.get_secret_value())
    login = Login(
        password=settings.redis_password.get_secret_value(),
        sentinel_password=settings.redis_sentinel_password.get_secret_value(),
        tls=_redis_tls(settings) if url.tls else None,
    )
    return CacheStore(Servers(url, login), settings.redis_timeout_ms / 1000, settings.cache_size)


def _redis_tls(settings: Settings) -> ssl.SSLContext:
    return tls.client_context(
        authorities=settings.redis_sslrootcert,
        certificate=settings.redis_sslcert,
        key=settings.redis_sslkey,
        verify=settings.redis_sslmode != "require",
        check_host=settings.redis_sslmode == "verify-full",
    )


def access(settings: Settings) -> Access:
    """Who may call what, and how often, as the settings say."""
    tokens = None
    if key := settings.jwt_key.get_secret_value():
        from leaderboard.tokens import UserTokens  # noqa: PLC0415 - its cryptography costs 20 MB where it is unused

        algorithms = settings.jwt_algorithms.split()
        tokens = UserTokens(algorithms, key, settings.jwt_audience, settings.jwt_issuer)
    per_key, per_address = rate(settings.rate_limit_per_key), rate(settings.rate_limit_per_address)
    return Access(
        KeyRing(parse_keys(settings.api_keys.get_secret_value())),
        tokens,
        reads_need_key=settings.reads == "key",
        user_writes=settings.allow_user_writes,
        per_key=Limiter(*per_key) if per_key else None,
        per_address=Limiter(*per_address) if per_address else None,
        trusted_proxies=networks(settings.trusted_proxies),
        hosts=frozenset(name.encode() for name in host_names(settings.allowed_hosts)),
    )


class App:
    """The parts of one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics = Metrics()
        self.database = database_from(settings)
        self.ranks = RankIndex(self.database.connections)
        self.keeper = RankIndexMaintainer(self.ranks, self.metrics, settings.sync_interval_ms / 1000)
        self.cache = cache_from(settings)
        self.sync = CacheSync(self.database, self.cache, self.metrics, settings.sync_interval_ms / 1000)
        self.board = Leaderboard(
            self.database,
            self.ranks,
            self.cache,
            self.sync,
            self.metrics,
            key_bounds=KeyBounds(settings.idempotency_keys_per_caller, settings.idempotency_keys),
            bounds=Bounds(settings.queue_limit, _QUEUE_SHARE * settings.request_timeout_ms / 1000),
            database_lanes=settings.db_pool_size - _OTHER_CONNECTIONS,
            stale_reads=settings.stale_reads,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the stores and keep the cache up to date until the end; finish what was begun before closing."""
        await self.database.open()
        with contextlib.suppress(CacheError):
            await self.cache.open()
        timers = [self.sync.run(), self.sync.prune(), self.keeper.run(), self.board.run()]
        if interval_s := self.settings.audit_interval_s:
            timers += [self.sync.audit_regularly(interval_s), self.keeper.recount_regularly(interval_s)]
        self._tasks = [asyncio.create_task(timer) for timer in timers]
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Finish what was begun, and close the stores."""
        await self.board.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.sync.close()
        await self.cache.close()
        await self.database.close()

    def api(self) -> Api:
        """Return the HTTP interface to this app."""
        settings = self.settings
        return Api(
            self.board,
            self.sync,
            self.metrics,
            pages=Pages.load(
                origin=f"http://localhost:{settings.port}",
                root_path=settings.root_path,
                image_sources=settings.page_images.split(),
            ),
            version=version("leaderboard"),
            max_top_n=settings.max_top_n,
            stale_reads=settings.stale_reads,
            ready_without_writes_s=settings.ready_without_writes_s,
            access=access(settings),
            deadline_s=settings.request_timeout_ms / 1000,
            root_path=settings.root_path,
        )

    @asynccontextmanager
    async def serving(self, api: Api) -> AsyncIterator[None]:
        """As `running`, and watch the deadlines and the clients' connections."""
        watchdog = Watchdog(self.settings.port, self.settings.idle_timeout_ms / 1000)
        async with self.running():
            watching = [asyncio.create_task(work) for work in (api.deadlines.watch(), watchdog.watch())]
            # The objects that exist now stay. Excluding them from garbage collection avoids long pauses.
            gc.collect()
            gc.freeze()
            _log.info("ready to serve", port=self.settings.port, pid=os.getpid())
            yield
            for task in watching:
                task.cancel()
