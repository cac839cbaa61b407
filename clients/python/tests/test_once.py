"""A write is done once, also if answers are lost, and calls that must not be repeated are not."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from clients.python.tests.conftest import NewName
from clients.python.tests.cutting import Cutter
from leaderboard_client import (
    NO_RETRY,
    AsyncLeaderboard,
    Board,
    BoardNotFound,
    ConnectionLost,
    ExternalId,
    Leaderboard,
    NotOnBoard,
    Retry,
    Rules,
    ScoreChange,
    UserNotFound,
)
from tests.system import ApiProcess, connect

FAST = Retry(first_s=0.001, most_s=0.001)


@pytest.fixture
async def cutter(service: ApiProcess) -> AsyncIterator[Cutter]:
    async with Cutter(service.url) as cutter:
        yield cutter


@pytest.fixture
def points(lb: Leaderboard, new_name: NewName) -> Board:
    """A board that adds up scores."""
    board = lb.board(new_name())
    board.put(Rules(keeps="sum"))
    return board


@pytest.fixture
def user_id(lb: Leaderboard, new_name: NewName) -> int:
    return lb.create_user(new_name()).user_id


@pytest.mark.anyio
async def test_an_increment_whose_answers_are_lost_counts_once(
    cutter: Cutter, points: Board, user_id: int
) -> None:
    def add() -> ScoreChange:
        with Leaderboard(cutter.url, retry=FAST) as lb:
            return lb.board(points.name).add_score(user_id, 5)

    cutter.cuts = 3
    change = await asyncio.to_thread(add)
    assert (change.score, change.previous_score, cutter.cuts, cutter.requests) == (5, None, 0, 4)
    assert points.standing(user_id).score == 5


@pytest.mark.anyio
async def test_an_increment_counts_once_in_an_event_loop(cutter: Cutter, points: Board, user_id: int) -> None:
    cutter.cuts = 3
    async with AsyncLeaderboard(cutter.url, retry=FAST) as lb:
        change = await lb.board(points.name).add_score(user_id, 5)
    assert (change.score, change.previous_score, cutter.cuts, cutter.requests) == (5, None, 0, 4)
    assert points.standing(user_id).score == 5


@pytest.mark.anyio
async def test_a_user_is_created_once(cutter: Cutter, new_name: NewName) -> None:
    cutter.cuts = 1
    async with AsyncLeaderboard(cutter.url, retry=FAST) as lb:
        name = new_name()
        user = await lb.create_user(name, score=3)
        assert (await lb.find_user(name)).user_id == user.user_id


@pytest.mark.anyio
async def test_each_increment_of_a_batch_counts_once(
    cutter: Cutter, lb: Leaderboard, points: Board, new_name: NewName
) -> None:
    ids = [lb.create_user(new_name()).user_id for _ in range(3)]
    cutter.cuts = 2
    async with AsyncLeaderboard(cutter.url, retry=FAST) as client:
        # The first user twice, so there are two requests with keys of their own.
        results = await client.board(points.name).add_scores([*((each, 5) for each in ids), (ids[0], 5)])
    assert [result.score for result in results if isinstance(result, ScoreChange)] == [5, 5, 5, 10]
    assert [standing.score for standing in points.top()] == [10, 5, 5]
    assert cutter.requests == 4


@pytest.mark.anyio
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_a_failed_call_is_made_again_with_its_key(
    cutter: Cutter, points: Board, user_id: int, many: bool
) -> None:
    async with AsyncLeaderboard(cutter.url, retry=NO_RETRY) as lb:
        board = lb.board(points.name)

        async def add(key: str | None) -> object:
            if many:
                # Two requests: the answer to the first is lost, or to both, one at a time.
                return await board.add_scores([(user_id, 5), (user_id, 6)], idempotency_key=key)
            return await board.add_score(user_id, 11, idempotency_key=key)

        key = None
        for _ in range(2):
            cutter.cuts = 1
            with pytest.raises(ConnectionLost) as lost:
                await add(key)
            assert lost.value.outcome_unknown
            key = lost.value.request.idempotency_key
            assert key is not None
        await add(key)
        await add(key)
    assert points.standing(user_id).score == 11


@pytest.mark.anyio
async def test_without_a_key_a_write_is_sent_once(cutter: Cutter, points: Board, user_id: int) -> None:
    cutter.cuts = 1
    async with AsyncLeaderboard(cutter.url, retry=FAST) as lb:
        board = lb.board(points.name)
        with pytest.raises(ConnectionLost) as lost:
            await board.add_score(user_id, 5, idempotency_key=False)
        cutter.cuts = 1
        with pytest.raises(ConnectionLost):
            await board.add_scores({user_id: 5}, idempotency_key=False)
    assert (lost.value.outcome_unknown, lost.value.request.idempotency_key) == (True, None)
    assert cutter.requests == 2
    assert points.standing(user_id).score == 10


@pytest.mark.anyio
async def test_reads_and_what_sets_the_same_again_are_repeated(
    cutter: Cutter, lb: Leaderboard, points: Board, user_id: int, new_name: NewName
) -> None:
    async with AsyncLeaderboard(cutter.url, retry=FAST) as client:
        board = client.board(points.name)
        name = new_name()
        calls: list[Callable[[], Any]] = [
            lambda: client.standing(user_id),
            lambda: client.update_user(user_id, username=name),
            lambda: board.put(Rules(keeps="sum", title="A title")),
            lambda: board.end_season(1),
            lambda: client.put_user(ExternalId(name), f"{name} put"),
            lambda: client.erase_user(user_id),
        ]
        for call in calls:
            before = cutter.requests
            cutter.cuts = 1
            await call()
            assert cutter.requests == before + 2
        # Only a lost answer explains that the user is gone already.
        with pytest.raises(UserNotFound):
            await client.erase_user(user_id)
    assert points.info().rules.title == "A title"
    assert points.info().current_season.number == 2


@pytest.mark.anyio
async def test_what_could_meet_something_new_is_sent_once(cutter: Cutter, points: Board, user_id: int) -> None:
    """A new entry of the user, or a new board of that name, could have been made since."""
    points.add_score(user_id, 5)
    async with AsyncLeaderboard(cutter.url, retry=FAST) as client:
        board = client.board(points.name)
        calls: list[Callable[[], Any]] = [lambda: board.remove(user_id), board.delete]
        for call in calls:
            before = cutter.requests
            cutter.cuts = 1
            with pytest.raises(ConnectionLost) as lost:
                await call()
            assert lost.value.outcome_unknown
            assert cutter.requests == before + 1
        with pytest.raises(BoardNotFound):
            await board.info()


@pytest.mark.slow
@pytest.mark.anyio
async def test_only_what_was_refused_for_now_is_sent_again(
    service: ApiProcess, lb: Leaderboard, points: Board, new_name: NewName
) -> None:
    """One entry is locked until the service has refused its change and done the other one."""
    ada, bob = (lb.create_user(new_name()).user_id for _ in range(2))
    points.add_scores({ada: 1, bob: 1})
    answered = threading.Event()
    requests: list[httpx.Request] = []

    def note(response: httpx.Response) -> None:
        requests.append(response.request)
        answered.set()
        # The next attempt comes once the lock has been released.
        released.wait()

    def add() -> list[Any]:
        with httpx.Client(event_hooks={"response": [note]}, timeout=60) as http:
            client = Leaderboard(service.url, http=http, retry=Retry(total_s=60))
            return list(client.board(points.name).add_scores({ada: 10, bob: 10}))

    released = threading.Event()
    connection = await connect(service.settings)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM scores WHERE user_id = $1 FOR UPDATE", bob)
            adding = asyncio.create_task(asyncio.to_thread(add))
            await asyncio.to_thread(answered.wait)
        released.set()
        results = await adding
    finally:
        released.set()
        await connection.close()
    assert [(result.user_id, result.score, result.previous_score) for result in results] == [
        (ada, 11, 1),
        (bob, 11, 1),
    ]
    first, *rest = requests
    assert (str(ada) in first.content.decode(), str(bob) in first.content.decode()) == (True, True)
    assert rest
    assert all(f'"userId":{ada},' not in request.content.decode() for request in rest)
    assert {request.headers["idempotency-key"] for request in requests} == {first.headers["idempotency-key"]}
    with pytest.raises(NotOnBoard):
        points.standing(2_000_000_000)
