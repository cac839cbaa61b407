"""Worlds of the explorer: the cache shows of every board what PostgreSQL had at its snapshot."""

import pytest

from leaderboard.config import Settings
from tests.boards.explorer import explore

pytestmark = pytest.mark.anyio

QUICK = 8
"""So many worlds are visited between two edits."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    first, last = map(int, metafunc.config.getoption("--worlds").split(":"))
    marks = [() if seed < first + QUICK else (pytest.mark.slow,) for seed in range(first, last)]
    metafunc.parametrize(
        "seed", [pytest.param(seed, marks=mark) for seed, mark in zip(range(first, last), marks, strict=True)]
    )


async def test_no_interleaving_shows_what_postgres_did_not_have(settings: Settings, seed: int) -> None:
    seen = await explore(settings, seed)
    assert min(seen["committed"], seen["applied"]) > 0, seen
