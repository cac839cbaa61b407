"""What a process has shown or acknowledged, later reads by any process show."""

import asyncio

import pytest

from leaderboard.app import App
from leaderboard.cache.store import MAX_CLAIM_MS
from leaderboard.config import Settings
from leaderboard.errors import CacheHangs, UsernameTaken, UserNotFound
from leaderboard.model import ScoreSet
from leaderboard.tuning import SyncTuning
from tests.cache.processes import (
    PATIENT,
    POLLING,
    USERS,
    Held,
    catch_up,
    from_cache,
    make_valid,
    top,
    use_tuning,
    waiting,
)
from tests.system import PATIENCE_S, redis, sql, until

pytestmark = pytest.mark.anyio


# No later read takes an answer back


async def test_the_service_works(one: App, other: App) -> None:
    """Tests the plain case, which works without any of the mechanisms that mutants remove."""
    await make_valid(one)
    await catch_up(one)
    assert await one.service.writes.set_score(40, 5000) == ScoreSet(40, "user 40", None, 5000, 610)
    created = await one.service.writes.create_user("new", None, 4000)
    assert (created.user_id, created.total_score) == (41, 4000)
    with pytest.raises(UserNotFound):
        await one.service.writes.set_score(99, 0)
    await one.sync.visibility.wait_until_visible(await one.database.now())
    assert (await top(other, 5))[:2] == [(40, 5000), (41, 4000)]


@use_tuning([PATIENT])
async def test_an_acknowledged_score_is_shown_by_the_cache(one: App, other: App) -> None:
    await make_valid(one)
    before = from_cache(other)
    await one.service.writes.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    assert from_cache(other) > before


@use_tuning([PATIENT])
async def test_a_user_that_was_created_is_shown_by_the_cache(one: App, other: App) -> None:
    await make_valid(one)
    before = from_cache(other)
    created = await one.service.writes.create_user("new", None, 5000)
    assert await top(other, 1) == [(created.user_id, 5000)]
    assert from_cache(other) > before


