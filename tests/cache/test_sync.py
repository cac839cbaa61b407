"""Two processes' parts in one event loop, each step of them where a test wants it: no timer runs.

What is told here are the interleavings that `sync.py` is made for. Whoever is held is held at a call to a store;
everything else is as in production, on real servers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from leaderboard import service as service_module
from leaderboard import sync as sync_module
from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.cache.store import CacheState
from leaderboard.config import Settings
from leaderboard.errors import CacheHangs, DatabaseUnavailable, UsernameTaken, UserNotFound
from leaderboard.model import EncodedTop, ScoreSet, User, ranked
from tests.system import PATIENCE_S, redis, sql, until

pytestmark = pytest.mark.anyio

SIZE = 10
KEPT = 20
USERS = 40
"""User 1 is the best, with a score of 1000; each has 10 less than the one before."""


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache stays fresh for as long as a test takes."""
    monkeypatch.setattr(service_module, "FRESH_S", PATIENCE_S)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No writer gives up waiting for the cache."""
    monkeypatch.setattr(sync_module, "PATIENCE_S", PATIENCE_S)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[App]:
    app = App(settings.model_copy(update={"cache_size": SIZE}))
    await app.database.open()
    await app.cache.open()
    app.sync.note_truth(await app.database.now())
    try:
        yield app
    finally:
        await app.board.close()
        await app.sync.close()
        await app.cache.close()
        await app.database.close()


@pytest.fixture
async def one(settings: Settings) -> AsyncIterator[App]:
    """A process, on a board twice as large as its cache. There is no cache yet."""
    sql(
        settings,
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'user ' || n, 1010 - 10 * n FROM generate_series(1, $1) AS n",
        USERS,
    )
    async with opened(settings) as app:
        yield app


@pytest.fixture
async def other(one: App) -> AsyncIterator[App]:
    """Another process on the same board."""
    async with opened(one.settings) as app:
        yield app


class Held:
    """A method that waits before or after its work, once somebody has called it, until it is let go."""

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
    """What the timer and the writers do."""
    async with app.sync._turn:
        await app.sync._look()


async def cached(app: App) -> list[User] | None:
    """Everything in the cache, best first, if it is in use."""
    export = await app.cache.export()
    return export.users if export is not None and export.usable else None


async def in_use(app: App) -> None:
    """Bring the cache up to date by that process, so that it is read."""
    await look(app)

    async def is_read() -> bool:
        return await cached(app) is not None

    await until(is_read, "the cache is in use")
    await look(app)


async def top(app: App, n: int) -> list[tuple[int, int]]:
    """Id and score of the best `n`, as that process shows them."""
    answer = cast("EncodedTop", (await app.board.top(n)).answer)
    return [(user.user_id, user.total_score) for user in answer.decode().users]


def from_cache(app: App) -> float:
    """How many questions the cache has answered to that process."""
    return float(app.metrics.answers.counts.get(("cache",), 0))


def waiting(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    async def are() -> bool:
        return len(app.sync._waiting) == count

    return are


# Nobody is told what a later read takes back


async def test_the_service_works(one: App, other: App) -> None:
    """The plainest story there is. Whatever a test elsewhere switches off, this has to go on."""
    await in_use(one)
    await look(one)
    assert await one.board.set_score(40, 5000) == ScoreSet(40, "user 40", None, 5000, 610)
    created = await one.board.create_user("new", None, 4000)
    assert (created.user_id, created.total_score) == (41, 4000)
    with pytest.raises(UserNotFound):
        await one.board.set_score(99, 0)
    await one.sync.cover(await one.database.now())
    assert (await top(other, 5))[:2] == [(40, 5000), (41, 4000)]


@pytest.mark.usefixtures("patient")
async def test_a_score_that_is_acknowledged_is_shown_by_the_cache(one: App, other: App) -> None:
    await in_use(one)
    before = from_cache(other)
    await one.board.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    assert from_cache(other) > before


@pytest.mark.usefixtures("patient")
async def test_a_user_who_is_acknowledged_is_shown_by_the_cache(one: App, other: App) -> None:
    await in_use(one)
    before = from_cache(other)
    created = await one.board.create_user("new", None, 5000)
    assert await top(other, 1) == [(created.user_id, 5000)]
    assert from_cache(other) > before


async def test_what_postgres_has_shown_the_cache_shows(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    assert (await top(one, USERS))[0] == (7, 5000)
    assert await top(other, 1) == [(7, 5000)]


async def test_who_was_not_found_in_postgres_is_not_in_the_cache(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "DELETE FROM users WHERE user_id IN (1, 30)")
    with pytest.raises(UserNotFound):
        await one.board.standing(30)
    assert await top(other, 1) == [(2, 990)]


async def test_whose_score_cannot_be_set_is_not_in_the_cache(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "DELETE FROM users WHERE user_id = 1")
    with pytest.raises(UserNotFound):
        await one.board.set_score(1, 5)
    assert await top(other, 1) == [(2, 990)]


async def test_whose_name_is_taken_is_in_the_cache(one: App, other: App) -> None:
    await in_use(one)
    sql(one.settings, "INSERT INTO users (user_name, total_score) VALUES ('new', 5000)")
    with pytest.raises(UsernameTaken):
        await one.board.create_user("new", None, 0)
    assert await top(other, 1) == [(41, 5000)]


# Who moves the cache


async def test_a_catching_up_that_was_overtaken_turns_nothing_back(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    sql(one.settings, "UPDATE users SET total_score = 4000 WHERE user_id = 7")
    slow = Held(monkeypatch, one.database, "catch_up")
    late = asyncio.create_task(look(one))
    await slow.reached()
    await other.board.set_score(7, 5000)
    slow.let_go()
    await late
    assert await top(other, 1) == [(7, 5000)]


async def test_a_rebuild_begun_before_a_write_does_not_hide_it(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no cache that the writer could have waited for."""
    snapshot, use = (
        Held(monkeypatch, one.database, "board"),
        Held(monkeypatch, one.database, "catch_up", before=True),
    )
    rebuilding = asyncio.create_task(one.sync.rebuild("the test wants it"))
    await snapshot.reached()
    await other.board.set_score(7, 5000)
    snapshot.let_go()
    await use.reached()
    assert await top(other, 1) == [(7, 5000)]
    use.let_go()
    assert await rebuilding


