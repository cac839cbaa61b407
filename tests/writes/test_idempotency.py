"""A repeated write is done once, and each repetition gets the first result."""

import asyncio
import random

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    LockedOut,
    UsernameTaken,
    UserNotFound,
)
from leaderboard.maintenance.idempotency_keys import KEPT_H
from leaderboard.model import ScoreSet, User
from leaderboard.service.idempotency import idempotency_key
from tests.system import connect
from tests.writes.idempotency import ONCE, changes

#


@pytest.mark.anyio
async def test_a_repeated_write_gets_the_first_result(
    leaderboard: App, second_app: App, db: asyncpg.Connection
) -> None:
    made = await leaderboard.service.writes.create_user("ada", "https://a.example", 5, ("", "create"))
    first = await leaderboard.service.writes.set_score(made.user_id, 6, ONCE)
    assert first == ScoreSet(made.user_id, "ada", "https://a.example", 6, 5)
    await leaderboard.service.writes.set_score(made.user_id, 100)
    for process in (leaderboard, second_app):
        assert await process.service.writes.create_user("ada", "https://a.example", 5, ("", "create")) == made
        assert await process.service.writes.set_score(made.user_id, 6, ONCE) == first
    assert await changes(db) == 3
    assert await db.fetchval("SELECT total_score FROM users") == 100


@pytest.mark.anyio
async def test_a_key_with_another_request_is_rejected(leaderboard: App, db: asyncpg.Connection) -> None:
    writes = leaderboard.service.writes
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
async def test_callers_do_not_share_keys(leaderboard: App) -> None:
    user = await leaderboard.service.writes.create_user("ada", None, 0)
    answers = [
        await leaderboard.service.writes.set_score(user.user_id, 5, (caller, "key")) for caller in ("", "a", "b")
    ]
    assert [answer.previous_score for answer in answers] == [0, 5, 5]


@pytest.mark.anyio
async def test_a_failed_write_does_not_keep_its_key(leaderboard: App) -> None:
    writes = leaderboard.service.writes
    with pytest.raises(UserNotFound):
        await writes.set_score(1, 5, ONCE)
    user = await writes.create_user("ada", None, 0)
    assert (await writes.set_score(user.user_id, 5, ONCE)).previous_score == 0
    with pytest.raises(UsernameTaken):
        await writes.create_user("ada", None, 0, ("", "another"))
    assert (await writes.create_user("bob", None, 0, ("", "another"))).user_name == "bob"


@pytest.mark.anyio
async def test_each_score_of_one_user_in_a_batch_keeps_its_own_result(
    leaderboard: App, second_app: App, db: asyncpg.Connection
) -> None:
    user = await leaderboard.service.writes.create_user("ada", None, 0)
    batch = [(score, ("", f"key {score}") if score % 3 else None) for score in range(1, 40)]
    first = await asyncio.gather(*(leaderboard.service.writes.set_score(user.user_id, *each) for each in batch))
    keyed = [(each, answer) for each, answer in zip(batch, first, strict=True) if each[1] is not None]
    chance = random.Random(1)
    for each, answer in chance.sample(keyed, len(keyed)):
        assert await second_app.service.writes.set_score(user.user_id, *each) == answer
    last = await db.fetchval("SELECT total_score FROM users")
    assert sorted([last, *(answer.previous_score for answer in first)]) == list(range(40))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["create", "set"])
async def test_a_hundred_concurrent_repetitions_are_one_write(
    leaderboard: App, second_app: App, db: asyncpg.Connection, kind: str
) -> None:
    """Repeated writes go to two processes, in batches with other writes, which must succeed."""
    user = await leaderboard.service.writes.create_user("ada", None, 0)
    before = await changes(db)

    async def write(app: App) -> User | ScoreSet:
        while True:
            try:
                if kind == "create":
                    return await app.service.writes.create_user("bob", None, 7, ONCE)
                return await app.service.writes.set_score(user.user_id, 7, ONCE)
            except (IdempotencyKeyInUse, LockedOut):
                await asyncio.sleep(0.001)

    others = [leaderboard.service.writes.create_user(f"beside {number}", None, 0) for number in range(20)]
    repeated = [write(app) for app in (leaderboard, second_app) for _ in range(50)]
    answers, _ = await asyncio.gather(asyncio.gather(*repeated), asyncio.gather(*others))
    assert len(set(map(str, answers))) == 1
    assert await changes(db) == before + 1 + len(others)


