"""`leaderboard serve`: the API, after checks of PostgreSQL and Redis."""

import asyncio
from typing import Annotated

import structlog
import typer

from leaderboard import app, server
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.options import settings_with
from leaderboard.config import Settings
from leaderboard.errors import CacheError, CacheUnsupported, Unavailable
from leaderboard.logs import set_up_logs

_REDIS_CHECK_S = 2.0
"""How long to wait for Redis before the start."""

_log = structlog.get_logger(__name__)


def serve(
    port: Annotated[int | None, typer.Option(help="TCP port; default: PORT, 3000.")] = None,
    workers: Annotated[int | None, typer.Option(help="API processes on that port; default: WORKERS, 1.")] = None,
) -> None:
    """Run the API against the PostgreSQL and Redis that the environment names."""
    settings = settings_with(port=port, workers=workers)
    set_up_logs(settings.log_level, settings.log_format)
    server.check_port(settings)
    warn_if_open(settings)
    try:
        _log_connections(settings, asyncio.run(app.database_from(settings).check_schema()))
    except Unavailable as error:
        _log.warning("starting without PostgreSQL", error=str(error))
    asyncio.run(_check_redis(settings))
    server.serve(settings)


def warn_if_open(settings: Settings) -> None:
    """Log a warning if writes need no key."""
    if not app.access(settings).guarded:
        _log.warning(
            "API_KEYS is empty: anyone who can reach the port can write", host=settings.host, port=settings.port
        )


async def _check_redis(settings: Settings) -> None:
    """Exit if REDIS_URL names a server that can never be the cache. One that is down may come up later."""
    cache = app.cache_from(settings)
    try:
        async with asyncio.timeout(_REDIS_CHECK_S):
            policy = await cache.eviction_policy()
        if policy:
            _log.warning("Redis may evict the board when its memory is full", maxmemory_policy=policy)
    except CacheUnsupported as error:
        fail(f"REDIS_URL: {error}", ExitStatus.USAGE)
    except (CacheError, TimeoutError):
        pass  # Each process logs it and keeps trying.
    finally:
        await cache.close()


def _log_connections(settings: Settings, allowed: int) -> None:
    """Log how many connections the service may open; a warning if PostgreSQL allows fewer."""
    most = settings.workers * settings.db_pool_size
    numbers = {
        "most": most,
        "workers": settings.workers,
        "db_pool_size": settings.db_pool_size,
        "allowed": allowed,
    }
    if most > allowed:
        _log.warning("PostgreSQL allows fewer connections than this service may open", **numbers)
    else:
        _log.info("connections to PostgreSQL", **numbers)
