"""Seasons end one after another while two processes write and read.

Some are ended by a call, some because their end has passed. Each acknowledged score is in one season. A season
does not change after its end was acknowledged. No answer shows an older season as current than an earlier answer.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count, pairwise
from operator import itemgetter

import asyncpg
import pytest

from leaderboard.app import App
from leaderboard.config import Settings
from leaderboard.errors import NotOnBoard
from leaderboard.queries import SeasonRef
from tests.boards.boards import add_users, make_board, season_ids, shown, stored, two_started
from tests.system import PATIENCE_S

pytestmark = pytest.mark.anyio

WRITERS = 8
USERS_PER_WRITER = 3
WEEKLY = SeasonRef("weekly")


@dataclass
class History:
    """What the processes answered."""

    season_of: dict[int, int] = field(default_factory=dict)
    """The season that each acknowledged value is in. No value is written twice."""
    last: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """The last acknowledged value of each user in each season."""
    reads: list[tuple[int, int, frozenset[int]]] = field(default_factory=list)
    """When a read of the current season began and ended, and the values it showed."""
    writes: list[tuple[int, int, int]] = field(default_factory=list)
    """When a write began and ended, and the season it was in."""
    archives: dict[int, Mapping[int, int]] = field(default_factory=dict)
    """What each season showed when its end was acknowledged."""
    archive_reads: int = 0
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    """Values, and a clock that never shows one time twice."""
    rng: random.Random = field(default_factory=lambda: random.Random("ends"))
    ended: bool = False


async def write(app: App, users: range, history: History) -> None:
    while not history.ended:
        value, user_id = next(history.numbers), history.rng.choice(users)
        done = await app.service.entries.set_score("weekly", user_id, value)
        history.season_of[value] = done.season
        history.last[done.season][user_id] = value
        history.writes.append((value, next(history.numbers), done.season))


async def read(app: App, users: range, history: History) -> None:
    """Reads the current season in several ways, and ended ones."""
    while not history.ended:
        if history.archives and history.rng.random() < 0.3:
            await read_archive(app, history.rng.choice(list(history.archives)), history)
            continue
        began = next(history.numbers)
        match history.rng.choice(("page", "top", "standing")):
            case "page":
                values = frozenset((await shown(app, "weekly")).values())
            case "top":
                values = frozenset((await top(app, WEEKLY)).values())
            case _:
                try:
                    standing = await app.service.reads.standing(history.rng.choice(users), WEEKLY)
                except NotOnBoard:
                    continue
                values = frozenset({standing.result.total_score})
        history.reads.append((began, next(history.numbers), values))


async def read_archive(app: App, number: int, history: History) -> None:
    if history.rng.random() < 0.5:
        found: Mapping[int, int] = await shown(app, "weekly", number)
    else:
        found = await top(app, SeasonRef("weekly", number))
    assert found == history.archives[number], f"season {number} changed after its end was acknowledged"
    history.archive_reads += 1


async def top(app: App, season: SeasonRef) -> dict[int, int]:
    users = (await app.service.reads.top(100, season)).result.decode().users
    return {user.user_id: user.total_score for user in users}


async def end(app: App, ends: int, history: History, db: asyncpg.Connection | None) -> None:
    """Ends one season after another, and reads each when its end is acknowledged.

    With `db`, the end of every third season passes before that. Then writers and the job end it, too.
    """
    try:
        for number in range(1, ends + 1):
            if db is not None and number % 3 == 0:
                await db.execute(
                    "UPDATE boards AS b SET season_ends_at = clock_timestamp() FROM seasons AS s"
                    " WHERE s.season_id = b.season_id AND b.name = 'weekly' AND s.number = $1",
                    number,
                )
                await app.service.boards.end_due()
            ended = await app.service.boards.end_season("weekly", number)
            assert ended.ended_at is not None
            archive = await shown(app, "weekly", number)
            assert history.archives.setdefault(number, archive) == archive
            await asyncio.sleep(0.005)
    finally:
        history.ended = True


@pytest.mark.parametrize("ends", [60, pytest.param(1000, marks=pytest.mark.slow)])
async def test_seasons_that_two_processes_end_under_load(
    settings: Settings, db: asyncpg.Connection, ends: int
) -> None:
    await add_users(db, WRITERS * USERS_PER_WRITER)
    # Some writes take longer, so that a season ends while one is under way.
    await db.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.01 * random()); RETURN NULL; END';"
        "CREATE TRIGGER wait AFTER INSERT OR UPDATE ON scores FOR EACH STATEMENT EXECUTE FUNCTION wait()"
    )
    history = History()
    async with two_started(settings) as apps:
        await make_board(apps[0], "weekly", season={"every": "day", "timezone": "UTC"})
        work = [end(apps[0], ends, history, db), end(apps[1], ends, history, None)]
        for n in range(WRITERS):
            users = range(1 + n * USERS_PER_WRITER, 1 + (n + 1) * USERS_PER_WRITER)
            work += [write(apps[n % 2], users, history), read(apps[n % 2], users, history)]
        await asyncio.wait_for(asyncio.gather(*work), PATIENCE_S * max(1, ends / 100))
        ids = await season_ids(db, "weekly")
        final = {number: await stored(db, season_id) for number, season_id in ids.items()}
        for app in apps:
            for number in history.archives:
                await read_archive(app, number, history)

    assert sorted(ids) == list(range(1, ends + 2)), "each season was ended once"
    assert await db.fetchval("SELECT count(*) FROM seasons WHERE board_id > 1") == ends + 1
    times = await db.fetch("SELECT started_at, ended_at FROM seasons WHERE board_id > 1 ORDER BY number")
    assert all(before["ended_at"] == after["started_at"] for before, after in pairwise(times))
    for number, entries in final.items():
        assert entries == history.last[number], "a write is not in the season that was acknowledged"
    for number, archive in history.archives.items():
        assert archive == final[number], f"season {number} changed after its end was acknowledged"
    assert sum(map(bool, final.values())) > ends // 2
    assert history.archive_reads > 2 * ends
    check_order(history)


def check_order(history: History) -> None:
    """Checks that no answer shows an older season as current than an answer that came before it was asked for."""
    answers = list(history.writes)
    for began, ended, values in history.reads:
        if values:
            (season,) = {history.season_of[value] for value in values}
            answers.append((began, ended, season))
    moments = [(ended, season, True) for _, ended, season in answers]
    moments += [(began, season, False) for began, _, season in answers]
    newest = 0
    for _, season, answered in sorted(moments, key=itemgetter(0)):
        if answered:
            newest = max(newest, season)
        else:
            assert season >= newest, f"season {season} was current after {newest}"
