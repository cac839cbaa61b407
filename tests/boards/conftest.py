"""A second session of PostgreSQL."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from leaderboard.config import Settings
from tests.system import connect


@pytest.fixture
async def session(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(settings)
    yield connection
    await connection.close()
