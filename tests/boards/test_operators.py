"""Two processes set scores, add to them and remove entries: the history of each entry is linearizable.

Connections are cut before and after writes commit, so that some writes have an unknown outcome. Half of the writes
have an idempotency key and are sent again until there is an answer. These are done once.
"""

import asyncio
import math
import random
import socket
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import count, product
from typing import Literal

import asyncpg
import pytest

from chaos import linearizability
from chaos.history import Operation, Place
from chaos.history import Outcome as Recorded
from leaderboard.app import App
from leaderboard.board_rules import BoardRules, to_json
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.database.entries import NewEntry, Outcome
from leaderboard.errors import (
    IdempotencyKeyInUse,
    InvalidField,
    NotOnBoard,
    OutcomeUnknown,
    Unavailable,
)
from leaderboard.model import EntrySet
from leaderboard.queries import PageQuery, SeasonRef
from tests.boards.boards import add_users, deadlocks, make_board, started, stored, two_started, waits_for_lock
from tests.system import PATIENCE_S, THOROUGH, SlowNetwork, until

pytestmark = pytest.mark.anyio

USERS = 3
WRITERS = 8
"""For each process."""
WRITES = 40 * THOROUGH
"""Of each writer, at least."""
CUTS = 10
"""Of each kind. If there were more, the search for an order of the unknown writes would take long."""

Write = Literal["set", "add", "best"]

BOARDS: dict[str, dict[str, object]] = {
    "-".join(chosen): dict(zip(("keeps", "better", "ties"), chosen, strict=True))
    for chosen in product(("last", "best", "sum"), ("higher", "lower"), ("id", "first"))
}


@dataclass
class World:
    """The boards, and what was recorded of each. Scores are recorded as numbers of which more is better."""

    boards: list[Board]
    operations: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    writing: bool = True
    rng: random.Random = field(default_factory=lambda: random.Random("operators"))
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    events: "Counter[str]" = field(default_factory=Counter)


def better(rules: BoardRules, score: object) -> int:
    """Returns a score as a number of which more is better."""
    return int(str(score)) if rules.better == "higher" else -int(str(score))


async def write(app: App, world: World) -> None:
    for n in count():
        if n >= WRITES and world.events["unknown"] and world.events["sent again"]:
            return
        board, user_id = world.rng.choice(world.boards), world.rng.randint(1, USERS)
        if world.rng.random() < 0.1:
            await remove(app, world, board, user_id)
            continue
        kind: Write = "best" if board.rules.keeps == "best" else "add" if board.rules.keeps == "sum" else "set"
        if board.rules.keeps == "last" and world.rng.random() < 0.3:
            kind = "add"
        # No score is set twice. A best score is often worse than the present one.
        number = next(world.numbers) if kind == "set" else world.rng.randint(-100, 1000)
        once = ("caller", str(uuid.uuid4())) if world.rng.random() < 0.5 else None
        entries = app.service.entries
        send = entries.add if kind == "add" else entries.set_score
        start = time.monotonic()
        done = await answer(partial(send, board.name, user_id, number, once), world, repeat=once is not None)
        sent = better(board.rules, number)
        if isinstance(done, EntrySet):
            end = time.monotonic()
            result = better(board.rules, done.total_score)
            previous = None if done.previous_score is None else better(board.rules, done.previous_score)
            assert done.improved == (previous is None or result > previous)
            operation = Operation(kind, user_id, start, end, score=sent, previous=previous, result=result)
        else:
            operation = Operation(kind, user_id, start, outcome=done, score=sent)
        world.operations[board.name].append(operation)


async def answer(send: Callable[[], Awaitable[EntrySet]], world: World, *, repeat: bool) -> EntrySet | Recorded:
    """Sends a write, until there is an answer if `repeat`. Returns the answer or the outcome."""
    while True:
        try:
            return await send()
        except OutcomeUnknown:
            world.events["sent again" if repeat else "unknown"] += 1
            if not repeat:
                return "unknown"
        except IdempotencyKeyInUse:
            await asyncio.sleep(0.005)
        except Unavailable:
            # Refused at once, this would otherwise go on without ever giving way to others.
            await asyncio.sleep(0.005)
            return "refused"


