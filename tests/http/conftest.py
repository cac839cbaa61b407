"""One API process for all tests of a module, because starting one takes a second."""

from collections.abc import Callable, Iterator

import pytest

from leaderboard.config import Settings
from tests.http.contract import Caller
from tests.http.ledger import Ledger
from tests.system import ApiProcess


@pytest.fixture(scope="module")
def start(module_settings: Settings) -> Iterator[Callable[..., Caller]]:
    """Starts API processes on the module's database; overrides of settings are keyword arguments."""
    started: list[Caller] = []

    def start(wait_for: str = "ok", **overrides: object) -> Caller:
        api = ApiProcess(module_settings.model_copy(update=overrides))
        try:
            api.start(wait_for)
            started.append(Caller(api))
        except BaseException:
            api.kill()
            raise
        return started[-1]

    yield start
    for caller in started:
        caller.close()
        caller.api.kill()
        caller.api.client.close()


@pytest.fixture(scope="module")
def caller(start: Callable[..., Caller]) -> Caller:
    """The module's API process, with the default settings."""
    return start()


@pytest.fixture(scope="module")
def ledger(caller: Caller) -> Ledger:
    """Records what the module writes with its API process."""
    return Ledger(caller)
