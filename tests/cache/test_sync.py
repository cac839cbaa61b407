"""The parts of two processes in one event loop, without timers, so that a test decides what happens when.

These are the interleavings that `sync/` is made for. A test holds a process at a call to a store. Everything else
is as in production, on real servers.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest

from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.cache.state import CacheState
from leaderboard.cache.store import MAX_CLAIM_MS
from leaderboard.config import Settings
from leaderboard.errors import CacheHangs, DatabaseUnavailable, UsernameTaken, UserNotFound
from leaderboard.maintenance.audits import CacheAudits
from leaderboard.model import ScoreSet, User, ranked
from leaderboard.tuning import SyncTuning, Tuning
from tests.system import PATIENCE_S, redis, sql, until

pytestmark = pytest.mark.anyio

SIZE = 10
KEPT = 20
USERS = 40
"""User 1 is the best, with a score of 1000; each has 10 less than the one before."""


@pytest.fixture
def tuning() -> SyncTuning:
    """The cache stays fresh for as long as a test takes. A test may use another one by `use_tuning`."""
    return SyncTuning(fresh_s=PATIENCE_S)


PATIENT = SyncTuning(fresh_s=PATIENCE_S, patience_s=PATIENCE_S)
"""No writer stops waiting for the cache."""
REUSING = SyncTuning(fresh_s=PATIENCE_S, reuse_own_state_s=PATIENCE_S)
"""A process that alone changes the cache never polls."""
POLLING = SyncTuning(fresh_s=PATIENCE_S, patience_s=PATIENCE_S, reuse_own_state_s=0)
"""No writer stops waiting for the cache, and every catching up begins with a poll."""
use_tuning = partial(pytest.mark.parametrize, "tuning")


@asynccontextmanager
async def opened(settings: Settings, tuning: SyncTuning) -> AsyncIterator[App]:
    app = App(settings.model_copy(update={"cache_size": SIZE}), Tuning(sync=tuning))
    await app.database.open()
    await app.reader.open()
    app.health.note_postgres(await app.database.now())
    try:
        yield app
    finally:
        await app.close()


@pytest.fixture
async def one(settings: Settings, tuning: SyncTuning) -> AsyncIterator[App]:
    """A process, on a board twice as large as its cache. There is no cache yet."""
    sql(
        settings,
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'user ' || n, 1010 - 10 * n FROM generate_series(1, $1) AS n",
        USERS,
    )
    async with opened(settings, tuning) as app:
        yield app


@pytest.fixture
async def other(one: App, tuning: SyncTuning) -> AsyncIterator[App]:
    """Another process on the same board."""
    async with opened(one.settings, tuning) as app:
        yield app


class Held:
    """A public method that waits before or after its work, from its first call until the test lets it go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, before: bool = False) -> None:
        self._method = getattr(owner, name)
        self._before = before
        self._reached = asyncio.Event()
        self._go = asyncio.Event()
        monkeypatch.setattr(owner, name, self._held)

    async def _held(self, *arguments: Any, **options: Any) -> Any:
        if self._before:
            await self._wait()
            return await self._method(*arguments, **options)
        result = await self._method(*arguments, **options)
        await self._wait()
        return result

    async def _wait(self) -> None:
        self._reached.set()
        await self._go.wait()

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), PATIENCE_S)

    def let_go(self) -> None:
        self._go.set()


async def look(app: App) -> None:
    """Do what the timer and the writers do."""
    await app.sync.synchronizer.catch_up()


async def cached(app: App) -> list[User] | None:
    """All cached users, best first, if the cache is valid."""
    export = await app.cache.export()
    return export.users if export is not None and export.valid else None


async def in_use(app: App) -> None:
    """Have that process bring the cache up to date, so that it is read."""
    await look(app)

    async def is_read() -> bool:
        return await cached(app) is not None

    await until(is_read, "the cache is valid")
    await look(app)


async def top(app: App, n: int) -> list[tuple[int, int]]:
    """Id and score of the best `n`, as that process shows them."""
    reply = await app.reads.top(n)
    return [(user.user_id, user.total_score) for user in reply.result.decode().users]


def metric(app: App, name: str, **labels: str) -> float:
    """The value of a metric of that process."""
    return app.metrics.registry.get_sample_value(name, labels) or 0.0