@pytest.mark.anyio
async def test_a_key_that_another_transaction_holds_is_rejected_until_it_ends(
    leaderboard: App, db: asyncpg.Connection, settings: Settings
) -> None:
    """An open transaction holds the key. The rest of the batch does not wait for it."""
    writes = leaderboard.service.writes
    ada, bob = await writes.create_user("ada", None, 0), await writes.create_user("bob", None, 0)
    session = await connect(settings)
    transaction = session.transaction()
    await transaction.start()
    key = idempotency_key(*ONCE, "something else")
    await session.execute(
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
    await session.close()
    assert (await writes.set_score(ada.user_id, 5, ONCE)).previous_score == 0


@pytest.mark.anyio
async def test_a_repetition_is_rejected_while_the_first_write_runs(
    leaderboard: App, db: asyncpg.Connection, settings: Settings
) -> None:
    user = await leaderboard.service.writes.create_user("ada", None, 0)
    session = await connect(settings)
    transaction = session.transaction()
    await transaction.start()
    await session.execute("SELECT FROM users FOR UPDATE")
    first = asyncio.create_task(leaderboard.service.writes.set_score(user.user_id, 5, ONCE))
    await asyncio.sleep(0)  # starts the task
    with pytest.raises(IdempotencyKeyInUse):
        await leaderboard.service.writes.set_score(user.user_id, 5, ONCE)
    await transaction.rollback()
    await session.close()
    assert await first == await leaderboard.service.writes.set_score(user.user_id, 5, ONCE)


@pytest.mark.anyio
async def test_a_cancelled_and_repeated_write_is_done_once(leaderboard: App, db: asyncpg.Connection) -> None:
    user = await leaderboard.service.writes.create_user("ada", None, 0)
    before = await changes(db)
    for _ in range(20):
        task = asyncio.create_task(leaderboard.service.writes.set_score(user.user_id, 5, ONCE))
        await asyncio.sleep(random.uniform(0, 0.004))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await leaderboard.service.writes.set_score(user.user_id, 5, ONCE)).previous_score == 0
    assert await changes(db) == before + 1


@pytest.mark.anyio
async def test_a_key_is_deleted_after_a_day_and_not_earlier(leaderboard: App, db: asyncpg.Connection) -> None:
    user = await leaderboard.service.writes.create_user("ada", None, 0)
    for hours, caller in ((KEPT_H - 0.1, "younger"), (KEPT_H + 0.1, "older")):
        await leaderboard.service.writes.set_score(user.user_id, 5, (caller, "a-key"))
        await db.execute(
            "UPDATE idempotent_writes SET made_at = made_at - make_interval(secs => $1) WHERE caller = $2",
            hours * 3600,
            caller,
        )
    assert await leaderboard.database.idempotency_keys.delete_old(KEPT_H, 10) == 1
    assert [row["caller"] for row in await db.fetch("SELECT caller FROM idempotent_writes")] == ["younger"]


# What is kept of a result


@pytest.mark.anyio
async def test_a_repeated_write_returns_the_first_scores_and_the_present_name(
    leaderboard: App, second_app: App, db: asyncpg.Connection
) -> None:
    create, change = ("", "create"), ("", "set")
    made = await leaderboard.service.writes.create_user("ada", "https://a.example", 5, create)
    await leaderboard.service.writes.set_score(made.user_id, 6, change)
    await db.execute("UPDATE users SET user_name = 'eve', image_url = NULL, total_score = 100")
    for process in (leaderboard, second_app):
        assert await process.service.writes.create_user("ada", "https://a.example", 5, create) == made
        assert await process.service.writes.set_score(made.user_id, 6, change) == ScoreSet(
            made.user_id, "eve", None, 6, 5
        )
    await db.execute("DELETE FROM users")
    before = await changes(db)
    for process in (leaderboard, second_app):
        assert await process.service.writes.create_user("ada", "https://a.example", 5, create) == made
        with pytest.raises(UserNotFound):
            await process.service.writes.set_score(made.user_id, 6, change)
    assert await changes(db) == before


@pytest.mark.anyio
async def test_the_size_of_a_row_does_not_depend_on_key_name_and_url(
    leaderboard: App, db: asyncpg.Connection
) -> None:
    for key, name, url in (("k", "a", None), ("k" * 255, "b" * 128, "https://a.example/" + "c" * 2030)):
        user = await leaderboard.service.writes.create_user(name, url, 0, ("", f"{key[1:]}1"))
        await leaderboard.service.writes.set_score(user.user_id, 5, ("", f"{key[1:]}2"))
    sizes = await db.fetch(
        "SELECT DISTINCT previous_score IS NULL AS created, pg_column_size(i) FROM idempotent_writes AS i"
    )
    assert len(sizes) == 2
    assert await db.fetchval("SELECT count(*) FROM idempotent_writes") == 4