async def remove(app: App, world: World, board: Board, user_id: int) -> None:
    start, end = time.monotonic(), math.inf
    try:
        await app.service.entries.remove(board.name, user_id)
        operation = Operation("remove", user_id, start, time.monotonic())
    except NotOnBoard:
        operation = Operation("remove", user_id, start, time.monotonic(), "missing")
    except OutcomeUnknown:
        operation = Operation("set", user_id, start, end, "unknown")
    except Unavailable:
        await asyncio.sleep(0.005)
        return
    world.operations[board.name].append(operation)


async def read(app: App, world: World) -> None:
    """Reads standings, contexts, tops and pages while others write."""
    reads, rng = app.service.reads, world.rng
    while world.writing:
        board, user_id = rng.choice(world.boards), rng.randint(1, USERS)
        season = SeasonRef(board.name)
        start = time.monotonic()
        age_s = None
        try:
            match rng.choice(("user", "context", "top", "page")):
                case "user":
                    standing = await reads.standing(user_id, season)
                    users, age_s = [standing.result], standing.age_s
                case "context":
                    context = await reads.context(user_id, season)
                    users = [*context.result.above, context.result.user, *context.result.below]
                    age_s = context.age_s
                case "top":
                    top = await reads.top(10, season)
                    users, age_s = top.result.decode().users, top.age_s
                case _:
                    users = (await reads.page(PageQuery(10, season=season))).result.users
        except NotOnBoard:
            operation = Operation("user", user_id, start, time.monotonic(), "missing")
        except Unavailable:
            await asyncio.sleep(0.005)
            continue
        else:
            if age_s is not None:
                continue  # It says that it may be stale.
            places = tuple(
                Place(user.rank, user.user_id, user.user_name, better(board.rules, user.total_score))
                for user in users
            )
            operation = Operation("top", 10, start, time.monotonic(), places=places)
        world.operations[board.name].append(operation)
        await asyncio.sleep(0)


class CuttingProxy(SlowNetwork):
    """A proxy to PostgreSQL that closes some connections instead of delivering the answer to a write."""

    def __init__(self, port: int) -> None:
        super().__init__(port, 0)
        self._random = random.Random("cuts")
        self._left = CUTS

    def _carry(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                # The outcome of an entry. The write has committed.
                if b"written" in data and self._left > 0 and self._random.random() < 0.1:
                    self._left -= 1
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


async def end_sessions(db: asyncpg.Connection, world: World) -> None:
    """Ends sessions of PostgreSQL that write entries at this moment. These are not done."""
    ended = 0
    while world.writing and ended < CUTS:
        ended += await db.fetchval(
            "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state = 'active' AND query LIKE '%open_seasons(%'"
            " AND pid <> pg_backend_pid() LIMIT 1) AS ended"
        )
        await asyncio.sleep(world.rng.uniform(0, 0.05))


async def test_the_history_of_each_entry_is_linearizable(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, USERS)
    # Some writes take longer, so that they meet each other.
    await db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.01 * random()); RETURN NULL; END';"
        "CREATE TRIGGER wait AFTER INSERT OR UPDATE ON scores FOR EACH STATEMENT EXECUTE FUNCTION wait()"
    )
    with CuttingProxy(settings.db_port) as proxy:
        world = await run(settings.model_copy(update={"db_port": proxy.port}), db)
    await check(db, world)


async def run(settings: Settings, db: asyncpg.Connection) -> World:
    """Writes and reads on two processes, and returns what they answered."""
    async with two_started(settings) as apps:
        world = World([await make_board(apps[0], name, **rules) for name, rules in BOARDS.items()])
        reading = asyncio.gather(end_sessions(db, world), *(read(app, world) for app in apps for _ in range(3)))
        await asyncio.wait_for(
            asyncio.gather(*(write(app, world) for app in apps for _ in range(WRITERS))), PATIENCE_S * THOROUGH
        )
        world.writing = False
        await reading
    return world