async def test_a_writer_that_waits_too_long_puts_the_cache_out_of_use(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database, "catch_up", before=True)
    write = asyncio.create_task(one.board.set_score(7, 5000))
    await asyncio.wait([write], timeout=PATIENCE_S)
    assert write.done(), "it answers without having caught up"
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()


async def test_putting_it_out_of_use_is_tried_again_while_redis_hangs(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database, "catch_up", before=True)
    invalidate, tries = one.cache.invalidate, 0

    async def hangs_twice() -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise CacheHangs("Redis did not answer")
        await invalidate()

    monkeypatch.setattr(one.cache, "invalidate", hangs_twice)
    await one.board.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()


async def test_giving_up_does_not_depend_on_the_clock(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The event loop's timer may fire a little before the clock that is read afterwards says so.
    await in_use(one)
    stuck = Held(monkeypatch, one.database, "catch_up", before=True)
    monkeypatch.setattr(
        sync_module, "time", SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)
    )
    await asyncio.wait_for(one.board.set_score(7, 5000), 10)
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()


async def test_putting_it_out_of_use_does_not_depend_on_the_connection_that_hung(one: App, other: App) -> None:
    await in_use(one)
    # As while a call hangs on it: others wait for their turn.
    async with one.cache._sync._lock:
        done, _ = await asyncio.wait({asyncio.create_task(one.board.set_score(7, 5000))}, timeout=PATIENCE_S)
        assert done
        assert await top(other, 1) == [(7, 5000)]


