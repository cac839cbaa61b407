"""Sessions, databases and a second process for the tests of writes."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database.database import Database
from tests.system import connect
from tests.writes.writing import opened


@pytest.fixture
async def session(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A second session of PostgreSQL, as with psql."""
    connection = await connect(settings)
    yield connection
    await connection.close()


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with opened(settings) as database:
        yield database


@pytest.fixture
async def second_app(settings: Settings) -> AsyncIterator[App]:
    """A second process of the service on the same databases."""
    running = App(settings)
    async with running.running():
        yield running