async def check(db: asyncpg.Connection, world: World) -> None:
    assert await deadlocks(db) == 0
    for board in world.boards:
        bits = 31 if board.rules.ties == "first" else 0
        entries = await stored(db, board.season_id)
        places = tuple(Place(0, user_id, "", key >> bits) for user_id, key in entries.items())
        now = time.monotonic()
        last = [Operation("top", 10, now, now, places=places)]
        last += [Operation("user", n, now, now, "missing") for n in range(1, USERS + 1) if n not in entries]
        assert linearizability.check({}, [*world.operations[board.name], *last]) == [], board.name


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("keeps", ["last", "best", "sum"])
async def test_a_result_out_of_bounds_changes_nothing(
    settings: Settings, db: asyncpg.Connection, keeps: str, better: str
) -> None:
    """Two processes write at the same time; of a sum, only as much as fits is added."""
    await add_users(db, 2)
    async with two_started(settings) as apps:
        await make_board(apps[0], "bounded", keeps=keeps, better=better, lowest=-7, highest=30)
        for app in apps:
            send = app.service.entries.add if keeps == "sum" else app.service.entries.set_score
            for number in (31, -8, 2**53 - 1, -(2**53) + 1):
                with pytest.raises(InvalidField):
                    await send("bounded", 1, number)
        with pytest.raises(NotOnBoard):
            await apps[0].service.reads.standing(1, SeasonRef("bounded"))
        if keeps != "sum":
            return
        results = await asyncio.gather(
            *(apps[n % 2].service.entries.add("bounded", 1, 1) for n in range(50)), return_exceptions=True
        )
        totals = [result.total_score for result in results if isinstance(result, EntrySet)]
        assert sorted(totals) == list(range(1, 31))
        assert {type(result) for result in results} == {EntrySet, InvalidField}
        assert (await apps[1].service.reads.standing(1, SeasonRef("bounded"))).result.total_score == 30


async def test_a_batch_that_waits_for_an_insertion_has_locked_no_entry(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    """Otherwise it would deadlock with a batch that inserted first and locks an entry of this one next."""
    await add_users(db, 2)
    async with started(settings) as app:
        board = await make_board(app, "last")
        await app.service.entries.set_score("last", 1, 5)
        async with session.transaction():
            await session.execute("INSERT INTO scores VALUES (2, $1, 6)", board.season_id)
            batch = [NewEntry(board.board_id, board.version, user_id, 7) for user_id in (1, 2)]
            writing = asyncio.create_task(app.database.entries.write(batch))
            await until(partial(waits_for_lock, db), "the batch waits")
            changed = False
            with suppress(asyncpg.LockNotAvailableError):
                async with session.transaction():
                    await session.execute("SET LOCAL lock_timeout = '0.5s'")
                    await session.execute("UPDATE scores SET sort_key = 8 WHERE user_id = 1")
                    changed = True
            assert not writing.done()
        outcomes = [written.outcome for written in (await writing).results]
        assert changed, "the batch has locked the entry"
        assert outcomes == [Outcome.WRITTEN, Outcome.AGAIN]
        assert await stored(db, board.season_id) == {1: 7, 2: 6}


async def test_a_score_is_taken_and_stored_by_the_rules_that_another_process_has_set(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with two_started(settings) as (one, other):
        await make_board(one, "changed")
        await one.service.entries.set_score("changed", 1, 7)
        # Without entries, all rules can change. The first process does not learn of it.
        await one.service.entries.remove("changed", 1)
        board = await make_board(other, "changed", better="lower")
        await one.service.entries.set_score("changed", 1, 7)
        assert await stored(db, board.season_id) == {1: -7}
        # By the rules that the process knows, these are refused.
        await one.service.entries.remove("changed", 1)
        await make_board(other, "changed", decimals=2)
        assert (await one.service.entries.set_score("changed", 1, Decimal("7.25"))).total_score == Decimal("7.25")
        await make_board(other, "changed", decimals=2, keeps="sum")
        assert (await one.service.entries.add("changed", 1, 1)).total_score == Decimal("8.25")
        await make_board(other, "changed", decimals=2)
        assert (await one.service.entries.set_score("changed", 1, 5)).total_score == 5
        with pytest.raises(InvalidField):
            await one.service.entries.set_score("changed", 1, Decimal("0.001"))


async def test_a_batch_that_waited_for_new_rules_writes_nothing_by_the_old_ones(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection
) -> None:
    await add_users(db, 1)
    async with started(settings) as app:
        board = await make_board(app, "changed")
        async with session.transaction():
            await session.execute("SELECT pg_advisory_xact_lock(7001, $1)", board.board_id % 64)
            writing = asyncio.create_task(app.service.entries.set_score("changed", 1, 7))
            await until(partial(waits_for_lock, db), "the batch waits")
            await session.execute(
                "UPDATE boards SET version = version + 1, rules = $2 WHERE board_id = $1",
                board.board_id,
                to_json(BoardRules(better="lower")),
            )
        await writing
        assert await stored(db, board.season_id) == {1: -7}
