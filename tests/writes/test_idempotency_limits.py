"""The number of kept idempotency keys is limited, for each caller and in total."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.errors import (
    IdempotencyKeysFull,
    TooManyIdempotencyKeys,
)
from leaderboard.maintenance.idempotency_keys import KEPT_H
from leaderboard.tuning import KeyTuning, Tuning
from tests.writes.idempotency import changes


@pytest.fixture
async def bounded(settings: Settings) -> AsyncIterator[Callable[..., Awaitable[App]]]:
    """Starts processes that count keys continuously. Keyword arguments override settings."""
    tuning = Tuning(keys=KeyTuning(count_every_s=0.01, count_pause=1))
    async with AsyncExitStack() as running:

        async def start(**overrides: int) -> App:
            process = App(settings.model_copy(update=overrides), tuning)
            await running.enter_async_context(process.running())
            return process

        yield start


async def writes_until(process: App, user_id: int, caller: str, refusal: type[Exception]) -> None:
    """Sets the score with new keys until a write raises `refusal`."""
    deadline = time.monotonic() + 20
    for number in count():
        try:
            await process.service.writes.set_score(user_id, number, (caller, f"{id(process)} {number}"))
        except refusal:
            return
        assert time.monotonic() < deadline, f"{number} writes and no {refusal.__name__}"
        await asyncio.sleep(0.005)


async def kept(db: asyncpg.Connection) -> int:
    return int(await db.fetchval("SELECT count(*) FROM idempotent_writes"))


@pytest.mark.anyio
async def test_a_caller_at_its_limit_gets_no_new_keys_and_other_callers_do(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection
) -> None:
    one, other = [await bounded(idempotency_keys_per_caller=3) for _ in range(2)]
    user = await one.service.writes.create_user("ada", None, 0)
    first = await one.service.writes.set_score(user.user_id, 1, ("greedy", "first"))
    for process in (one, other):
        await writes_until(process, user.user_id, "greedy", TooManyIdempotencyKeys)
    before = await changes(db), await kept(db)
    assert before[1] >= 3
    for process in (one, other):
        with pytest.raises(TooManyIdempotencyKeys, match="greedy"):
            await process.service.writes.set_score(user.user_id, 99, ("greedy", "one more"))
        with pytest.raises(TooManyIdempotencyKeys, match="greedy"):
            await process.service.writes.create_user("bob", None, 0, ("greedy", "another"))
        assert await process.service.writes.set_score(user.user_id, 1, ("greedy", "first")) == first
    assert (await changes(db), await kept(db)) == before
    await other.service.writes.set_score(user.user_id, 5, ("modest", "first"))
    await other.service.writes.set_score(user.user_id, 5)


@pytest.mark.anyio
async def test_anonymous_callers_have_only_the_total_limit(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection
) -> None:
    process = await bounded(idempotency_keys_per_caller=3, idempotency_keys=20)
    user = await process.service.writes.create_user("ada", None, 0)
    await writes_until(process, user.user_id, "", IdempotencyKeysFull)
    assert await kept(db) >= 20


@pytest.mark.anyio
async def test_new_keys_are_rejected_at_the_total_limit(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection
) -> None:
    process = await bounded(idempotency_keys=3)
    user = await process.service.writes.create_user("ada", None, 0)
    first = [await process.service.writes.set_score(user.user_id, 7, (caller, "first")) for caller in "abc"]
    await writes_until(process, user.user_id, "d", IdempotencyKeysFull)
    before = await changes(db), await kept(db)
    for caller in ("", "a", "e"):
        with pytest.raises(IdempotencyKeysFull):
            await process.service.writes.set_score(user.user_id, 99, (caller, "one more"))
    again = [await process.service.writes.set_score(user.user_id, 7, (caller, "first")) for caller in "abc"]
    assert again == first
    assert (await changes(db), await kept(db)) == before
    await process.service.writes.set_score(user.user_id, 5)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("bound", "refusal"),
    [("idempotency_keys_per_caller", TooManyIdempotencyKeys), ("idempotency_keys", IdempotencyKeysFull)],
)
async def test_new_keys_are_accepted_after_old_keys_are_deleted(
    bounded: Callable[..., Awaitable[App]], db: asyncpg.Connection, bound: str, refusal: type[Exception]
) -> None:
    process = await bounded(**{bound: 3})
    user = await process.service.writes.create_user("ada", None, 0)
    await writes_until(process, user.user_id, "a", refusal)
    await db.execute("UPDATE idempotent_writes SET made_at = made_at - make_interval(hours => $1)", KEPT_H + 1)
    assert await process.database.idempotency_keys.delete_old(KEPT_H, 10_000) >= 3
    deadline = time.monotonic() + 20
    while True:
        try:
            await process.service.writes.set_score(user.user_id, 5, ("a", "new"))
            return
        except refusal:
            assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_the_number_of_kept_keys_is_a_metric(bounded: Callable[..., Awaitable[App]]) -> None:
    one, other = await bounded(), await bounded()
    user = await one.service.writes.create_user("ada", None, 0)
    for caller in "abc":
        await one.service.writes.set_score(user.user_id, 5, (caller, "key"))
    await other.service.writes.set_score(user.user_id, 5, ("", "key"))
    deadline = time.monotonic() + 20
    while other.metrics.registry.get_sample_value("leaderboard_idempotency_keys") != 4:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
