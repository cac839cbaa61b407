"""An empty cache, and two processes that share a board and a cache."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.dev import EmbeddedValkey
from leaderboard.tuning import SyncTuning
from tests.cache.caches import Cache, opened
from tests.cache.processes import USERS, started
from tests.system import PATIENCE_S, sql


@pytest.fixture
def server(valkey: EmbeddedValkey) -> Iterator[Redis]:
    """A client of the shared server, which is empty."""
    client = Redis.from_url(valkey.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
async def cache(server: Redis, valkey: EmbeddedValkey) -> AsyncIterator[Cache]:
    async with opened(valkey) as store:
        yield store


@pytest.fixture
def tuning() -> SyncTuning:
    """A tuning in which the cache stays fresh longer than a test takes. `use_tuning` sets another one."""
    return SyncTuning(fresh_s=PATIENCE_S)


@pytest.fixture
async def one(settings: Settings, tuning: SyncTuning) -> AsyncIterator[App]:
    """A process on a board that is twice as large as its cache. The cache is still empty."""
    sql(
        settings,
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'user ' || n, 1010 - 10 * n FROM generate_series(1, $1) AS n",
        USERS,
    )
    async with started(settings, tuning) as app:
        yield app


@pytest.fixture
async def other(one: App, tuning: SyncTuning) -> AsyncIterator[App]:
    """Another process on the same board."""
    async with started(one.settings, tuning) as app:
        yield app
