"""Wires the parts of a process: opens the stores, and closes them in the reverse order."""

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
from leaderboard.batching import QueueLimits
from leaderboard.cache.reader import CacheReader
from leaderboard.cache.scripts import Scripts
from leaderboard.cache.season_reader import SeasonReader
from leaderboard.cache.season_store import SeasonStore
from leaderboard.cache.servers import Login, Servers
from leaderboard.cache.store import CacheStore
from leaderboard.config import Settings
from leaderboard.credentials import KeyRing, parse_keys
from leaderboard.database.connections import Connections
from leaderboard.database.connector import Connector
from leaderboard.database.database import Database
from leaderboard.errors import CacheError
from leaderboard.health import Health
from leaderboard.http.access import Access, RateLimits
from leaderboard.http.application import HttpApplication
from leaderboard.http.hosts import AllowedOrigins
from leaderboard.http.limits import Limiter
from leaderboard.http.status import ServiceStatus
from leaderboard.http.watchdog import Watchdog
from leaderboard.maintenance.audits import CacheAudits, RankIndexAudits
from leaderboard.maintenance.change_log import LogPruner
from leaderboard.maintenance.idempotency_keys import KeyLimiter, KeyLimits
from leaderboard.maintenance.rank_index import RankIndexMaintainer
from leaderboard.maintenance.seasons import SeasonKeeper
from leaderboard.metrics import Metrics
from leaderboard.periodic import Job, Jobs
from leaderboard.redis_url import parse_redis_url
from leaderboard.service.cache_reads import CacheReads
from leaderboard.service.service import Service
from leaderboard.setting_formats import host_names, networks, origins, rate
from leaderboard.sync import CacheSync
from leaderboard.tuning import Tuning
from leaderboard.web.pages import Pages

_OTHER_CONNECTIONS = 7
"""Connections that reads leave: for scores, new users, idempotency keys, catching up, a rebuild, ranks, timers."""

_QUEUE_SHARE = 0.1
"""The longest wait in a queue, as a share of the request timeout."""

_log = structlog.get_logger(__name__)


def database_from(settings: Settings, tuning: Tuning | None = None) -> Database:
    """Return PostgreSQL as the settings name it, not yet open."""
    tuning = tuning or Tuning()
    timeout_s = settings.db_timeout_ms / 1000
    arguments = {
        "host": settings.db_host,
        "port": settings.db_port,
        "database": settings.db_name,
        "user": settings.db_user,
        "password": settings.db_password.get_secret_value(),
        "ssl": _postgres_tls(settings),
    }
    connector = Connector(arguments, timeout_s, tuning.connections.plan_lifetime_s)
    connections = Connections(connector, settings.db_pool_size, timeout_s, tuning.connections)
    return Database(connections, tuning, settings.usernames)


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


def cache_from(settings: Settings, tuning: Tuning | None = None) -> CacheStore:
    """Return Redis as the settings name it; it connects when first used."""
    fresh_s = (tuning or Tuning()).sync.fresh_s
    url = parse_redis_url(settings.redis_url.get_secret_value())
    login = Login(
        password=settings.redis_password.get_secret_value(),
        sentinel_password=settings.redis_sentinel_password.get_secret_value(),
        tls=_redis_tls(settings) if url.tls else None,
    )
    timeout_s = settings.redis_timeout_ms / 1000
    return CacheStore(Servers(url, login), Scripts(), timeout_s, settings.cache_size, fresh_s)


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
        limits=RateLimits(
            per_key=Limiter(*per_key) if per_key else None,
            per_address=Limiter(*per_address) if per_address else None,
            trusted_proxies=networks(settings.trusted_proxies),
        ),
        hosts=frozenset(name.encode() for name in host_names(settings.allowed_hosts)),
        origins=AllowedOrigins(origins(settings.cors_origins)),
    )


