"""The cache of another epoch, database or cluster is not read; a cache is rebuilt where it must be."""

import asyncio

import pytest

from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.errors import DatabaseUnavailable
from leaderboard.model import ScoreSet, ranked
from tests.cache.processes import (
    KEPT,
    POLLING,
    USERS,
    cached,
    catch_up,
    change_epoch,
    make_valid,
    metric,
    top,
    use_tuning,
)
from tests.system import redis, sql, until

pytestmark = pytest.mark.anyio


# Epochs


@use_tuning([POLLING])
async def test_a_cache_of_another_epoch_is_rebuilt_and_not_caught_up(one: App) -> None:
    await make_valid(one)
    # With this snapshot the cache could be caught up if its epoch were the present one.
    change_epoch(one, "5|another/database/of/all", str((await one.database.now()).snapshot))
    best = (await one.database.users.top(KEPT)).value

    async def is_valid() -> bool:
        await catch_up(one)
        users = await cached(one)
        assert users in (None, best)
        return users is not None

    await until(is_valid, "the cache has the users of the database")


async def test_a_cache_of_another_epoch_is_not_read(one: App) -> None:
    await make_valid(one)
    change_epoch(one, "5|another/database/of/all")
    assert await top(one, 1) == [(1, 1000)]


@pytest.mark.parametrize("which", ["another epoch", "another database", "another cluster"])
async def test_without_postgres_only_a_cache_of_its_own_database_is_read(one: App, which: str) -> None:
    await make_valid(one)
    assert one.health.epoch is not None
    cluster, database, *_ = one.health.epoch.split("/")
    change_epoch(
        one,
        {
            "another epoch": f"5|{cluster}/{database}/0/0",
            "another database": f"5|{cluster}/{database}0/0/0",
            "another cluster": f"5|{cluster}0/{database}/0/0",
        }[which],
    )
    one.health.postgres_up = False
    if which == "another epoch":
        reply = await one.service.reads.top(1)
        assert reply.age_s is not None
        assert await top(one, 1) == [(7, 5000)]
    else:
        with pytest.raises(DatabaseUnavailable):
            await one.service.reads.top(1)


# Rebuilding


async def test_a_barrier_leads_to_a_rebuild(one: App) -> None:
    await make_valid(one)
    sql(one.settings, "TRUNCATE users CASCADE")
    await make_valid(one)
    assert await cached(one) == []


async def test_a_cache_answers_for_all_ranks_down_to_its_floor_and_no_others(one: App) -> None:
    await make_valid(one)
    best = (await one.database.users.top(USERS)).value
    assert await cached(one) == best[:KEPT]
    assert await top(one, USERS) == [(user.user_id, user.total_score) for user in best]
    assert (await one.service.reads.standing(30)).result == ranked(30, best[29])


async def test_a_cache_that_lost_too_many_users_is_filled_again(one: App) -> None:
    await make_valid(one)
    sql(one.settings, "UPDATE users SET total_score = -total_score WHERE user_id <= 12")
    await catch_up(one)

    async def filled() -> bool:
        return len(await cached(one) or []) == KEPT

    await until(filled, "the cache is filled again")
    assert await cached(one) == (await one.database.users.top(KEPT)).value


async def test_a_batch_committed_in_parts_waits_for_the_cache_once(one: App) -> None:
    await make_valid(one)
    sql(one.settings, "ALTER TABLE users ADD CHECK (total_score <> 666)")
    client = redis(one.settings)
    client.set(keys.LEASE, "a paused process", px=60_000)
    wanted = {user_id: 666 if user_id in {3, 11, 19} else user_id for user_id in range(1, 31)}
    setting = [one.service.writes.set_score(user_id, score) for user_id, score in wanted.items()]
    results = await asyncio.gather(*setting, return_exceptions=True)
    assert sum(isinstance(result, ScoreSet) for result in results) == 27
    assert metric(one, "leaderboard_batch_items_sum", queue="scores") >= 30
    assert metric(one, "leaderboard_invalidations_total") <= 2, (
        "a wait for each commit would take many times as long"
    )
    client.close()
