"""Changes users around the last cached rank; after each change the cache has exactly the best users."""

import random

import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.errors import UserNotFound
from leaderboard.model import ranked
from tests.system import THOROUGH, sql

pytestmark = pytest.mark.anyio

SIZE = 40
USERS = 120
ANSWERS = 4000 * THOROUGH
"""How many answers after a change have to come from the cache."""


async def test_thousands_of_changes_around_the_last_cached_rank(settings: Settings) -> None:
    chance = random.Random(20_000)
    board = App(settings.model_copy(update={"cache_size": SIZE, "audit_interval_s": 0}))
    async with board.running():
        sql(
            settings,
            "INSERT INTO users (user_name, total_score)"
            " SELECT 'user ' || n, n / 2 FROM generate_series(1, $1) AS n",
            USERS,
        )
        for change in range(20 * ANSWERS):
            if from_cache(board) >= ANSWERS:
                break
            await one_change(board, chance, change)
            stored = await board.database.users.top(board.cache.keep + 1)
            reply = await board.reads.top(SIZE)
            assert reply.result.decode().users == [
                ranked(rank, user) for rank, user in enumerate(stored.value[:SIZE], 1)
            ]
            export = await board.cache.export()
            if export is not None and export.valid:
                # Nothing else changes: a valid cache is up to date.
                held = [user for user in stored.value if export.floor is None or export.floor.includes(user)]
                assert export.users == held[: board.cache.keep]
    assert from_cache(board) >= ANSWERS, "the cache has to be what was tested"


def from_cache(board: App) -> float:
    """How many answers came from the cache."""
    return board.metrics.registry.get_sample_value("leaderboard_answers_total", {"source": "cache"}) or 0.0


async def one_change(board: App, chance: random.Random, change: int) -> None:
    """Mostly scores near the boundary, by ties; now and then a user comes or goes by hand."""
    user_id = chance.randint(1, USERS)
    kind = chance.random()
    if kind < 0.002:
        sql(board.settings, "DELETE FROM users WHERE user_id = $1", user_id)
        await board.sync.visibility.wait_until_visible(await board.database.now())
    elif kind < 0.01:
        await board.writes.create_user(f"new {change}", None, chance.randint(20, 60))
    else:
        try:
            await board.writes.set_score(user_id, chance.randint(30, 60))
        except UserNotFound:
            sql(
                board.settings,
                "INSERT INTO users (user_id, user_name, total_score) VALUES ($1, 'back ' || $2::text, 45)",
                user_id,
                str(change),
            )
            await board.sync.visibility.wait_until_visible(await board.database.now())