class App:
    """The parts of one process, wired."""

    def __init__(self, settings: Settings, tuning: Tuning | None = None) -> None:
        tuning = tuning or Tuning()
        self.settings = settings
        interval_s = settings.sync_interval_ms / 1000
        self.metrics = Metrics()
        self.database = database_from(settings, tuning)
        self.cache = cache_from(settings, tuning)
        self.reader = CacheReader(self.cache)
        seasons = SeasonStore(self.cache, settings.cache_users, tuning.seasons.claim_ms)
        self.season_reader = SeasonReader(self.cache, seasons, settings.replica_users)
        self.health = Health(self.database, self.metrics)
        self.sync = CacheSync.build(
            self.database,
            self.cache,
            self.reader,
            self.health,
            self.metrics,
            seasons,
            interval_s=interval_s,
            tuning=tuning,
        )
        limits = QueueLimits(settings.queue_limit, _QUEUE_SHARE * settings.request_timeout_ms / 1000)
        keys = self.database.idempotency_keys
        key_limits = KeyLimits(settings.idempotency_keys_per_caller, settings.idempotency_keys)
        key_limiter = KeyLimiter(keys, self.metrics, key_limits, tuning.keys)
        self.service = Service.build(
            self.database,
            CacheReads(
                self.reader,
                self.season_reader,
                self.sync.season_loader,
                self.health,
                self.metrics,
                tuning.sync.fresh_s,
            ),
            self.sync.visibility,
            self.health,
            key_limiter,
            self.metrics,
            limits,
            tuning,
            read_connections=settings.db_pool_size - _OTHER_CONNECTIONS,
            stale_reads=settings.stale_reads,
        )
        jobs: list[Job] = [
            SeasonKeeper(self.service.boards, self.database.boards),
            self.sync.synchronizer,
            self.sync.season_loader,
            LogPruner(self.database.change_log, tuning.log),
            RankIndexMaintainer(self.database.rank_index, self.metrics, interval_s),
            key_limiter,
        ]
        if audit_s := settings.audit_interval_s:
            jobs.append(CacheAudits(self.sync, self.metrics, audit_s))
            jobs.append(RankIndexAudits(self.database.rank_index, self.metrics, audit_s))
        self.jobs = Jobs(jobs)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the stores and keep the cache up to date until the end; finish what was begun before closing."""
        await self.database.open()
        with contextlib.suppress(CacheError):
            await self.reader.open()
            await self.season_reader.open()
        self.jobs.start()
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Finish what was begun, and close the stores; gives up after as long as a request may take."""
        try:
            async with asyncio.timeout(self.settings.request_timeout_ms / 1000):
                await self._close()
        except TimeoutError:
            _log.warning("closing took too long and was given up")

    async def _close(self) -> None:
        await self.service.close()
        await self.jobs.stop()
        await self.sync.visibility.close()
        await self.sync.synchronizer.close()
        await self.sync.season_loader.close()
        await self.reader.close()
        await self.season_reader.close()
        await self.cache.close()
        await self.database.close()

    def http(self) -> HttpApplication:
        """Return the HTTP interface to this app."""
        settings = self.settings
        status = ServiceStatus(
            self.health,
            version("leaderboard"),
            stale_reads=settings.stale_reads,
            ready_without_writes_s=settings.ready_without_writes_s,
        )
        return HttpApplication(
            self.service,
            status,
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

    @asynccontextmanager
    async def serving(self, http: HttpApplication) -> AsyncIterator[None]:
        """As `running`, and watch the deadlines and the clients' connections."""
        watchdog = Watchdog(self.settings.port, self.settings.idle_timeout_ms / 1000)
        async with self.running():
            watching = [asyncio.create_task(work) for work in (http.deadlines.watch(), watchdog.watch())]
            # The objects that exist now stay. Excluding them from garbage collection avoids long pauses.
            gc.collect()
            gc.freeze()
            _log.info("ready to serve", port=self.settings.port, pid=os.getpid())
            yield
            for task in watching:
                task.cancel()
