"""An open database with a rank index, and a second session."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.rank_index import RankIndex
from tests.rank_index.index import TUNING, USERS, add, maintain, opened
from tests.system import connect


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with opened(settings) as database:
        yield database


@pytest.fixture
async def ranks(database: Database, db: asyncpg.Connection) -> RankIndex:
    """A rank index of 1,000 users. Their scores are ten apart, and the user with the id n has the rank n."""
    await add(db, [10 * (USERS - n) for n in range(USERS)])
    ranks = RankIndex(database.connections, TUNING)
    assert await maintain(ranks) == "built"
    return ranks


@pytest.fixture
async def session(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(settings)
    yield connection
    await connection.close()
