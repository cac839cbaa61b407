"""An entry with an idempotency key is written once, and answered again as it was the first time."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from leaderboard.app import App
from leaderboard.board_rules import parse_rules
from leaderboard.config import Settings
from leaderboard.errors import BoardNotFound, IdempotencyKeyInUse, IdempotencyKeyReused, InvalidField
from leaderboard.model import EntrySet
from leaderboard.queries import SeasonRef
from tests.system import sql

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[App]:
    """A process without timers, with three users and a board that adds up scores with one decimal."""
    sql(settings, "INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 3) AS n")
    app = App(settings)
    async with app.running():
        app.health.note_postgres(await app.database.now())
        await app.service.boards.configure("sum", parse_rules({"keeps": "sum", "decimals": 1, "ties": "first"}))
        yield app


async def score(app: App) -> Decimal:
    reply = await app.service.reads.standing(1, SeasonRef("sum"))
    return Decimal(reply.result.total_score)


async def test_an_increment_with_a_key_is_added_once(app: App) -> None:
    await app.service.entries.add("sum", 1, 5)
    first = await app.service.entries.add("sum", 1, Decimal("0.5"), ("caller", "key"))
    await app.service.entries.add("sum", 1, 10)
    assert await app.service.entries.add("sum", 1, Decimal("0.5"), ("caller", "key")) == first
    assert (first.previous_score, first.total_score) == (5, Decimal("5.5"))
    assert await score(app) == Decimal("15.5")


async def test_of_the_same_increment_sent_many_times_at_once_one_is_added(app: App) -> None:
    sent = [app.service.entries.add("sum", 1, 3, ("caller", "key")) for _ in range(10)]
    results = await asyncio.gather(*sent, return_exceptions=True)
    assert {type(result) for result in results} <= {EntrySet, IdempotencyKeyInUse}
    assert {result.total_score for result in results if isinstance(result, EntrySet)} == {3}
    assert await score(app) == 3


async def test_a_key_is_of_one_request(app: App) -> None:
    await app.service.entries.add("sum", 1, 3, ("caller", "key"))
    with pytest.raises(IdempotencyKeyReused):
        await app.service.entries.add("sum", 1, 4, ("caller", "key"))
    with pytest.raises(IdempotencyKeyReused):
        await app.service.entries.add("sum", 2, 3, ("caller", "key"))
    await app.service.entries.add("sum", 1, 3, ("other caller", "key"))
    assert await score(app) == 6


async def test_a_refused_increment_does_not_use_up_its_key(app: App) -> None:
    with pytest.raises(InvalidField):
        await app.service.entries.add("sum", 1, Decimal("0.01"), ("caller", "key"))
    with pytest.raises(InvalidField):
        await app.service.entries.set_score("sum", 1, 1, ("caller", "key"))
    assert (await app.service.entries.add("sum", 1, 1, ("caller", "key"))).total_score == 1


async def test_an_answer_says_the_season_of_the_first_time(app: App) -> None:
    first = await app.service.entries.add("sum", 1, 3, ("caller", "key"))
    await app.service.boards.end_season("sum", 1)
    assert await app.service.entries.add("sum", 1, 3, ("caller", "key")) == first
    assert first.season == 1


async def test_after_its_board_was_deleted_an_entry_is_not_written_again(app: App) -> None:
    await app.service.entries.add("sum", 1, 3, ("caller", "key"))
    await app.service.boards.delete("sum")
    await app.service.boards.configure("sum", parse_rules({"keeps": "sum"}))
    with pytest.raises(BoardNotFound):
        await app.service.entries.add("sum", 1, 3, ("caller", "key"))
