"""Compares ranks with a window function over all users, in one snapshot, during writes.

The index has checkpoints a few users apart. The log is applied after every change, and the index is built and the
log pruned in between. Each rank, context, page and total must be that of the snapshot.
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
from leaderboard.database.rank_index import RankIndex
from leaderboard.model import INT32_MAX, NEIGHBOURS, SCORE_MAX, SCORE_MIN, Context, Standing
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, StandingQuery
from leaderboard.tuning import LogTuning, RankIndexTuning, Tuning
from tests.system import OneConnection, connect

pytestmark = pytest.mark.anyio

USERS = 1500
SAMPLES = 850
"""Results that the index gave, for each kind of board. As many again may have been counted without it."""
USERS_PER_COMPARISON = 40
EVENTS = ("pending", "applied", "rebalanced", "built", "pruned")
"""What must have happened before the test ends."""
TUNING = RankIndexTuning(width=8, apply_from=1)

Board = list[Standing]

BOARDS: dict[str, Callable[[random.Random, int], int]] = {
    "all tied": lambda _rng, _n: 0,
    "rising": lambda _rng, n: n,
    "falling": lambda _rng, n: -n,
    "two clusters": lambda rng, _n: rng.choice((-1_000_000, 1_000_000)) + rng.randint(-3, 3),
    "the whole range": lambda rng, _n: rng.choice((SCORE_MIN, SCORE_MAX, rng.randint(SCORE_MIN, SCORE_MAX))),
    "few high, most low": lambda rng, _n: int(min(10_000, rng.paretovariate(0.7))),
}
"""Each kind of board, with the n-th score that is set on it."""


@pytest.mark.parametrize("kind", BOARDS)
async def test_every_result_is_that_of_a_window_function_in_its_snapshot(settings: Settings, kind: str) -> None:
    rng = random.Random(kind)
    numbers = count(1)

    def score() -> int:
        return max(SCORE_MIN, min(SCORE_MAX, BOARDS[kind](rng, next(numbers))))

    app = App(settings, Tuning(ranks=TUNING))
    await app.database.open()
    reader, *writers = [await connect(settings) for _ in range(4)]
    events: Counter[str] = Counter()
    try:
        # As in the sessions of the service. Otherwise PostgreSQL may compile each statement again.
        await reader.execute("SET jit = off")
        await add(reader, [score() for _ in range(USERS)])
        work = [maintain(app, rng, events), *(write(writer, rng, score) for writer in writers)]
        changing = asyncio.gather(*work)
        try:
            deadline = time.monotonic() + 60
            while events["by the index"] < SAMPLES or not all(events[what] for what in EVENTS):
                assert time.monotonic() < deadline, events
                await compare(reader, rng, events)
                if changing.done():
                    await changing
        finally:
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)
    finally:
        for connection in (reader, *writers):
            await connection.close()
        await app.database.close()


async def write(connection: asyncpg.Connection, rng: random.Random, score: Callable[[], int]) -> None:
    """Changes users, as the service and as SQL does, until it is cancelled. Rolls some changes back."""
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
                    " FROM unnest($1::int[], $2::bigint[]) AS w (id, score) WHERE u.user_id = w.id",
                    ids,
                    scores,
                )


async def maintain(app: App, rng: random.Random, events: Counter[str]) -> None:
    """Maintains and discards the index, and prunes the log, until it is cancelled."""
    while True:
        before = await checkpoints(app)
        state = await app.database.rank_index.maintain()
        applied = state is not None and state.applied
        events["applied"] += applied
        events["rebalanced"] += applied and before != await checkpoints(app)
        if state is not None and state.needs_repair:
            events[await app.database.rank_index.repair()] += 1
        if rng.random() < 0.03:
            await app.database.rank_index.discard()
        if rng.random() < 0.03:
            async with app.database.connections.acquire() as connection:
                await connection.execute("INSERT INTO changes (season_id, user_id) VALUES (1, NULL)")
        events["pruned"] += await app.database.change_log.prune(LogTuning(keep_s=0)) or 0
        await asyncio.sleep(rng.choice((0, 0, 0.01)))


async def compare(reader: asyncpg.Connection, rng: random.Random, events: Counter[str]) -> None:
    ranks = RankIndex(cast("Any", OneConnection(reader)), TUNING)
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        board = [
            Standing(*row)
            for row in await reader.fetch(
                "SELECT row_number() OVER (ORDER BY total_score DESC, user_id ASC),"
                " user_id, user_name, image_url, total_score FROM users WHERE NOT hidden ORDER BY 1"
            )
        ]
        index_of = {standing.user_id: index for index, standing in enumerate(board)}
        ids = [*rng.sample(sorted(index_of), min(len(board), USERS_PER_COMPARISON)), INT32_MAX]
        queries = [rng.choice((StandingQuery, ContextQuery))(user_id) for user_id in ids]
        index = await reader.fetchrow("SELECT valid, pending FROM rank_index_now(1, 50000)")
        assert index is not None
        valid, pending = index
        results = await ranks.standings(queries, count=not valid)
        for query, result in zip(queries, results.value, strict=True):
            assert result == expected(query, board, index_of.get(query.user_id)), query
        for page_query in some_pages(rng, board):
            page = (await ranks.page(page_query)).value
            assert page.total == len(board)
            assert page.users == expected_page(page_query, board), page_query
    events["compared"] += len(queries)
    events["by the index"] += len(queries) * valid
    events["pending"] += pending if valid else 0


def expected(query: StandingQuery | ContextQuery, board: Board, index: int | None) -> Standing | Context | None:
    if index is None:
        return None
    if isinstance(query, StandingQuery):
        return board[index]
    above = board[max(0, index - NEIGHBOURS) : index]
    return Context(board[index], above, board[index + 1 : index + 1 + NEIGHBOURS], len(board))


def some_pages(rng: random.Random, board: Board) -> Sequence[PageQuery | PageAroundQuery]:
    limit = rng.choice((1, 7, 100))
    user = rng.choice(board)
    return (
        PageQuery(limit),
        PageQuery(limit, (user.total_score, user.user_id)),
        PageQuery(limit, (rng.randint(SCORE_MIN, SCORE_MAX), rng.randint(1, INT32_MAX))),
        PageAroundQuery(limit, rng.randint(1, len(board))),
        PageAroundQuery(limit, rng.choice((1, len(board), len(board) + 1, INT32_MAX))),
    )


def expected_page(query: PageQuery | PageAroundQuery, board: Board) -> Board:
    if isinstance(query, PageAroundQuery):
        start = max(0, min(query.rank - query.limit // 2, len(board) - query.limit + 1) - 1)
    elif query.after is None:
        start = 0
    else:
        score, user_id = query.after
        start = sum((-other.total_score, other.user_id) <= (-score, user_id) for other in board)
    return board[start : start + query.limit]


async def checkpoints(app: App) -> list[int] | None:
    async with app.database.connections.acquire() as connection:
        found: list[int] | None = await connection.fetchval("SELECT keys FROM rank_index")
    return found


async def some_ids(connection: asyncpg.Connection, rng: random.Random, n: int) -> list[int]:
    last = await connection.fetchval("SELECT max(user_id) FROM users")
    return [rng.randint(1, last) for _ in range(n)]


async def add(connection: asyncpg.Connection, scores: Sequence[int]) -> None:
    await connection.execute(
        "INSERT INTO users (user_name, total_score) SELECT gen_random_uuid(), s FROM unnest($1::bigint[]) AS s",
        scores,
    )