def from_cache(app: App) -> float:
    """How many queries of that process the cache has answered."""
    return metric(app, "leaderboard_answers_total", source="cache")


def waiting(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    async def are() -> bool:
        return app.sync.visibility.awaited == count

    return are


# No later read takes an answer back


async def test_the_service_works(one: App, other: App) -> None:
    """The plain case, which has to work without any of the mechanisms that mutants remove."""
    await in_use(one)
    await look(one)
    assert await one.writes.set_score(40, 5000) == ScoreSet(40, "user 40", None, 5000, 610)
    created = await one.writes.create_user("new", None, 4000)
    assert (created.user_id, created.total_score) == (41, 4000)
    with pytest.raises(UserNotFound):
        await one.writes.set_score(99, 0)
    await one.sync.visibility.wait_until_visible(await one.database.now())
    assert (await top(other, 5))[:2] == [(40, 5000), (41, 4000)]


@use_tuning([PATIENT])
async def test_a_score_that_is_acknowledged_is_shown_by_the_cache(one: App, other: App) -> None:
    await in_use(one)
    before = from_cache(other)
    await one.writes.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    assert from_cache(other) > before


@use_tuning([PATIENT])
async def test_a_user_that_was_created_is_shown_by_the_cache(one: App, other: App) -> None:
    await in_use(one)
    before = from_cache(other)
    created = await one.writes.create_user("new", None, 5000)
    assert await top(other, 1) == [(created.user_id, 5000)]
    assert from_cache(other) > before


@use_tuning([POLLING])
async def test_a_score_is_acknowledged_only_when_the_cache_shows_it(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    held = Held(monkeypatch, one.database.change_log, "catch_up")
    write = asyncio.create_task(one.writes.set_score(7, 5000))
    # The state that this catching up starts from is known, and does not show the score.
    await held.reached()
    assert not write.done()
    assert await top(other, 1) == [(1, 1000)]
    held.let_go()
    await write
    assert await top(other, 1) == [(7, 5000)]


@use_tuning([PATIENT])
async def test_a_write_that_is_answered_again_is_shown_by_the_cache(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that did it has committed, and has not answered yet."""
    await in_use(one)
    held = Held(monkeypatch, one.database.change_log, "catch_up", before=True)
    first = asyncio.create_task(one.writes.set_score(7, 5000, ("caller", "key")))
    await held.reached()
    again = await other.writes.set_score(7, 5000, ("caller", "key"))
    assert again == ScoreSet(7, "user 7", None, 5000, 940)
    assert await top(other, 1) == [(7, 5000)]
    held.let_go()
    assert await first == again


async def test_the_cache_shows_what_postgres_has_shown(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    assert (await top(one, USERS))[0] == (7, 5000)
    assert await top(other, 1) == [(7, 5000)]


async def test_a_user_that_postgres_did_not_find_is_not_in_the_cache(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "DELETE FROM users WHERE user_id IN (1, 30)")
    with pytest.raises(UserNotFound):
        await one.reads.standing(30)
    assert await top(other, 1) == [(2, 990)]


async def test_a_user_whose_score_could_not_be_set_is_not_in_the_cache(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "DELETE FROM users WHERE user_id = 1")
    with pytest.raises(UserNotFound):
        await one.writes.set_score(1, 5)
    assert await top(other, 1) == [(2, 990)]


async def test_a_user_whose_name_was_taken_is_in_the_cache(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "INSERT INTO users (user_name, total_score) VALUES ('new', 5000)")
    with pytest.raises(UsernameTaken):
        await one.writes.create_user("new", None, 0)
    assert await top(other, 1) == [(41, 5000)]


# Several processes change the cache


async def test_a_catching_up_that_lost_the_race_takes_nothing_back(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    sql(one.settings, "UPDATE users SET total_score = 4000 WHERE user_id = 7")
    slow = Held(monkeypatch, one.database.change_log, "catch_up")
    late = asyncio.create_task(look(one))
    await slow.reached()
    await other.writes.set_score(7, 5000)
    slow.let_go()
    await late
    assert await top(other, 1) == [(7, 5000)]


@use_tuning([SyncTuning(fresh_s=PATIENCE_S, claim_ms=MAX_CLAIM_MS)])
async def test_a_rebuild_begun_before_a_write_does_not_hide_it(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no cache that the writer could have waited for.

    The writer's process neither rebuilds the cache nor catches it up. Either would bring in the write.
    """
    rebuild = Held(monkeypatch, other.cache, "claim", before=True)
    catching_up = Held(monkeypatch, other.database.change_log, "catch_up", before=True)
    snapshot = Held(monkeypatch, one.database.users, "top_and_total")
    use = Held(monkeypatch, one.database.change_log, "catch_up", before=True)
    rebuilding = asyncio.create_task(one.sync.synchronizer.rebuild("the test wants it"))
    await snapshot.reached()
    await other.writes.set_score(7, 5000)
    snapshot.let_go()
    await use.reached()
    assert await top(other, 1) == [(7, 5000)]
    for held in (use, catching_up, rebuild):
        held.let_go()
    assert await rebuilding


async def test_a_writer_that_waits_too_long_invalidates_the_cache(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database.change_log, "catch_up", before=True)
    write = asyncio.create_task(one.writes.set_score(7, 5000))
    await asyncio.wait([write], timeout=PATIENCE_S)
    assert write.done(), "it answers without having caught up"
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()


async def test_invalidating_is_tried_again_while_redis_hangs(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database.change_log, "catch_up", before=True)
    invalidate, tries = one.cache.invalidate, 0

    async def hangs_twice() -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise CacheHangs("Redis did not answer")
        await invalidate()

    monkeypatch.setattr(one.cache, "invalidate", hangs_twice)
    await one.writes.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()


@use_tuning([SyncTuning()])
async def test_invalidating_ends_when_no_state_from_before_the_commit_is_fresh(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis does everything, but answers each call too late."""
    await in_use(one)
    stuck = Held(monkeypatch, one.database.change_log, "catch_up", before=True)

    async def hangs() -> None:
        await asyncio.sleep(0.01)
        raise CacheHangs("Redis did not answer")

    monkeypatch.setattr(one.cache, "invalidate", hangs)
    await writes_once_no_old_state_is_read(one, other)
    stuck.let_go()


@use_tuning([SyncTuning()])
async def test_an_unexpected_error_lets_no_writer_go_too_early(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database.change_log, "catch_up", before=True)

    async def fails() -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(one.cache, "invalidate", fails)
    await writes_once_no_old_state_is_read(one, other)
    stuck.let_go()


async def writes_once_no_old_state_is_read(one: App, other: App) -> None:
    """Set a score, and read from the other process when that is answered; two writers wait one after the other."""
    first = asyncio.create_task(one.writes.set_score(7, 5000))
    await until(waiting(one, 1), "the first has committed")
    second = asyncio.create_task(one.writes.set_score(8, 6000))
    done, _ = await asyncio.wait({first, second}, timeout=PATIENCE_S)
    assert first in done
    assert (7, 5000) in await top(other, 2)
    await asyncio.wait_for(second, PATIENCE_S)
    assert await top(other, 1) == [(8, 6000)]


async def test_invalidating_does_not_depend_on_the_connection_that_hangs(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    hanging = Held(monkeypatch, one.cache.catch_up_link, "run", before=True)
    done, _ = await asyncio.wait({asyncio.create_task(one.writes.set_score(7, 5000))}, timeout=PATIENCE_S)
    assert done
    assert await top(other, 1) == [(7, 5000)]
    hanging.let_go()


async def test_invalidating_does_not_depend_on_a_connection_that_was_closed(
    one: App, other: App, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = redis(settings)

    def clients() -> set[str]:
        return {client["id"] for client in by_hand.client_list()}

    await in_use(one)
    before = clients()
    await one.cache.invalidate()
    (its_connection,) = clients() - before
    await look(one)
    await in_use(one)
    assert by_hand.client_kill_filter(_id=its_connection) == 1
    stuck = Held(monkeypatch, one.database.change_log, "catch_up", before=True)
    await one.writes.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()
    by_hand.close()


@use_tuning([PATIENT])
async def test_a_commit_after_redis_was_found_empty_is_not_released_by_that(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild = Held(monkeypatch, one.cache, "claim", before=True)
    asked = Held(monkeypatch, one.cache, "poll")
    first = asyncio.create_task(one.writes.set_score(7, 2000))
    await asked.reached()
    # There was none, but now there is.
    await in_use(other)
    second = asyncio.create_task(one.writes.set_score(8, 5000))
    await until(waiting(one, 2), "the second has committed")
    asked.let_go()
    await asyncio.gather(first, second)
    assert await top(other, 1) == [(8, 5000)]
    rebuild.let_go()


async def test_a_commit_after_the_cache_was_invalidated_is_not_released_by_that(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database.change_log, "catch_up", before=True)
    done = Held(monkeypatch, one.cache, "invalidate")
    first = asyncio.create_task(one.writes.set_score(7, 2000))
    await done.reached()
    # It was invalid, and is valid again.
    await in_use(other)
    second = asyncio.create_task(one.writes.set_score(8, 5000))
    await until(waiting(one, 2), "the second has committed")
    done.let_go()
    await asyncio.gather(first, second)
    assert await top(other, 1) == [(8, 5000)]
    stuck.let_go()


# Which database the cache is of


def pretend(app: App, epoch: str, snapshot: str = "9000000:9000000:") -> None:
    """Make the cache one of another epoch: it says so, and shows other scores."""
    by_hand = redis(app.settings)
    by_hand.hset(keys.STATE, mapping={"token": "0123456789abcdef", "epoch": epoch, "snapshot": snapshot})
    by_hand.zadd(keys.SCORES, {member(7): -5000})
    by_hand.close()


@use_tuning([POLLING])
async def test_a_cache_of_another_epoch_is_rebuilt_and_not_caught_up(one: App) -> None:
    await in_use(one)
    # From this snapshot it could be caught up, if it were one of this epoch.
    pretend(one, "3|another/database/of/all", str((await one.database.now()).snapshot))
    best = (await one.database.users.top(KEPT)).value

    async def is_valid() -> bool:
        await look(one)
        users = await cached(one)
        assert users in (None, best)
        return users is not None

    await until(is_valid, "the cache is that of the database")


async def test_a_cache_of_another_epoch_is_not_read(one: App) -> None:
    await in_use(one)
    pretend(one, "3|another/database/of/all")
    assert await top(one, 1) == [(1, 1000)]


@pytest.mark.parametrize("which", ["another epoch", "another database", "another cluster"])
async def test_without_postgres_only_a_cache_of_its_own_database_is_read(one: App, which: str) -> None:
    await in_use(one)
    assert one.health.epoch is not None
    cluster, database, *_ = one.health.epoch.split("/")
    pretend(
        one,
        {
            "another epoch": f"3|{cluster}/{database}/0/0",
            "another database": f"3|{cluster}/{database}0/0/0",
            "another cluster": f"3|{cluster}0/{database}/0/0",
        }[which],
    )
    one.health.postgres_up = False
    if which == "another epoch":
        reply = await one.reads.top(1)
        assert reply.age_s is not None
        assert await top(one, 1) == [(7, 5000)]
    else:
        with pytest.raises(DatabaseUnavailable):
            await one.reads.top(1)


# Rebuilding


async def test_a_barrier_leads_to_a_rebuild(one: App) -> None:
    await in_use(one)
    sql(one.settings, "TRUNCATE users")
    await in_use(one)
    assert await cached(one) == []


async def test_a_cache_is_complete_down_to_its_floor_and_says_so(one: App) -> None:
    await in_use(one)
    best = (await one.database.users.top(USERS)).value
    assert await cached(one) == best[:KEPT]
    assert await top(one, USERS) == [(user.user_id, user.total_score) for user in best]
    assert (await one.reads.standing(30)).result == ranked(30, best[29])


async def test_a_cache_from_which_too_many_fell_is_filled_again(one: App) -> None:
    await in_use(one)
    sql(one.settings, "UPDATE users SET total_score = -total_score WHERE user_id <= 12")
    await look(one)

    async def filled() -> bool:
        return len(await cached(one) or []) == KEPT

    await until(filled, "it is filled again")
    assert await cached(one) == (await one.database.users.top(KEPT)).value


async def test_a_batch_that_was_done_in_parts_waits_for_the_cache_once(one: App) -> None:
    await in_use(one)
    sql(one.settings, "ALTER TABLE users ADD CHECK (total_score <> 666)")
    by_hand = redis(one.settings)
    by_hand.set(keys.LEASE, "somebody who stands still", px=60_000)
    wanted = {user_id: 666 if user_id in {3, 11, 19} else user_id for user_id in range(1, 31)}
    setting = [one.writes.set_score(user_id, score) for user_id, score in wanted.items()]
    results = await asyncio.gather(*setting, return_exceptions=True)
    assert sum(isinstance(result, ScoreSet) for result in results) == 27
    assert metric(one, "leaderboard_batch_items_sum", queue="scores") >= 30
    assert metric(one, "leaderboard_invalidations_total") <= 2, (
        "one for each commit would be many times a writer's patience"
    )
    by_hand.close()


# A state that this process has just made


@pytest.fixture
def polls(one: App, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The polls of that process, as a list that grows."""
    asked: list[int] = []
    poll = one.cache.poll

    async def counted(nonce: str, lease_ms: int) -> CacheState | None:
        asked.append(lease_ms)
        return await poll(nonce, lease_ms)

    monkeypatch.setattr(one.cache, "poll", counted)
    return asked


@use_tuning([REUSING])
async def test_a_process_that_alone_changes_the_cache_does_not_poll(
    one: App, other: App, polls: list[int]
) -> None:
    await in_use(one)
    polls.clear()
    for score in (5000, 6000, 7000):
        sql(one.settings, f"UPDATE users SET total_score = {score} WHERE user_id = 7")
        await look(one)
        assert await cached(one) == (await one.database.users.top(KEPT)).value
    assert not polls
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    await look(other)
    # It loses the race once, polls, and polls for as long as it finds changes by others.
    for expected in (0, 1, 2):
        await look(one)
        assert len(polls) == expected
    await look(other)
    await look(one)
    await look(one)
    assert len(polls) == 3
    assert await cached(one) == (await one.database.users.top(KEPT)).value


@use_tuning([POLLING])
async def test_an_old_state_of_its_own_is_polled_again(one: App, polls: list[int]) -> None:
    await in_use(one)
    polls.clear()
    by_hand = redis(one.settings)
    seconds, microseconds = by_hand.time()
    await look(one)
    assert len(polls) == 1
    asof = cast("bytes", by_hand.hget(keys.STATE, "asof"))
    assert int(asof) >= 1_000_000 * seconds + microseconds, "it is no older than the look"
    by_hand.close()


@use_tuning([REUSING])
async def test_a_rebuild_by_the_process_that_alone_changed_the_cache_becomes_valid(one: App) -> None:
    await in_use(one)
    assert await one.sync.synchronizer.rebuild("it is to be tried")
    assert await cached(one) == (await one.database.users.top(KEPT)).value


@pytest.mark.parametrize("how", ["a score", "a name"])
async def test_an_audit_finds_a_difference_and_the_cache_is_rebuilt(one: App, how: str) -> None:
    await in_use(one)
    by_hand = redis(one.settings)
    if how == "a score":
        by_hand.zadd(keys.SCORES, {member(7): -5000})
    else:
        by_hand.hset(keys.METADATA, member(7), b'{"username":"mallory","imageUrl":null}')
    assert [difference.user_id for difference in (await one.sync.auditor.audit()).differences] == [7]
    auditing = asyncio.create_task(CacheAudits(one.sync, one.metrics, 0.2).run())

    async def healed() -> bool:
        return await cached(one) == (await one.database.users.top(KEPT)).value

    try:
        await until(healed, "the cache is right again")
    finally:
        auditing.cancel()
    assert metric(one, "leaderboard_audit_differences_total") >= 1


async def test_an_audit_compares_at_one_snapshot(one: App, monkeypatch: pytest.MonkeyPatch) -> None:
    await in_use(one)
    exported = Held(monkeypatch, one.cache, "export")
    auditing = asyncio.create_task(one.sync.auditor.audit())
    await exported.reached()
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    exported.let_go()
    audit = await auditing
    assert (audit.compared, audit.differences) == (KEPT, [])
