"""An open database, and writers that change its users."""

from collections.abc import AsyncIterator

import pytest

from leaderboard.app import database_from
from leaderboard.config import Settings
from leaderboard.database.database import Database
from tests.change_log.views import Writer
from tests.system import connect


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    opened = database_from(settings)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def writers(settings: Settings) -> AsyncIterator[list[Writer]]:
    connections = [await connect(settings) for _ in range(3)]
    yield [Writer(connection) for connection in connections]
    for connection in connections:
        await connection.close()
