"""Compares the reads of every kind of board with window functions over its entries, during writes.

There is a board for each combination of rules, with a current and an ended season. The processes and SQL by hand
write entries, hide and erase users. The rank indexes have checkpoints a few entries apart, and are applied, built
and deleted in between.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise, product
from typing import Any, cast

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.board_rules import BoardRules, Number, key_rules, score_of, sort_key, unscale
from leaderboard.config import Settings
from leaderboard.database.rank_index import RankIndex
from leaderboard.database.users import Users
from leaderboard.errors import InvalidField, NotOnBoard, UserNotFound
from leaderboard.model import INT32_MAX, NEIGHBOURS, Context, Standing, Top, encode_json
from leaderboard.queries import ContextQuery, PageAroundQuery, PageQuery, SeasonRef, StandingQuery
from leaderboard.tuning import LogTuning, RankIndexTuning, Tuning
from tests.boards.boards import PATIENT, add_users, make_board, two_started
from tests.system import PATIENCE_S, THOROUGH, OneConnection, connect

pytestmark = pytest.mark.anyio

USERS = 60
ASKED = 12
"""Users in one comparison."""
COMPARISONS = 2 * THOROUGH
"""For each season, with the index and in all."""
TUNING = Tuning(PATIENT.connections, PATIENT.writes, PATIENT.sync, ranks=RankIndexTuning(width=5, apply_from=1))
DECIMALS = (0, 2, 6)

BOARDS = {
    "-".join(chosen): {
        **dict(zip(("better", "ties", "ranks", "keeps"), chosen, strict=True)),
        "decimals": DECIMALS[n % len(DECIMALS)],
    }
    for n, chosen in enumerate(
        product(("higher", "lower"), ("id", "first"), ("unique", "shared"), ("last", "best", "sum"))
    )
}
"""The rules of each board, by its name."""


@dataclass
class World:
    """The boards with their rules, and their seasons by id."""

    apps: tuple[App, App]
    rules: dict[str, BoardRules]
    seasons: dict[int, SeasonRef]
    rng: random.Random
    events: "Counter[object]"

    def board(self) -> tuple[str, BoardRules]:
        return self.rng.choice(list(self.rules.items()))

    def number(self, rules: BoardRules) -> Number:
        """Returns a score or an increment: often one that others have too, often at an end of the range."""
        low, high = (-(2**31), 2**31 - 1) if rules.ties == "first" else (-(2**53) + 1, 2**53 - 1)
        ends = (low, low + 1, high - 1, high)
        kinds = (self.rng.randint(-3, 3), self.rng.choice(ends), self.rng.randint(low, high))
        (scaled,) = self.rng.choices(kinds, (6, 2, 2))
        return unscale(rules, scaled)

    def key(self, rules: BoardRules) -> int:
        """Returns a sort key as SQL by hand may write it."""
        scaled = int(Decimal(self.number(rules)).scaleb(rules.decimals))
        return sort_key(rules, scaled, self.rng.choice((0, 1, 2, INT32_MAX, self.rng.randint(0, INT32_MAX))))


async def make_world(apps: tuple[App, App], db: asyncpg.Connection) -> World:
    """Makes all boards with an ended and a current season, each with entries of about half of the users."""
    await add_users(db, USERS)
    boards = [await make_board(apps[0], name, **rules) for name, rules in BOARDS.items()]
    world = World(apps, {board.name: board.rules for board in boards}, {}, random.Random("boards"), Counter())
    for number in (1, 2):
        for name, rules in world.rules.items():
            season_id = (await apps[0].service.boards.get(name)).season_id
            world.seasons[season_id] = SeasonRef(name, None if number == 2 else 1)
            entries = [
                (user_id, season_id, world.key(rules)) for user_id in range(1, USERS) if world.rng.random() < 0.5
            ]
            await db.copy_records_to_table("scores", records=entries, columns=("user_id", "season_id", "sort_key"))
            if number == 1:
                await apps[0].service.boards.end_season(name, 1)
    return world


async def write(app: App, world: World) -> None:
    """Writes as the service does, until it is cancelled."""
    while True:
        name, rules = world.board()
        user_id = world.rng.randint(1, USERS)
        with suppress(InvalidField, NotOnBoard, UserNotFound):
            if world.rng.random() < 0.1:
                await app.service.entries.remove(name, user_id)
            elif rules.keeps == "sum":
                await app.service.entries.add(name, user_id, world.number(rules))
            else:
                await app.service.entries.set_score(name, user_id, world.number(rules))


async def write_by_hand(connection: asyncpg.Connection, world: World) -> None:
    """Changes entries and users with SQL until it is cancelled. Rolls some changes back."""
    while True:
        transaction = connection.transaction()
        await transaction.start()
        try:
            for _ in range(world.rng.randint(1, 3)):
                await change_by_hand(connection, world)
        except (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError):
            await transaction.rollback()
            continue
        await (transaction.rollback() if world.rng.random() < 0.2 else transaction.commit())
        await asyncio.sleep(world.rng.choice((0, 0.01)))


async def change_by_hand(connection: asyncpg.Connection, world: World) -> None:
    season_id, season = world.rng.choice(list(world.seasons.items()))
    key, user_id = world.key(world.rules[season.board]), world.rng.randint(1, USERS)
    match world.rng.randint(0, 29):
        case 0:
            # Its entries are deleted too, and those of its successor are made by the other cases.
            await connection.execute("DELETE FROM users WHERE user_id = $1", user_id)
            await connection.execute(
                "INSERT INTO users (user_id, user_name, hidden) VALUES ($1, gen_random_uuid(), $2)",
                user_id,
                world.rng.random() < 0.2,
            )
        case 1 | 2:
            hidden = world.rng.random() < 0.2
            await connection.execute("UPDATE users SET hidden = $2 WHERE user_id = $1", user_id, hidden)
        case 3 | 4:
            await connection.execute(
                "DELETE FROM scores WHERE user_id = $1 AND season_id = $2", user_id, season_id
            )
        case 5 | 6 | 7:
            await connection.execute(
                "UPDATE scores SET sort_key = $3 WHERE season_id = $1 AND user_id % 7 = $2",
                season_id,
                user_id % 7,
                key,
            )
        case _:
            await connection.execute(
                "INSERT INTO scores (season_id, user_id, sort_key) SELECT $1, user_id, $3 FROM users"
                " WHERE user_id = $2 ON CONFLICT (user_id, season_id) DO UPDATE SET sort_key = $3",
                season_id,
                user_id,
                key,
            )


async def maintain(world: World) -> None:
    """Maintains and deletes the rank indexes, and prunes the log, until it is cancelled."""
    database, rng, events = world.apps[0].database, world.rng, world.events
    while True:
        season_id = rng.choice(list(world.seasons))
        ranks = database.rank_index
        if rng.random() < 0.05:
            await ranks.discard(season_id)
        elif rng.random() < 0.4:
            events[await ranks.repair(season_id)] += 1
        else:
            state = await ranks.maintain(season_id)
            events["log applied"] += state is not None and state.applied
        if rng.random() < 0.2:
            events["pruned"] += await database.change_log.prune(LogTuning(keep_s=0)) or 0
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Place:
    """An entry as the window functions see it; `position` counts from 1."""

    position: int
    standing: Standing
    key: int


async def places(reader: asyncpg.Connection, season_id: int, rules: BoardRules) -> list[Place]:
    """Returns all visible entries of a season, best first."""
    bits = key_rules(rules).tie_bits
    rows = await reader.fetch(
        "SELECT row_number() OVER (ORDER BY e.sort_key DESC, e.user_id ASC) AS position,"
        " rank() OVER (ORDER BY e.sort_key >> $2 DESC) AS shared, e.sort_key, u.user_id, u.user_name, u.image_url"
        " FROM scores AS e JOIN users AS u USING (user_id)"
        " WHERE e.season_id = $1 AND NOT u.hidden ORDER BY position",
        season_id,
        bits,
    )
    found = [
        Place(
            row["position"],
            Standing(
                row["shared"] if rules.ranks == "shared" else row["position"],
                row["user_id"],
                row["user_name"],
                row["image_url"],
                cast("int", unscale(rules, score_of(rules, row["sort_key"]))),
            ),
            row["sort_key"],
        )
        for row in rows
    ]
    for above, below in pairwise(place.standing for place in found):
        better, worse = Decimal(above.total_score), Decimal(below.total_score)
        assert better >= worse if rules.better == "higher" else better <= worse
        if rules.ties == "id" and better == worse:
            assert above.user_id < below.user_id
    return found


def context(found: Sequence[Place], index: int) -> Context:
    standings = [place.standing for place in found]
    above = standings[max(0, index - NEIGHBOURS) : index]
    return Context(standings[index], above, standings[index + 1 : index + 1 + NEIGHBOURS], len(standings))


def some_pages(world: World, season: SeasonRef, found: Sequence[Place]) -> list[PageQuery | PageAroundQuery]:
    rng, limit = world.rng, world.rng.choice((1, 7, 100))
    rules = world.rules[season.board]
    pages: list[PageQuery | PageAroundQuery] = [
        PageQuery(limit, season=season),
        PageQuery(limit, (world.key(rules), rng.choice((1, INT32_MAX))), season=season),
        PageAroundQuery(limit, rng.choice((1, len(found) + 1, INT32_MAX)), season=season),
    ]
    if found:
        place = rng.choice(found)
        pages.append(PageQuery(limit, (place.key, place.standing.user_id), season=season))
        pages.append(PageAroundQuery(limit, place.position, season=season))
    return pages


def page(query: PageQuery | PageAroundQuery, found: Sequence[Place]) -> tuple[list[Standing], object]:
    """Returns the standings and the end of a page."""
    if isinstance(query, PageAroundQuery):
        start = max(0, min(query.rank - query.limit // 2, len(found) - query.limit + 1) - 1)
    elif query.after is None:
        start = 0
    else:
        key, user_id = query.after
        start = sum((-place.key, place.standing.user_id) <= (-key, user_id) for place in found)
    shown = found[start : start + query.limit]
    more = shown and shown[-1].position < len(found)
    return [place.standing for place in shown], (shown[-1].key, shown[-1].standing.user_id) if more else None


async def compare(reader: asyncpg.Connection, world: World, season_id: int) -> None:
    """Compares the reads of a season with window functions in one snapshot."""
    season = world.seasons[season_id]
    one: Any = OneConnection(reader)
    ranks, users = RankIndex(one, TUNING.ranks), Users(one, TUNING)
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        found = await places(reader, season_id, world.rules[season.board])
        index_of = {place.standing.user_id: index for index, place in enumerate(found)}
        asked = [*world.rng.sample(range(1, USERS + 1), ASKED), INT32_MAX]
        queries = [world.rng.choice((StandingQuery, ContextQuery))(user_id, season=season) for user_id in asked]
        results = (await ranks.standings(queries, count=True)).value
        for query, result in zip(queries, results, strict=True):
            index = index_of.get(query.user_id)
            if index is None:
                assert result is None, query
            else:
                expected = context(found, index)
                assert result == (expected if isinstance(query, ContextQuery) else expected.user), query
        for page_query in some_pages(world, season, found):
            answer = (await ranks.page(page_query)).value
            assert answer.total == len(found)
            assert (answer.users, answer.end) == page(page_query, found), page_query
        n = world.rng.choice((1, 10, 100))
        top = (await users.top_of_season(n, season)).value
        assert top == [place.standing for place in found[:n]]
        index_used = await reader.fetchval(
            "SELECT CASE WHEN cardinality(keys) > 1 THEN 1 + pending END FROM rank_index_now($1, 50000)", season_id
        )
    world.events["compared", season_id] += 1
    world.events["by the index", season_id] += index_used is not None
    world.events["pending"] += (index_used or 1) - 1


async def compare_service(reader: asyncpg.Connection, world: World, season_id: int) -> None:
    """Compares the answers of both processes. Nothing must be written meanwhile."""
    season = world.seasons[season_id]
    found = await places(reader, season_id, world.rules[season.board])
    standings = [place.standing for place in found]
    for app in world.apps:
        reads = app.service.reads
        top = json.loads((await reads.top(100, season)).result.body, parse_float=Decimal)
        assert top == json.loads(encode_json(Top(standings[:100])), parse_float=Decimal)
        friends = world.rng.sample(range(1, USERS + 10), 20)
        shown = (await reads.friends(friends, season)).result.users
        assert shown == sorted(
            (standing for standing in standings if standing.user_id in friends),
            key=lambda standing: (standing.rank, standing.user_id),
        )
        for user_id in friends[:5]:
            try:
                answer = (await reads.context(user_id, season)).result
            except NotOnBoard:
                assert user_id not in {standing.user_id for standing in standings}
                continue
            index = [standing.user_id for standing in standings].index(user_id)
            assert answer == context(found, index)
            assert (await reads.standing(user_id, season)).result == standings[index]


@pytest.mark.parametrize("index", ["with a rank index", "without"])
async def test_every_read_of_every_kind_of_board_is_that_of_a_window_function_in_its_snapshot(
    settings: Settings, db: asyncpg.Connection, index: str
) -> None:
    hands = [await connect(settings) for _ in range(2)]
    indexed = index == "with a rank index"
    try:
        # As in the sessions of the service. Otherwise PostgreSQL may compile each statement again.
        await db.execute("SET jit = off")
        async with two_started(settings, TUNING) as apps:
            world = await make_world(apps, db)
            work = [write(app, world) for app in apps for _ in range(3)]
            work += [write_by_hand(hand, world) for hand in hands]
            if indexed:
                for season_id in world.seasons:
                    assert await apps[0].database.rank_index.build(season_id)
                work.append(maintain(world))
            changing = asyncio.gather(*work)
            try:
                deadline = time.monotonic() + PATIENCE_S * THOROUGH
                while seasons := to_compare(world, indexed=indexed):
                    assert time.monotonic() < deadline, world.events
                    for season_id in seasons:
                        await compare(db, world, season_id)
                    if changing.done():
                        await changing
            finally:
                changing.cancel()
                await asyncio.gather(changing, return_exceptions=True)
            for season_id in world.seasons:
                await compare_service(db, world, season_id)
    finally:
        for hand in hands:
            await hand.close()


def to_compare(world: World, *, indexed: bool) -> list[int]:
    """Returns the seasons that were not compared often enough; all, while an event is missing."""
    what = "by the index" if indexed else "compared"
    if indexed and not all(world.events[event] for event in ("log applied", "built", "pruned", "pending")):
        return list(world.seasons)
    return [season_id for season_id in world.seasons if world.events[what, season_id] < COMPARISONS]


@pytest.mark.parametrize("better", ["higher", "lower"])
async def test_of_two_users_with_the_same_score_the_one_who_reached_it_first_is_first(
    settings: Settings, db: asyncpg.Connection, better: str
) -> None:
    await add_users(db, 4)
    async with two_started(settings) as apps:
        await make_board(apps[0], "first", ties="first", better=better)

        async def reach(user_id: int, score: int) -> None:
            await apps[user_id % 2].service.entries.set_score("first", user_id, score)
            # From here on the season is an hour older.
            await db.execute("UPDATE seasons SET started_at = started_at - interval '1 hour' WHERE season_id > 1")

        async def order() -> list[int]:
            top = (await apps[0].service.reads.top(10, SeasonRef("first"))).result.decode()
            return [standing.user_id for standing in top.users]

        for user_id in (3, 2, 4, 1):
            await reach(user_id, 7)
        assert await order() == [3, 2, 4, 1]
        await reach(3, 7)
        assert await order() == [3, 2, 4, 1], "a score that is the same does not move"
        await reach(3, 6)
        await reach(3, 7)
        assert await order() == [2, 4, 1, 3], "a score that was left and reached again does"
