"""A write that is sent again is done once, whatever happened to its answer."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from itertools import count

import asyncpg
import httpx
import pytest
from pydantic import SecretStr

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotencyKeysFull,
    LockedOut,
    TooManyIdempotencyKeys,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.maintenance.idempotency_keys import KEPT_H
from leaderboard.model import ScoreSet, User
from leaderboard.service.idempotency import idempotency_key
from leaderboard.tuning import KeyTuning, Tuning
from tests.system import ApiProcess, connect, eventually, sql

ONCE = ("", "a-key")
Serve = Callable[..., ApiProcess]


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[App]:
    """A second process, as far as PostgreSQL and Redis can tell."""
    running = App(settings)
    async with running.running():
        yield running


async def changes(db: asyncpg.Connection) -> int:
    """How many writes there were."""
    return int(await db.fetchval("SELECT count(*) FROM user_changes"))


@pytest.mark.anyio
async def test_the_same_again_gets_the_first_answer(leaderboard: App, other: App, db: asyncpg.Connection) -> None:
    made = await leaderboard.writes.create_user("ada", "https://a.example", 5, ("", "create"))
    first = await leaderboard.writes.set_score(made.user_id, 6, ONCE)
    assert first == ScoreSet(made.user_id, "ada", "https://a.example", 6, 5)
    await leaderboard.writes.set_score(made.user_id, 100)
    for process in (leaderboard, other):
        assert await process.writes.create_user("ada", "https://a.example", 5, ("", "create")) == made
        assert await process.writes.set_score(made.user_id, 6, ONCE) == first
    assert await changes(db) == 3
    assert await db.fetchval("SELECT total_score FROM users") == 100


@pytest.mark.anyio
async def test_with_something_else_it_is_refused(leaderboard: App, db: asyncpg.Connection) -> None:
    writes = leaderboard.writes
    ada = await writes.create_user("ada", None, 5)
    bob = await writes.create_user("bob", None, 5)
    await writes.set_score(ada.user_id, 6, ONCE)
    for other in (
        writes.set_score(ada.user_id, 7, ONCE),
        writes.set_score(bob.user_id, 6, ONCE),
        writes.create_user("eve", None, 6, ONCE),
    ):
        with pytest.raises(IdempotencyKeyReused):
            await other
    assert await changes(db) == 3


@pytest.mark.anyio
async def test_keys_are_their_callers_own(leaderboard: App) -> None:
    user = await leaderboard.writes.create_user("ada", None, 0)
    answers = [await leaderboard.writes.set_score(user.user_id, 5, (caller, "key")) for caller in ("", "a", "b")]
    assert [answer.previous_score for answer in answers] == [0, 5, 5]


@pytest.mark.anyio
async def test_a_refusal_is_not_kept(leaderboard: App) -> None:
    writes = leaderboard.writes
    with pytest.raises(UserNotFound):
        await writes.set_score(1, 5, ONCE)
    user = await writes.create_user("ada", None, 0)
    assert (await writes.set_score(user.user_id, 5, ONCE)).previous_score == 0
    with pytest.raises(UsernameTaken):
        await writes.create_user("ada", None, 0, ("", "another"))
    assert (await writes.create_user("bob", None, 0, ("", "another"))).user_name == "bob"


@pytest.mark.anyio
async def test_each_of_one_users_sets_in_a_batch_keeps_its_own_answer(
    leaderboard: App, other: App, db: asyncpg.Connection
) -> None:
    user = await leaderboard.writes.create_user("ada", None, 0)
    batch = [(score, ("", f"key {score}") if score % 3 else None) for score in range(1, 40)]
    first = await asyncio.gather(*(leaderboard.writes.set_score(user.user_id, *each) for each in batch))
    keyed = [(each, answer) for each, answer in zip(batch, first, strict=True) if each[1] is not None]
    chance = random.Random(1)
    for each, answer in chance.sample(keyed, len(keyed)):
        assert await other.writes.set_score(user.user_id, *each) == answer
    last = await db.fetchval("SELECT total_score FROM users")
    assert sorted([last, *(answer.previous_score for answer in first)]) == list(range(40))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["create", "set"])
async def test_a_hundred_copies_at_once_are_one_write(
    leaderboard: App, other: App, db: asyncpg.Connection, kind: str
) -> None:
    """In two processes, and among others that must not suffer from it."""
    user = await leaderboard.writes.create_user("ada", None, 0)
    before = await changes(db)

    async def copy(app: App) -> User | ScoreSet:
        while True:
            try:
                if kind == "create":
                    return await app.writes.create_user("bob", None, 7, ONCE)
                return await app.writes.set_score(user.user_id, 7, ONCE)
            except (IdempotencyKeyInUse, LockedOut):
                await asyncio.sleep(0.001)

    others = [leaderboard.writes.create_user(f"beside {number}", None, 0) for number in range(20)]
    copies = [copy(app) for app in (leaderboard, other) for _ in range(50)]
    answers, _ = await asyncio.gather(asyncio.gather(*copies), asyncio.gather(*others))
    assert len(set(map(str, answers))) == 1
    assert await changes(db) == before + 1 + len(others)


@pytest.mark.anyio
async def test_what_another_process_is_doing_with_the_key_is_waited_for_or_refused(
    leaderboard: App, db: asyncpg.Connection, settings: Settings
) -> None:
    """An open transaction keeps the key: nobody else of the batch waits for it."""
    writes = leaderboard.writes
    ada, bob = await writes.create_user("ada", None, 0), await writes.create_user("bob", None, 0)
    holder = await connect(settings)
    transaction = holder.transaction()
    await transaction.start()
    key = idempotency_key(*ONCE, "something else")
    await holder.execute(
        "INSERT INTO idempotent_writes (key, caller, fingerprint, user_id) VALUES ($1, $2, $3, 1)",
        key.key,
        key.caller,
        key.fingerprint,
    )
    keyed, beside = await asyncio.gather(
        writes.set_score(ada.user_id, 5, ONCE), writes.set_score(bob.user_id, 5), return_exceptions=True
    )
    assert isinstance(keyed, IdempotencyKeyInUse)
    assert isinstance(beside, ScoreSet)
    assert await db.fetchval("SELECT total_score FROM users WHERE user_name = 'ada'") == 0
    await transaction.rollback()
    await holder.close()
    assert (await writes.set_score(ada.user_id, 5, ONCE)).previous_score == 0


@pytest.mark.anyio
async def test_a_copy_is_refused_while_the_first_is_under_way(
    leaderboard: App, db: asyncpg.Connection, settings: Settings
) -> None:
    user = await leaderboard.writes.create_user("ada", None, 0)
    holder = await connect(settings)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT FROM users FOR UPDATE")
    first = asyncio.create_task(leaderboard.writes.set_score(user.user_id, 5, ONCE))
    # So that it has begun.
    await asyncio.sleep(0)
    with pytest.raises(IdempotencyKeyInUse):
        await leaderboard.writes.set_score(user.user_id, 5, ONCE)
    await transaction.rollback()
    await holder.close()
    assert await first == await leaderboard.writes.set_score(user.user_id, 5, ONCE)


@pytest.mark.anyio
async def test_a_cancelled_request_is_done_once_all_the_same(leaderboard: App, db: asyncpg.Connection) -> None:
    user = await leaderboard.writes.create_user("ada", None, 0)
    before = await changes(db)
    for _ in range(20):
        task = asyncio.create_task(leaderboard.writes.set_score(user.user_id, 5, ONCE))
        await asyncio.sleep(random.uniform(0, 0.004))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await leaderboard.writes.set_score(user.user_id, 5, ONCE)).previous_score == 0
    assert await changes(db) == before + 1


@pytest.mark.anyio
async def test_it_is_forgotten_after_a_day_and_not_before(leaderboard: App, db: asyncpg.Connection) -> None:
    user = await leaderboard.writes.create_user("ada", None, 0)
    for hours, caller in ((KEPT_H - 0.1, "younger"), (KEPT_H + 0.1, "older")):
        await leaderboard.writes.set_score(user.user_id, 5, (caller, "a-key"))
        await db.execute(
            "UPDATE idempotent_writes SET made_at = made_at - make_interval(secs => $1) WHERE caller = $2",
            hours * 3600,
            caller,
        )
    assert await leaderboard.database.idempotency_keys.delete_old(KEPT_H, 10) == 1
    assert [row["caller"] for row in await db.fetch("SELECT caller FROM idempotent_writes")] == ["younger"]


# What is kept of an answer


@pytest.mark.anyio
async def test_what_was_done_is_told_as_it_was_and_the_user_as_it_is_now(
    leaderboard: App, other: App, db: asyncpg.Connection
) -> None:
    create, change = ("", "create"), ("", "set")
    made = await leaderboard.writes.create_user("ada", "https://a.example", 5, create)
    await leaderboard.writes.set_score(made.user_id, 6, change)
    await db.execute("UPDATE users SET user_name = 'eve', image_url = NULL, total_score = 100")
    for process in (leaderboard, other):
        assert await process.writes.create_user("ada", "https://a.example", 5, create) == made
        assert await process.writes.set_score(made.user_id, 6, change) == ScoreSet(made.user_id, "eve", None, 6, 5)
    await db.execute("DELETE FROM users")
    before = await changes(db)
    for process in (leaderboard, other):
        assert await process.writes.create_user("ada", "https://a.example", 5, create) == made
        with pytest.raises(UserNotFound):
            await process.writes.set_score(made.user_id, 6, change)
    assert await changes(db) == before


@pytest.mark.anyio
async def test_a_row_is_no_larger_for_a_long_key_name_and_url(leaderboard: App, db: asyncpg.Connection) -> None:
    for key, name, url in (("k", "a", None), ("k" * 255, "b" * 128, "https://a.example/" + "c" * 2030)):
        user = await leaderboard.writes.create_user(name, url, 0, ("", f"{key[1:]}1"))
        await leaderboard.writes.set_score(user.user_id, 5, ("", f"{key[1:]}2"))
    sizes = await db.fetch(
        "SELECT DISTINCT previous_score IS NULL AS created, pg_column_size(i) FROM idempotent_writes AS i"
    )
    assert len(sizes) == 2
    assert await db.fetchval("SELECT count(*) FROM idempotent_writes") == 4


# How many are kept


@pytest.fixture
async def bounded(settings: Settings) -> AsyncIterator[Callable[..., Awaitable[App]]]:
    """Starts processes that count keys all the time; overrides of settings are keyword arguments."""
    tuning = Tuning(keys=KeyTuning(count_every_s=0.01, count_pause=1))
    async with AsyncExitStack() as running:

        async def start(**overrides: int) -> App:
            process = App(settings.model_copy(update=overrides), tuning)
            await running.enter_async_context(process.running())
            return process

        yield start


async def writes_until(process: App, user_id: int, caller: str, refusal: type[Exception]) -> None:
    """Set the score with new keys until that is refused."""
    deadline = time.monotonic() + 20
    for number in count():
        try:
            await process.writes.set_score(user_id, number, (caller, f"{id(process)} {number}"))
        except refusal:
            return
        assert time.monotonic() < deadline, f"{number} writes and no {refusal.__name__}"
        await asyncio.sleep(0.005)


async def kept(db: asyncpg.Connection) -> int:
    return int(await db.fetchval("SELECT count(*) FROM idempotent_writes"))


@pytest.mark.anyio
async def test_a_caller_at_its_bound_is_refused_new_keys_and_no_other_is(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection
) -> None:
    one, other = [await bounded(idempotency_keys_per_caller=3) for _ in range(2)]
    user = await one.writes.create_user("ada", None, 0)
    first = await one.writes.set_score(user.user_id, 1, ("greedy", "first"))
    for process in (one, other):
        await writes_until(process, user.user_id, "greedy", TooManyIdempotencyKeys)
    before = await changes(db), await kept(db)
    assert before[1] >= 3
    for process in (one, other):
        with pytest.raises(TooManyIdempotencyKeys, match="greedy"):
            await process.writes.set_score(user.user_id, 99, ("greedy", "one more"))
        with pytest.raises(TooManyIdempotencyKeys, match="greedy"):
            await process.writes.create_user("bob", None, 0, ("greedy", "another"))
        assert await process.writes.set_score(user.user_id, 1, ("greedy", "first")) == first
    assert (await changes(db), await kept(db)) == before
    await other.writes.set_score(user.user_id, 5, ("modest", "first"))
    await other.writes.set_score(user.user_id, 5)


@pytest.mark.anyio
async def test_callers_who_are_not_known_share_no_bound_but_that_of_all(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection
) -> None:
    process = await bounded(idempotency_keys_per_caller=3, idempotency_keys=20)
    user = await process.writes.create_user("ada", None, 0)
    await writes_until(process, user.user_id, "", IdempotencyKeysFull)
    assert await kept(db) >= 20


@pytest.mark.anyio
async def test_at_the_bound_of_all_new_keys_are_refused(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection
) -> None:
    process = await bounded(idempotency_keys=3)
    user = await process.writes.create_user("ada", None, 0)
    first = [await process.writes.set_score(user.user_id, 7, (caller, "first")) for caller in "abc"]
    await writes_until(process, user.user_id, "d", IdempotencyKeysFull)
    before = await changes(db), await kept(db)
    for caller in ("", "a", "e"):
        with pytest.raises(IdempotencyKeysFull):
            await process.writes.set_score(user.user_id, 99, (caller, "one more"))
    again = [await process.writes.set_score(user.user_id, 7, (caller, "first")) for caller in "abc"]
    assert again == first
    assert (await changes(db), await kept(db)) == before
    await process.writes.set_score(user.user_id, 5)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("bound", "refusal"),
    [("idempotency_keys_per_caller", TooManyIdempotencyKeys), ("idempotency_keys", IdempotencyKeysFull)],
)
async def test_forgotten_keys_make_room(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection, bound: str, refusal: type[Exception]
) -> None:
    process = await bounded(**{bound: 3})
    user = await process.writes.create_user("ada", None, 0)
    await writes_until(process, user.user_id, "a", refusal)
    await db.execute("UPDATE idempotent_writes SET made_at = made_at - make_interval(hours => $1)", KEPT_H + 1)
    assert await process.database.idempotency_keys.delete_old(KEPT_H, 10_000) >= 3
    deadline = time.monotonic() + 20
    while True:
        try:
            await process.writes.set_score(user.user_id, 5, ("a", "new"))
            return
        except refusal:
            assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_how_many_are_kept_is_a_metric(bounded: Callable[..., Awaitable[App]]) -> None:
    one, other = await bounded(), await bounded()
    user = await one.writes.create_user("ada", None, 0)
    for caller in "abc":
        await one.writes.set_score(user.user_id, 5, (caller, "key"))
    await other.writes.set_score(user.user_id, 5, ("", "key"))
    deadline = time.monotonic() + 20
    while other.metrics.registry.get_sample_value("leaderboard_idempotency_keys") != 4:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("bound", "status", "code"),
    [
        ("idempotency_keys_per_caller", 429, "too_many_idempotency_keys"),
        ("idempotency_keys", 503, "idempotency_keys_full"),
    ],
)
def test_a_bound_over_http(serve: Serve, bound: str, status: int, code: str) -> None:
    key = "a-key-of-more-than-16-characters"
    api = serve(api_keys=SecretStr(f"game:write:{key}"), **{bound: 1})
    numbers = count()

    def create(number: int) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": f"key {number}".replace(" ", "-")}
        return api.client.post("/users", json={"username": f"user {number}"}, headers=headers)

    def refused() -> httpx.Response | None:
        response = create(next(numbers))
        return None if response.status_code == 201 else response

    first = create(next(numbers))
    # It counts once a second, and more rarely where a count takes long.
    response = eventually(refused, 60)
    assert response is not None
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert int(response.headers["retry-after"]) >= 1
    again = create(0)
    assert (again.status_code, again.content) == (201, first.content)


@pytest.mark.slow
def test_copies_to_two_processes_of_which_one_is_killed_are_one_write(serve: Serve) -> None:
    """Killed at any moment, also after the commit: who sends it again gets the first answer, if there was one."""
    steady, victim = serve(), serve()
    user_id = steady.create("ada").json()["userId"]
    for score, delay_ms in enumerate((0, 1, 2, 3, 4, 6, 8, 12), 1):
        before = sql(steady.settings, "SELECT count(*) FROM user_changes")[0][0]
        key = {"Idempotency-Key": f"key-{score}"}

        def send(process: ApiProcess, key: dict[str, str] = key, score: int = score) -> httpx.Response | None:
            try:
                return httpx.post(f"{process.url}/users/{user_id}/score", json={"score": score}, headers=key)
            except httpx.TransportError:
                return None

        with ThreadPoolExecutor(1) as pool:
            lost = pool.submit(send, victim)
            # Not for a condition: it is to be killed at this moment or that.
            time.sleep(delay_ms / 1000)
            victim.kill()
            lost.result()

        def answered(send: Callable[[ApiProcess], httpx.Response | None] = send) -> httpx.Response | None:
            response = send(steady)
            assert response is not None
            assert response.status_code in (200, 409), response.text
            return response if response.status_code == 200 else None

        answer = eventually(answered)
        assert answer is not None
        assert answer.json()["previousScore"] == score - 1
        assert sql(steady.settings, "SELECT count(*) FROM user_changes")[0][0] == before + 1
        victim.start()


@pytest.mark.parametrize("key", ["", "with a blank", "ü", "x" * 256], ids=["empty", "blank", "not ascii", "long"])
def test_a_key_that_is_none_is_refused(serve: Serve, key: str) -> None:
    api = serve()
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    response = api.client.post("/users", json={"username": "ada"}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert api.client.post("/users", json={"username": "ada"}, headers=twice).status_code == 422
    assert api.top(10) == []


def test_over_http(serve: Serve) -> None:
    api = serve()
    headers = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    body = {"username": "ada", "score": 5}
    first, again = (api.client.post("/users", json=body, headers=headers) for _ in range(2))
    assert (again.status_code, again.content, again.headers["location"]) == (
        first.status_code,
        first.content,
        first.headers["location"],
    )
    assert first.status_code == 201
    reused = api.client.post("/users", json={"username": "bob"}, headers=headers)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")


def test_two_callers_with_one_idempotency_key_do_not_meet(serve: Serve) -> None:
    keys = {name: f"{name}-key-of-more-than-16-characters" for name in ("one", "other")}
    api = serve(api_keys=SecretStr(",".join(f"{name}:read+write:{key}" for name, key in keys.items())))
    made = {}
    for name, key in keys.items():
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "same"}
        made[name] = [
            api.client.post("/users", json={"username": f"by {name}"}, headers=headers).json()["userId"]
            for _ in range(2)
        ]
    assert made == {"one": [1, 1], "other": [2, 2]}