async def test_putting_it_out_of_use_does_not_depend_on_a_connection_that_was_closed(
    one: App, other: App, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.cache.invalidate()
    await in_use(one)
    idle = one.cache._last_resort._connection
    assert idle is not None
    await idle.send_command("CLIENT", "ID")
    assert redis(settings).client_kill_filter(_id=await idle.read_response()) == 1
    stuck = Held(monkeypatch, one.database, "catch_up", before=True)
    await one.board.set_score(7, 5000)
    assert await top(other, 1) == [(7, 5000)]
    stuck.let_go()


@pytest.mark.usefixtures("patient")
async def test_who_commits_after_redis_was_found_empty_is_not_released_for_that(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one.sync, "_rebuild_soon", lambda _reason: None)
    asked = Held(monkeypatch, one.cache, "poll")
    first = asyncio.create_task(one.board.set_score(7, 2000))
    await asked.reached()
    # There was none, but now there is.
    await in_use(other)
    second = asyncio.create_task(one.board.set_score(8, 5000))
    await until(waiting(one, 2), "the second has committed")
    asked.let_go()
    await asyncio.gather(first, second)
    assert await top(other, 1) == [(8, 5000)]


async def test_who_commits_after_the_cache_was_put_out_of_use_is_not_released_for_that(
    one: App, other: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    stuck = Held(monkeypatch, one.database, "catch_up", before=True)
    done = Held(monkeypatch, one.cache, "invalidate")
    first = asyncio.create_task(one.board.set_score(7, 2000))
    await done.reached()
    # It was out of use, but now it is in use again.
    await in_use(other)
    second = asyncio.create_task(one.board.set_score(8, 5000))
    await until(waiting(one, 2), "the second has committed")
    done.let_go()
    await asyncio.gather(first, second)
    assert await top(other, 1) == [(8, 5000)]
    stuck.let_go()


# Which database the cache is of


def pretend(app: App, epoch: str, snapshot: str = "9000000:9000000:") -> None:
    """Make the cache one of another life of a database: it says so, and shows other scores."""
    by_hand = redis(app.settings)
    by_hand.hset(keys.STATE, mapping={"token": "0123456789abcdef", "epoch": epoch, "snapshot": snapshot})
    by_hand.zadd(keys.SCORES, {keys.member(7): -5000})
    by_hand.close()


async def test_a_cache_of_another_life_is_rebuilt_and_not_caught_up(one: App) -> None:
    await in_use(one)
    pretend(one, "2|another/database/of/all")

    async def is_right() -> bool:
        await look(one)
        return await cached(one) == (await one.database.best(KEPT)).value

    await until(is_right, "the cache is that of the database")


async def test_a_cache_of_another_life_is_not_read(one: App) -> None:
    await in_use(one)
    pretend(one, "2|another/database/of/all")
    assert await top(one, 1) == [(1, 1000)]


@pytest.mark.parametrize("which", ["another life", "another database", "another cluster"])
async def test_without_postgres_only_a_cache_of_its_own_database_is_read(one: App, which: str) -> None:
    await in_use(one)
    assert one.sync.epoch is not None
    cluster, database, *_ = one.sync.epoch.split("/")
    pretend(
        one,
        {
            "another life": f"2|{cluster}/{database}/0/0",
            "another database": f"2|{cluster}/{database}0/0/0",
            "another cluster": f"2|{cluster}0/{database}/0/0",
        }[which],
    )
    one.sync.postgres_up = False
    if which == "another life":
        reply = await one.board.top(1)
        assert reply.age_s is not None
        assert await top(one, 1) == [(7, 5000)]
    else:
        with pytest.raises(DatabaseUnavailable):
            await one.board.top(1)


# What calls for a rebuild


async def test_a_barrier_makes_the_cache_be_rebuilt(one: App) -> None:
    await in_use(one)
    sql(one.settings, "TRUNCATE users")
    await in_use(one)
    assert await cached(one) == []


async def test_a_cache_is_complete_down_to_its_floor_and_says_so(one: App) -> None:
    await in_use(one)
    best = (await one.database.best(USERS)).value
    assert await cached(one) == best[:KEPT]
    assert await top(one, USERS) == [(user.user_id, user.total_score) for user in best]
    assert (await one.board.standing(30)).answer == ranked(30, best[29])


async def test_a_cache_from_which_too_many_fell_is_filled_again(one: App) -> None:
    await in_use(one)
    sql(one.settings, "UPDATE users SET total_score = -total_score WHERE user_id <= 12")
    await look(one)

    async def filled() -> bool:
        return len(await cached(one) or []) == KEPT

    await until(filled, "it is filled again")
    assert await cached(one) == (await one.database.best(KEPT)).value


async def test_a_batch_that_was_done_in_parts_waits_for_the_cache_once(one: App) -> None:
    await in_use(one)
    sql(one.settings, "ALTER TABLE users ADD CHECK (total_score <> 666)")
    by_hand = redis(one.settings)
    by_hand.set(keys.LEASE, "somebody who stands still", px=60_000)
    wanted = {user_id: 666 if user_id in {3, 11, 19} else user_id for user_id in range(1, 31)}
    setting = [one.board.set_score(user_id, score) for user_id, score in wanted.items()]
    results = await asyncio.gather(*setting, return_exceptions=True)
    assert sum(isinstance(result, ScoreSet) for result in results) == 27
    assert one.metrics.batch_items.labels("scores")._sum.get() >= 30
    assert one.metrics.invalidations._value.get() <= 2, (
        "one for each commit would be many times a writer's patience"
    )
    by_hand.close()


# What a process has just made itself


@pytest.fixture
def polls(one: App, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often that process has asked for the state, as a list that grows."""
    asked: list[int] = []
    poll = one.cache.poll

    async def counted(nonce: str, lease_ms: int) -> CacheState | None:
        asked.append(lease_ms)
        return await poll(nonce, lease_ms)

    monkeypatch.setattr(one.cache, "poll", counted)
    return asked


async def test_who_moves_the_cache_alone_goes_on_from_there_without_asking(
    one: App, other: App, polls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leaderboard.sync.OWN_S", PATIENCE_S)
    await in_use(one)
    polls.clear()
    for score in (5000, 6000, 7000):
        sql(one.settings, f"UPDATE users SET total_score = {score} WHERE user_id = 7")
        await look(one)
        assert await cached(one) == (await one.database.best(KEPT)).value
    assert not polls
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    await look(other)
    # It is overtaken once, asks, and asks as long as it finds what others have made.
    for expected in (0, 1, 2):
        await look(one)
        assert len(polls) == expected
    await look(other)
    await look(one)
    await look(one)
    assert len(polls) == 3
    assert await cached(one) == (await one.database.best(KEPT)).value


async def test_a_state_that_was_made_a_while_ago_is_asked_for(
    one: App, polls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_use(one)
    polls.clear()
    monkeypatch.setattr("leaderboard.sync.OWN_S", 0)
    by_hand = redis(one.settings)
    seconds, microseconds = by_hand.time()
    await look(one)
    assert len(polls) == 1
    asof = cast("bytes", by_hand.hget(keys.STATE, "asof"))
    assert int(asof) >= 1_000_000 * seconds + microseconds, "it is no older than the look"
    by_hand.close()


async def test_a_rebuild_is_put_in_use_by_who_was_alone_before(one: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboard.sync.OWN_S", PATIENCE_S)
    await in_use(one)
    assert await one.sync.rebuild("it is to be tried")
    assert await cached(one) == (await one.database.best(KEPT)).value


@pytest.mark.parametrize("how", ["a score", "a name"])
async def test_an_audit_finds_what_nobody_else_would_and_the_cache_is_rebuilt(one: App, how: str) -> None:
    await in_use(one)
    by_hand = redis(one.settings)
    if how == "a score":
        by_hand.zadd(keys.SCORES, {keys.member(7): -5000})
    else:
        by_hand.hset(keys.METADATA, keys.member(7), b'{"username":"nobody","imageUrl":null}')
    assert [difference.user_id for difference in (await one.sync.audit()).differences] == [7]
    auditing = asyncio.create_task(one.sync.audit_regularly(0.2))

    async def healed() -> bool:
        return await cached(one) == (await one.database.best(KEPT)).value

    try:
        await until(healed, "the cache is right again")
    finally:
        auditing.cancel()
    assert one.metrics.audit_differences._value.get() >= 1


async def test_an_audit_compares_at_one_moment(one: App, monkeypatch: pytest.MonkeyPatch) -> None:
    await in_use(one)
    caught_up = Held(monkeypatch, one.database, "_catch_up")
    auditing = asyncio.create_task(one.sync.audit())
    await caught_up.reached()
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    caught_up.let_go()
    audit = await auditing
    assert (audit.compared, audit.differences) == (KEPT, [])
