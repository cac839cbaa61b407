"""A process reuses the state that its own last update made."""

from typing import cast

import pytest

from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.cache.state import CacheState
from tests.cache.processes import KEPT, POLLING, REUSING, cached, catch_up, make_valid, use_tuning
from tests.system import redis, sql

pytestmark = pytest.mark.anyio


@pytest.fixture
def polls(one: App, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets one item for each poll of the process `one`."""
    calls: list[int] = []
    poll = one.cache.poll

    async def counted(nonce: str, lease_ms: int) -> CacheState | None:
        calls.append(lease_ms)
        return await poll(nonce, lease_ms)

    monkeypatch.setattr(one.cache, "poll", counted)
    return calls


@use_tuning([REUSING])
async def test_a_process_does_not_poll_while_no_other_changes_the_cache(
    one: App, other: App, polls: list[int]
) -> None:
    await make_valid(one)
    polls.clear()
    for score in (5000, 6000, 7000):
        sql(one.settings, f"UPDATE users SET total_score = {score} WHERE user_id = 7")
        await catch_up(one)
        assert await cached(one) == (await one.database.users.top(KEPT)).value
    assert not polls
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    await catch_up(other)
    # It loses the race once. Then it polls each time until a poll finds no change by another process.
    for expected in (0, 1, 2):
        await catch_up(one)
        assert len(polls) == expected
    await catch_up(other)
    await catch_up(one)
    await catch_up(one)
    assert len(polls) == 3
    assert await cached(one) == (await one.database.users.top(KEPT)).value


@use_tuning([POLLING])
async def test_a_process_polls_when_its_own_last_state_is_old(one: App, polls: list[int]) -> None:
    await make_valid(one)
    polls.clear()
    client = redis(one.settings)
    seconds, microseconds = client.time()
    await catch_up(one)
    assert len(polls) == 1
    asof = cast("bytes", client.hget(keys.STATE, "asof"))
    assert int(asof) >= 1_000_000 * seconds + microseconds, "the state is at least as new as the catch-up"
    client.close()


@use_tuning([REUSING])
async def test_a_rebuild_after_own_updates_only_becomes_valid(one: App) -> None:
    await make_valid(one)
    assert await one.sync.synchronizer.rebuild("a test")
    assert await cached(one) == (await one.database.users.top(KEPT)).value
