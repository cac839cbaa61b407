"""Some worlds of the explorer: what is cached of every board is what PostgreSQL had at the snapshot of the cache."""

import pytest

from leaderboard.config import Settings
from tests.boards.explorer import explore

pytestmark = pytest.mark.anyio



@pytest.mark.parametrize("seed", range(8))
async def test_no_interleaving_shows_anything_that_postgres_did_not_have(settings: Settings, seed: int) -> None:
    seen = await explore(settings, seed)
    assert min(seen[what] for what in ("committed", "applied", "offered", "season compared")) > 0, seen


async def test_many_more_interleavings(settings: Settings, pytestconfig: pytest.Config) -> None:
    first, last = pytestconfig.getoption("--worlds")
    for seed in range(first, last):
        await explore(settings, seed)
