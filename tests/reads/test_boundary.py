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
RESULTS = 4000 * THOROUGH
"""How many results after a change must come from the cache."""


async def test_results_are_right_after_thousands_of_changes_around_the_last_cached_rank(
    settings: Settings,
) -> None:
    rng = random.Random(20_000)
    app = App(settings.model_copy(update={"cache_size": SIZE, "audit_interval_s": 0}))
    async with app.running():
        sql(
            settings,
            "INSERT INTO users (user_name, total_score)"
            " SELECT 'user ' || n, n / 2 FROM generate_series(1, $1) AS n",
            USERS,
        )
        for change in range(20 * RESULTS):
            if from_cache(app) >= RESULTS:
                break
            await one_change(app, rng, change)
            stored = await app.database.users.top(app.cache.keep + 1)
            reply = await app.service.reads.top(SIZE)
            assert reply.result.decode().users == [
                ranked(rank, user) for rank, user in enumerate(stored.value[:SIZE], 1)
            ]
            export = await app.cache.export()
            if export is not None and export.valid:
                # Nothing else writes, so a valid cache is up to date.
                kept = [user for user in stored.value if export.floor is None or export.floor.includes(user)]
                assert export.users == kept[: app.cache.keep]
    assert from_cache(app) >= RESULTS, "enough results must come from the cache"


def from_cache(app: App) -> float:
    """Returns how many results came from the cache."""
    return app.metrics.registry.get_sample_value("leaderboard_answers_total", {"source": "cache"}) or 0.0


async def one_change(app: App, rng: random.Random, change: int) -> None:
    """Mostly sets a score near the boundary, with ties. Sometimes adds or deletes a user by SQL."""
    user_id = rng.randint(1, USERS)
    kind = rng.random()
    if kind < 0.002:
        sql(app.settings, "DELETE FROM users WHERE user_id = $1", user_id)
        await app.sync.visibility.wait_until_visible(await app.database.now())
    elif kind < 0.01:
        await app.service.writes.create_user(f"new {change}", None, rng.randint(20, 60))
    else:
        try:
            await app.service.writes.set_score(user_id, rng.randint(30, 60))
        except UserNotFound:
            sql(
                app.settings,
                "INSERT INTO users (user_id, user_name, total_score) VALUES ($1, 'back ' || $2::text, 45)",
                user_id,
                str(change),
            )
            await app.sync.visibility.wait_until_visible(await app.database.now())
