"""External ids in one process: what it remembers of them, and users that another transaction creates meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.board_rules import parse_rules
from leaderboard.config import Settings
from leaderboard.errors import ExternalIdTaken, UsernameTaken, UserNotFound
from leaderboard.model import EntrySet, ExternalId, ScoreSet, User
from leaderboard.tuning import Tuning
from tests.system import until
from tests.writes.writing import PATIENT, batched, running, waiting_sessions

pytestmark = pytest.mark.anyio

X = ExternalId("x")
Write = Callable[[App, str], Awaitable[User | ScoreSet | EntrySet]]


def lookups(app: App) -> tuple[float, float]:
    """Returns how many batches of external ids were looked up, and how many external ids."""
    name = "leaderboard_batch_items_count"
    batches = app.metrics.registry.get_sample_value(name, {"queue": "external ids"}) or 0.0
    return batches, batched(app, "external ids")


async def add_users(db: asyncpg.Connection, count: int) -> None:
    """Adds users 1 to `count`. The external id of each is `id` and its number."""
    await db.execute(
        "INSERT INTO users (user_name, external_id)"
        " SELECT 'user ' || n, 'id ' || n FROM generate_series(1, $1::int) AS n",
        count,
    )


def ids(count: int) -> list[ExternalId]:
    return [ExternalId(f"id {n}") for n in range(1, count + 1)]


# What a process remembers


async def test_ids_that_are_asked_for_together_are_looked_up_together(
    leaderboard: App, db: asyncpg.Connection
) -> None:
    await add_users(db, 50)
    reads = leaderboard.service.reads
    found = await asyncio.gather(*map(reads.standing, ids(50)))
    assert [reply.result.user_id for reply in found] == list(range(1, 51))
    batches, looked_up = lookups(leaderboard)
    assert looked_up == 50
    assert batches <= 2
    # From now on by memory.
    found = await asyncio.gather(*map(reads.standing, ids(50)))
    assert [reply.result.external_id for reply in found] == ids(50)
    assert lookups(leaderboard) == (batches, looked_up)


async def test_an_unknown_id_is_not_remembered(leaderboard: App, db: asyncpg.Connection) -> None:
    for n in (1, 2):
        with pytest.raises(UserNotFound, match="external id 'id 1'"):
            await leaderboard.service.reads.standing(ids(1)[0])
        assert lookups(leaderboard)[1] == n
    await add_users(db, 1)
    assert (await leaderboard.service.reads.standing(ids(1)[0])).result.user_id == 1


async def test_a_user_that_was_created_here_is_remembered(leaderboard: App) -> None:
    made = await leaderboard.service.writes.create_user("ada", None, 5, external_id=X)
    assert (await leaderboard.service.reads.standing(X)).result.user_id == made.user_id
    assert lookups(leaderboard) == (0, 0)


async def test_the_least_recently_used_id_is_forgotten_first(settings: Settings, db: asyncpg.Connection) -> None:
    await add_users(db, 5)
    app = App(settings, Tuning(remembered_ids=3))

    async def ask(*numbers: int) -> float:
        """Returns how many of them had to be looked up."""
        before = lookups(app)[1]
        for n in numbers:
            assert (await app.service.reads.standing(ExternalId(f"id {n}"))).result.user_id == n
        return lookups(app)[1] - before

    async with app.running():
        assert await ask(1, 2, 3, 1) == 3
        assert await ask(4) == 1
        assert await ask(3, 1, 4) == 0
        assert await ask(2) == 1
        assert await ask(3) == 1
        assert await ask(4, 2) == 0


async def test_nothing_is_remembered_from_another_epoch(leaderboard: App, db: asyncpg.Connection) -> None:
    await add_users(db, 1)
    (known,) = ids(1)
    assert (await leaderboard.service.reads.standing(known)).result.user_id == 1
    # As after a failover to a server that had not got the user, and has given its number to another one.
    await db.execute("UPDATE users SET user_id = 7 WHERE user_id = 1")
    await db.execute("INSERT INTO users (user_id, user_name) VALUES (1, 'another')")
    leaderboard.health.epoch = "another"
    assert (await leaderboard.service.writes.set_score(known, 5)).user_id == 7


async def exchange_numbers(app: App, db: asyncpg.Connection) -> None:
    """Lets the process remember two users, and exchanges their numbers by SQL."""
    await add_users(db, 2)
    for external_id in ids(2):
        await app.service.reads.standing(external_id)
    await db.execute("TRUNCATE users RESTART IDENTITY CASCADE")
    await db.execute("INSERT INTO users (user_name, external_id) VALUES ('b', 'id 2'), ('a', 'id 1')")
    await app.sync.synchronizer.catch_up_now()


async def test_a_read_is_about_the_user_with_the_id_if_sql_gives_numbers_again(
    leaderboard: App, db: asyncpg.Connection
) -> None:
    await exchange_numbers(leaderboard, db)
    for n, external_id in enumerate(ids(2), 1):
        assert (await leaderboard.service.reads.standing(external_id)).result.user_id == 3 - n
        assert (await leaderboard.service.reads.context(external_id)).result.user.user_id == 3 - n


async def test_the_user_with_the_id_is_erased_if_sql_gives_numbers_again(
    leaderboard: App, db: asyncpg.Connection
) -> None:
    await exchange_numbers(leaderboard, db)
    await leaderboard.service.users.erase(ids(2)[0])
    assert await db.fetchval("SELECT external_id FROM users") == "id 2"


# Users that another transaction creates meanwhile


async def on_default(app: App, name: str) -> ScoreSet:
    return await app.service.writes.set_score(X, 5, None, name)


async def on_a_board(app: App, name: str) -> EntrySet:
    return await app.service.entries.add("sums", X, 5, None, name)


async def created(app: App, name: str) -> User:
    return await app.service.writes.create_user(name, None, 5, external_id=X)


async def put(app: App, name: str) -> User:
    return (await app.service.users.put(X, name, None))[0]


WRITES: tuple[Write, ...] = (on_default, on_a_board, created, put)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("taken", ["id", "name", "both"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_write_waits_for_the_transaction_that_creates_its_user(
    settings: Settings, db: asyncpg.Connection, session: asyncpg.Connection, write: Write, taken: str, end: str
) -> None:
    external_id, name = {"id": (X, "another"), "name": ("y", "ada"), "both": (X, "ada")}[taken]
    async with running(settings, PATIENT) as app:
        await app.service.boards.configure("sums", parse_rules({"keeps": "sum"}))
        await session.execute("BEGIN")
        other = await session.fetchval(
            "INSERT INTO users (user_name, external_id) VALUES ($1, $2) RETURNING user_id", name, external_id
        )
        writing = asyncio.ensure_future(write(app, "ada"))
        await until(lambda: waiting_sessions(db), "the write waits")
        await session.execute(end)
        expected: type[Exception] | None = None
        if end == "COMMIT" and (taken == "name" or write is created):
            expected = UsernameTaken if taken == "name" else ExternalIdTaken
        if expected is not None:
            with pytest.raises(expected):
                await writing
            return
        done = await writing
        assert done.external_id == X
        assert (done.user_id == other) == (end == "COMMIT")
        assert done.total_score == (0 if write is put else 5)
        assert done.user_name == ("another" if end == "COMMIT" and taken == "id" and write is not put else "ada")
        assert await db.fetchval("SELECT count(*) FROM users") == 1


async def test_users_of_one_batch_with_one_id_or_name(leaderboard: App, db: asyncpg.Connection) -> None:
    await leaderboard.service.boards.configure("sums", parse_rules({"keeps": "sum"}))
    writes, entries = leaderboard.service.writes, leaderboard.service.entries
    results = await asyncio.gather(
        *(writes.create_user("ada", None, 0, external_id=ExternalId(each)) for each in ("a", "b")),
        *(writes.create_user(name, None, 0, external_id=ExternalId("c")) for name in ("bob", "eve")),
        writes.create_user("ada", None, 0),
        *(writes.set_score(ExternalId("d"), score, None, f"d {score}") for score in (1, 2)),
        *(entries.add("sums", ExternalId(each), 1, None, "joe") for each in ("e", "f")),
        *(entries.add("sums", ExternalId("g"), 1, None, name) for name in ("g 1", "g 2")),
        return_exceptions=True,
    )
    kinds = [type(result) for result in results]
    assert sorted(map(str, kinds[:2])) == sorted(map(str, (User, UsernameTaken)))
    assert sorted(map(str, kinds[2:4])) == sorted(map(str, (User, ExternalIdTaken)))
    assert kinds[4] is UsernameTaken
    assert kinds[5:7] == [ScoreSet, ScoreSet]
    assert sorted(map(str, kinds[7:9])) == sorted(map(str, (EntrySet, UsernameTaken)))
    sums = [result.total_score for result in results[9:] if isinstance(result, EntrySet)]
    assert sorted(sums) == [1, 2]
    assert await db.fetchval("SELECT count(*) FROM users") == 5
