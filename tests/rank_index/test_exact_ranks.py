"""Ranks against a window function over everybody, in one snapshot, while everything moves.

The index is made fine-meshed and restless: fences a few users apart, a fold for every change, builds and prunings
in between. Whatever state it is in, a rank, a context, a page and a total must be those of that snapshot.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.database import rank_index
from leaderboard.database.rank_index import RankIndex
from leaderboard.model import INT32_MAX, INT32_MIN, NEIGHBOURS, Context, Standing
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, StandingQuery
from tests.system import OneConnection, connect

pytestmark = pytest.mark.anyio

USERS = 1500
SAMPLES = 1700
"""Compared answers for each kind of board."""
AT_ONCE = 40
EVERYTHING = ("unfolded", "folds", "refits", "built", "pruned")
"""What has to have been there, besides, before it is enough."""
WIDTH = 8

Board = list[Standing]

BOARDS: dict[str, Callable[[random.Random, int], int]] = {
    "all tied": lambda _rng, _n: 0,
    "ever better": lambda _rng, n: n,
    "ever worse": lambda _rng, n: -n,
    "two clusters": lambda rng, _n: rng.choice((-1_000_000, 1_000_000)) + rng.randint(-3, 3),
    "all of int32": lambda rng, _n: rng.choice((INT32_MIN, INT32_MAX, rng.randint(INT32_MIN, INT32_MAX))),
    "few high, most low": lambda rng, _n: int(min(10_000, rng.paretovariate(0.7))),
}
"""What score the n-th score that is set on this board may have."""


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_index, "WIDTH", WIDTH)
    monkeypatch.setattr(rank_index, "FOLD_FROM", 1)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("kind", BOARDS)
async def test_every_answer_is_that_of_a_window_function_in_its_snapshot(settings: Settings, kind: str) -> None:
    rng = random.Random(kind)
    numbers = count(1)

    def score() -> int:
        return max(INT32_MIN, min(INT32_MAX, BOARDS[kind](rng, next(numbers))))

    app = App(settings)
    await app.database.open()
    reader, *writers = [await connect(settings) for _ in range(4)]
    seen: Counter[str] = Counter()
    try:
        # As in the service's sessions: where PostgreSQL can, it would compile each statement anew.
        await reader.execute("SET jit = off")
        await add(reader, [score() for _ in range(USERS)])
        work = [meddle(app, rng, seen), *(write(writer, rng, score) for writer in writers)]
        moving = asyncio.gather(*work)
        try:
            deadline = time.monotonic() + 60
            while seen["compared"] < SAMPLES or not all(seen[what] for what in EVERYTHING):
                assert time.monotonic() < deadline, seen
                await compare(reader, rng, seen)
                if moving.done():
                    await moving
        finally:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
    finally:
        for connection in (reader, *writers):
            await connection.close()
        await app.database.close()
    assert seen["by the index"] > SAMPLES / 2, seen


async def write(connection: asyncpg.Connection, rng: random.Random, score: Callable[[], int]) -> None:
    """Change users as the service and as people with psql do, without end; roll some of it back."""
    while True:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await change(connection, rng, score)
        except asyncpg.DeadlockDetectedError:
            await transaction.rollback()
            continue
        if rng.random() < 0.2:
            await transaction.rollback()
        else:
            await transaction.commit()
        await asyncio.sleep(0)


async def change(connection: asyncpg.Connection, rng: random.Random, score: Callable[[], int]) -> None:
    for _ in range(rng.randint(1, 3)):
        ids = sorted(await some_ids(connection, rng, rng.choice((1, 1, 5, 50))))
        match rng.randint(0, 9):
            case 0 if rng.random() < 0.3:
                await connection.execute("DELETE FROM users WHERE user_id = ANY ($1)", ids[:5])
            case 0 | 1:
                await add(connection, [score() for _ in range(rng.choice((1, 3, 20)))])
            case 2:
                await connection.execute("UPDATE users SET image_url = 'https://a' WHERE user_id = $1", ids[0])
            case _:
                scores = [score() for _ in ids]
                await connection.execute(
                    "UPDATE users AS u SET total_score = w.score"
                    " FROM unnest($1::int[], $2::int[]) AS w (id, score) WHERE u.user_id = w.id",
                    ids,
                    scores,
                )


async def meddle(app: App, rng: random.Random, seen: Counter[str]) -> None:
    """Keep the index, and throw away it, and prune the log, without end."""
    while True:
        before = await fences(app)
        tended = await app.database.rank_index.maintain()
        folded = tended is not None and tended.applied
        seen["folds"] += folded
        seen["refits"] += folded and before != await fences(app)
        if tended is not None and tended.needs_repair:
            seen[await app.database.rank_index.repair()] += 1
        if rng.random() < 0.03:
            await app.database.rank_index.discard()
        if rng.random() < 0.03:
            async with app.database.connections.acquire() as connection:
                await connection.execute("INSERT INTO user_changes (user_id) VALUES (NULL)")
        seen["pruned"] += await app.database.change_log.prune() or 0
        await asyncio.sleep(rng.choice((0, 0, 0.01)))


async def compare(reader: asyncpg.Connection, rng: random.Random, seen: Counter[str]) -> None:
    ranks = RankIndex(cast("Any", OneConnection(reader)))
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        board = [
            Standing(*row)
            for row in await reader.fetch(
                "SELECT row_number() OVER (ORDER BY total_score DESC, user_id ASC), * FROM users ORDER BY 1"
            )
        ]
        where = {standing.user_id: index for index, standing in enumerate(board)}
        ids = [*rng.sample(sorted(where), min(len(board), AT_ONCE)), INT32_MAX]
        questions = [rng.choice((StandingQuery, ContextQuery))(user_id) for user_id in ids]
        index = await reader.fetchrow("SELECT usable, unfolded FROM rank_index_now(50000)")
        assert index is not None
        usable, unfolded = index
        answers = await ranks.standings(questions, count=not usable)
        assert answers is not None
        for question, answer in zip(questions, answers.value, strict=True):
            assert answer == expected(question, board, where.get(question.user_id)), question
        for page_question in some_pages(rng, board):
            page = (await ranks.page(page_question)).value
            assert page.total == len(board)
            assert page.users == expected_page(page_question, board), page_question
    seen["compared"] += len(questions)
    seen["by the index"] += len(questions) * usable
    seen["unfolded"] += unfolded if usable else 0


def expected(question: StandingQuery | ContextQuery, board: Board, index: int | None) -> Standing | Context | None:
    if index is None:
        return None
    if isinstance(question, StandingQuery):
        return board[index]
    above = board[max(0, index - NEIGHBOURS) : index]
    return Context(board[index], above, board[index + 1 : index + 1 + NEIGHBOURS], len(board))


def some_pages(rng: random.Random, board: Board) -> Sequence[PageQuery | PageAroundQuery]:
    limit = rng.choice((1, 7, 100))
    somebody = rng.choice(board)
    return (
        PageQuery(limit),
        PageQuery(limit, (somebody.total_score, somebody.user_id)),
        PageQuery(limit, (rng.randint(INT32_MIN, INT32_MAX), rng.randint(1, INT32_MAX))),
        PageAroundQuery(limit, rng.randint(1, len(board))),
        PageAroundQuery(limit, rng.choice((1, len(board), len(board) + 1, INT32_MAX))),
    )


def expected_page(question: PageQuery | PageAroundQuery, board: Board) -> Board:
    if isinstance(question, PageAroundQuery):
        start = max(0, min(question.rank - question.limit // 2, len(board) - question.limit + 1) - 1)
    elif question.after is None:
        start = 0
    else:
        score, user_id = question.after
        start = sum((-other.total_score, other.user_id) <= (-score, user_id) for other in board)
    return board[start : start + question.limit]


async def fences(app: App) -> list[int] | None:
    async with app.database.connections.acquire() as connection:
        found: list[int] | None = await connection.fetchval("SELECT fences FROM rank_index")
    return found


async def some_ids(connection: asyncpg.Connection, rng: random.Random, n: int) -> list[int]:
    last = await connection.fetchval("SELECT max(user_id) FROM users")
    return [rng.randint(1, last) for _ in range(n)]


async def add(connection: asyncpg.Connection, scores: Sequence[int]) -> None:
    await connection.execute(
        "INSERT INTO users (user_name, total_score) SELECT gen_random_uuid()::text, s FROM unnest($1::int[]) AS s",
        scores,
    )