@use_tuning([POLLING])
async def test_a_score_is_acknowledged_only_when_the_cache_shows_it(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    held = Held(monkeypatch, one.database.change_log, "changes_since")
    write = asyncio.create_task(one.service.writes.set_score(7, 5000))
    # The catch-up has read its changes, and has not applied them.
    await held.reached()
    assert not write.done()
    assert await top(other, 1) == [(1, 1000)]
    held.release()
    await write
    assert await top(other, 1) == [(7, 5000)]


@use_tuning([PATIENT])
async def test_a_write_that_is_answered_again_is_shown_by_the_cache(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of the first write has committed, and has not answered yet."""
    await make_valid(one)
    held = Held(monkeypatch, one.database.change_log, "changes_since", before=True)
    first = asyncio.create_task(one.service.writes.set_score(7, 5000, ("caller", "key")))
    await held.reached()
    again = await other.service.writes.set_score(7, 5000, ("caller", "key"))
    assert again == ScoreSet(7, "user 7", None, 5000, 940)
    assert await top(other, 1) == [(7, 5000)]
    held.release()
    assert await first == again


async def test_the_cache_shows_a_change_that_a_read_of_postgres_has_shown(one: App, other: App) -> None:
    await make_valid(one)
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    assert (await top(one, USERS))[0] == (7, 5000)
    assert await top(other, 1) == [(7, 5000)]


async def test_a_user_not_found_by_a_read_is_not_in_the_cache(one: App, other: App) -> None:
    await make_valid(one)
    sql(one.settings, "DELETE FROM users WHERE user_id IN (1, 30)")
    with pytest.raises(UserNotFound):
        await one.service.reads.standing(30)
    assert await top(other, 1) == [(2, 990)]


async def test_a_user_not_found_by_a_write_is_not_in_the_cache(one: App, other: App) -> None:
    await make_valid(one)
    sql(one.settings, "DELETE FROM users WHERE user_id = 1")
    with pytest.raises(UserNotFound):
        await one.service.writes.set_score(1, 5)
    assert await top(other, 1) == [(2, 990)]


async def test_a_user_whose_name_was_taken_is_in_the_cache(one: App, other: App) -> None:
    await make_valid(one)
    sql(one.settings, "INSERT INTO users (user_name, total_score) VALUES ('new', 5000)")
    with pytest.raises(UsernameTaken):
        await one.service.writes.create_user("new", None, 0)
    assert await top(other, 1) == [(41, 5000)]


# Several processes change the cache


async def test_a_catch_up_that_loses_the_race_undoes_nothing(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    sql(one.settings, "UPDATE users SET total_score = 4000 WHERE user_id = 7")
    slow = Held(monkeypatch, one.database.change_log, "changes_since")
    late = asyncio.create_task(catch_up(one))
    await slow.reached()
    await other.service.writes.set_score(7, 5000)
    slow.release()
    await late
    assert await top(other, 1) == [(7, 5000)]


@use_tuning([SyncTuning(fresh_s=PATIENCE_S, claim_ms=MAX_CLAIM_MS)])
async def test_a_rebuild_begun_before_a_write_does_not_hide_it(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer finds no cache that it could wait for.

    The writer's process neither rebuilds the cache nor catches it up, because either would add the write.
    """
    rebuild = Held(monkeypatch, other.cache, "claim", before=True)
    catch_up_by_other = Held(monkeypatch, other.database.change_log, "changes_since", before=True)
    snapshot = Held(monkeypatch, one.database.users, "top_and_total")
    catch_up_by_one = Held(monkeypatch, one.database.change_log, "changes_since", before=True)
    rebuilding = asyncio.create_task(one.sync.synchronizer.rebuild("a test"))
    await snapshot.reached()
    await other.service.writes.set_score(7, 5000)
    snapshot.release()
    await catch_up_by_one.reached()
    assert await top(other, 1) == [(7, 5000)]
    for held in (catch_up_by_one, catch_up_by_other, rebuild):
        held.release()
    assert await rebuilding


async def test_a_writer_that_waits_too_long_invalidates_the_cache(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    stuck = Held(monkeypatch, one.database.change_log, "changes_since", before=True)
    write = asyncio.create_task(one.service.writes.set_score(7, 5000))
    await asyncio.wait([write], timeout=PATIENCE_S)
    assert write.done(), "the write is answered although the cache has not been caught up"
    assert await top(other, 1) == [(7, 5000)]
    stuck.release()


async def test_invalidating_is_tried_again_while_redis_hangs(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    stuck = Held(monkeypatch, one.database.change_log, "changes_since", before=True)
    invalidate, tries = one.cache.invalidate, 0

    async def hang_twice() -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise CacheHangs("Redis did not answer")
        await invalidate()

    monkeypatch.setattr(one.cache, "invalidate", hang_twice)
    await one.service.writes.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    stuck.release()


@use_tuning([SyncTuning()])
async def test_invalidating_ends_when_no_state_from_before_the_commit_is_fresh(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis does everything, but answers each call too late."""
    await make_valid(one)
    stuck = Held(monkeypatch, one.database.change_log, "changes_since", before=True)

    async def hangs() -> None:
        await asyncio.sleep(0.01)
        raise CacheHangs("Redis did not answer")

    monkeypatch.setattr(one.cache, "invalidate", hangs)
    await writes_once_no_old_state_is_read(one, other)
    stuck.release()


@use_tuning([SyncTuning()])
async def test_an_unexpected_error_lets_no_writer_go_too_early(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    stuck = Held(monkeypatch, one.database.change_log, "changes_since", before=True)

    async def fails() -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(one.cache, "invalidate", fails)
    await writes_once_no_old_state_is_read(one, other)
    stuck.release()


async def writes_once_no_old_state_is_read(one: App, other: App) -> None:
    """Set a score, and read from the other process when that is answered; two writers wait one after the other."""
    first = asyncio.create_task(one.service.writes.set_score(7, 5000))
    await until(waiting(one, 1), "the first has committed")
    second = asyncio.create_task(one.service.writes.set_score(8, 6000))
    done, _ = await asyncio.wait({first, second}, timeout=PATIENCE_S)
    assert first in done
    assert (7, 5000) in await top(other, 2)
    await asyncio.wait_for(second, PATIENCE_S)
    assert await top(other, 1) == [(8, 6000)]


async def test_invalidating_does_not_depend_on_the_connection_that_hangs(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    hanging = Held(monkeypatch, one.cache.catch_up_link, "run", before=True)
    done, _ = await asyncio.wait({asyncio.create_task(one.service.writes.set_score(7, 5000))}, timeout=PATIENCE_S)
    assert done
    assert await top(other, 1) == [(7, 5000)]
    hanging.release()


async def test_invalidating_does_not_depend_on_a_connection_that_was_closed(
    one: App, other: App, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis(settings)

    def clients() -> set[str]:
        return {client["id"] for client in client.client_list()}

    await make_valid(one)
    before = clients()
    await one.cache.invalidate()
    (its_connection,) = clients() - before
    await catch_up(one)
    await make_valid(one)
    assert client.client_kill_filter(_id=its_connection) == 1
    stuck = Held(monkeypatch, one.database.change_log, "changes_since", before=True)
    await one.service.writes.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    stuck.release()
    client.close()


@use_tuning([PATIENT])
async def test_finding_redis_empty_does_not_release_writers_that_commit_later(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild = Held(monkeypatch, one.cache, "claim", before=True)
    polled = Held(monkeypatch, one.cache, "poll")
    first = asyncio.create_task(one.service.writes.set_score(7, 2000))
    await polled.reached()
    # The poll found no cache. Now there is one.
    await make_valid(other)
    second = asyncio.create_task(one.service.writes.set_score(8, 5000))
    await until(waiting(one, 2), "the second has committed")
    polled.release()
    await asyncio.gather(first, second)
    assert await top(other, 1) == [(8, 5000)]
    rebuild.release()


async def test_an_invalidation_does_not_release_writers_that_commit_later(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_valid(one)
    stuck = Held(monkeypatch, one.database.change_log, "changes_since", before=True)
    done = Held(monkeypatch, one.cache, "invalidate")
    first = asyncio.create_task(one.service.writes.set_score(7, 2000))
    await done.reached()
    # The cache was invalidated. Now it is valid again.
    await make_valid(other)
    second = asyncio.create_task(one.service.writes.set_score(8, 5000))
    await until(waiting(one, 2), "the second has committed")
    done.release()
    await asyncio.gather(first, second)
    assert await top(other, 1) == [(8, 5000)]
    stuck.release()
