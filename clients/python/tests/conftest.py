"""One API process for all tests of the client, and clients of it."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from leaderboard.config import Settings
from leaderboard_client import Leaderboard
from tests.fixtures import fresh_databases
from tests.system import ApiProcess

NewName = Callable[[], str]


@pytest.fixture(scope="session")
def service(template: Settings, redis_databases: deque[int]) -> Iterator[ApiProcess]:
    """A running service without keys, on databases of its own."""
    with fresh_databases(template, redis_databases) as settings:
        api = ApiProcess(settings)
        try:
            yield api.start()
        finally:
            api.kill()
            api.client.close()


@pytest.fixture
def lb(service: ApiProcess) -> Iterator[Leaderboard]:
    with Leaderboard(service.url) as client:
        yield client


@pytest.fixture(scope="session")
def new_name() -> NewName:
    """Returns another name for a user or a board with each call."""
    numbers = itertools.count(1)
    return lambda: f"client-{next(numbers)}"
