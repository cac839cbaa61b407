"""The composition root: opens the stores, wires them to each other, and closes them in the reverse order."""

import asyncio
import contextlib
import gc
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog

from leaderboard import tls
from leaderboard.batching import Bounds
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.store import CacheStore
from leaderboard.config import Settings, host_names, networks, rate
from leaderboard.credentials import KeyRing, parse_keys
from leaderboard.database.connections import Connections
from leaderboard.database.rank_index import RankIndex
from leaderboard.database.store import Database
from leaderboard.errors import CacheError
from leaderboard.http.access import Access, RateLimits
from leaderboard.http.application import HttpApplication
from leaderboard.http.asgi import AsgiApp
from leaderboard.http.limits import Limiter
from leaderboard.http.status import ServiceStatus
from leaderboard.http.watchdog import Watchdog
from leaderboard.idempotency import KeyBounds
from leaderboard.observe import Metrics
from leaderboard.rank_keeper import RankIndexMaintainer
from leaderboard.redis_url import parse_redis_url
from leaderboard.service import Leaderboard
from leaderboard.sync import CacheSync
from leaderboard.web.pages import Pages

_OTHER_CONNECTIONS = 7
"""Connections that reads leave: for scores, new users, idempotency keys, catching up, a rebuild, ranks, timers."""

_QUEUE_SHARE = 0.1
"""The longest wait in a queue, as a share of the request timeout."""

_QUIET_S = 0.5
"""When stopping, the process exits after so long without active requests, even if idle connections remain."""

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
        user_writes=settings.allow_user_writes == "on",
        limits=RateLimits(
            per_key=Limiter(*per_key) if per_key else None,
            per_address=Limiter(*per_address) if per_address else None,
            trusted_proxies=networks(settings.trusted_proxies),
        ),
        hosts=frozenset(name.encode() for name in host_names(settings.allowed_hosts)),
    )


class App:
    """The parts of one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.serving = False
        """Whether the server has been told that it may begin."""
        self._http: HttpApplication | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: list[asyncio.Task[None]] = []
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
            stale_reads=settings.stale_reads == "on",
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
            await self._close()

    async def _close(self) -> None:
        await self.board.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.sync.close()
        await self.cache.close()
        await self.database.close()

    def asgi(self) -> AsgiApp:
        """The HTTP application, which runs this app from the server's start to its end."""
        settings = self.settings
        self._http = http = HttpApplication(
            self.board,
            ServiceStatus(
                self.sync,
                version("leaderboard"),
                stale_reads=settings.stale_reads == "on",
                ready_without_writes_s=settings.ready_without_writes_s,
            ),
            self.metrics,
            access(settings),
            Pages.load(
                origin=f"http://localhost:{settings.port}",
                root_path=settings.root_path,
                image_sources=settings.page_images.split(),
            ),
            max_top_n=settings.max_top_n,
            deadline_s=settings.request_timeout_ms / 1000,
            root_path=settings.root_path,
        )
        watchdog = Watchdog(settings.port, settings.idle_timeout_ms / 1000)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            async with self.running():
                works = (_end_with_parent(), http.deadlines.watch(), watchdog.watch())
                watching = [asyncio.create_task(work) for work in works]
                # All that is there now stays: nobody shall wait while it is looked through for garbage.
                gc.collect()
                gc.freeze()
                _log.info("ready to serve", port=settings.port, pid=os.getpid())
                self.serving = True
                yield
                for task in (*watching, *self._ending):
                    task.cancel()

        return http.asgi(lifespan)

    def begin_to_stop(self) -> None:
        """Say from now on that this process is not ready, and have clients' connections end."""
        if self._http is not None and not self._http.stopping:
            self._http.begin_to_stop()
            _log.info("stopping", pid=os.getpid())

    def end_soon(self) -> None:
        """End this process when nothing has been under way for a moment, unless the server ends it before.

        The server, which accepts no more now, would wait for clients that have sent half a request, or that do
        not take their answer.
        """
        self._ending.append(asyncio.create_task(self._end_when_quiet()))

    async def _end_when_quiet(self) -> None:
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_S:
            await asyncio.sleep(0.02)
            if self._http is not None and len(self._http.deadlines):
                quiet_since = time.monotonic()
        await self._close()
        os._exit(0)


async def _end_with_parent() -> None:
    """End this process when the one that started it is gone: it would keep the port and answer from there."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells us
        await asyncio.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
