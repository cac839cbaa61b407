"""`make bench-boards` creates the boards that it says, runs on small ones, reports, and finds wrong answers."""

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench import wrk
from bench.boards import many as many_module
from bench.boards import report
from bench.boards.__main__ import parser, plan_of
from bench.boards.fill import connected, filled_with_users, prune
from bench.boards.large import measure_large
from bench.boards.many import loads_nothing, measure_many
from bench.boards.places import lines, places, user_ids
from bench.boards.plan import DEPTH, IDLE, MEMORY, QUICK, SPREAD, WARM, BadPlan, Plan
from bench.boards.result import DEFAULT, Depth, Ends, Idle, Large, Many, Memory, Result
from bench.growth.board import WrongAnswer
from bench.hot.result import Cell, Shot
from bench.hot.work import MANY, SET_SCORE, TOP_10, Work
from bench.latency import Latency
from bench.progress import Progress
from bench.service import running
from bench.usage import Used
from bench.wrk import Load
from leaderboard.config import Settings
from tests.system import ApiProcess, connect, redis, until

pytestmark = pytest.mark.anyio
with_wrk = pytest.mark.skipif(
    shutil.which("wrk") is None, reason="wrk is not installed, with which `make bench-boards` asks"
)

SMALL = Plan(
    users=2000,
    boards=(1, 3),
    entries=20,
    warm=3,
    in_use=5,
    large=3000,
    small=1500,
    rounds=1,
    seconds=0.1,
    idle_s=0.1,
)

BOARD_CALLS = {
    ("/boards/{board}/users/{id}/score", "200"),
    ("/boards/{board}/leaderboard/user/{id}/context", "200"),
}
DEFAULT_CALLS = {"/users/{id}/score", "/leaderboard/user/{id}/context"}

COUNTS_ONE_TOO_MANY = """
CREATE FUNCTION one_too_many() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.counts := ARRAY(
        SELECT c + (n > 1)::integer FROM unnest(NEW.counts) WITH ORDINALITY AS u (c, n) ORDER BY n
    );
    RETURN NEW;
END $$;
CREATE TRIGGER one_too_many BEFORE INSERT ON rank_index FOR EACH ROW EXECUTE FUNCTION one_too_many();
"""


# Which users are on which board, and how often it is asked about


@pytest.mark.parametrize(("entries", "users"), [(10, 10), (10, 95), (20, 2000), (1000, 1_000_000)])
def test_each_entry_of_a_board_is_another_user(entries: int, users: int) -> None:
    for board in (1, 2, users, users + 1):
        found = user_ids(board, entries, users)
        assert len(set(found)) == entries
        assert min(found) >= 1
        assert max(found) <= users


def test_the_second_board_is_asked_half_as_often_and_the_third_a_third() -> None:
    found = Counter(board for board, _ in places(3, 10, 100, zipf=True, seed=1, count=11_000))
    assert [round(found[board] / 1000) for board in (1, 2, 3)] == [6, 3, 2]

    evenly = Counter(board for board, _ in places(3, 10, 100, zipf=False, seed=1, count=30_000))
    assert [round(evenly[board] / 1000) for board in (1, 2, 3)] == [10, 10, 10]


def test_places_are_about_users_of_their_board() -> None:
    found = places(5, 10, 100, zipf=True, seed=1, count=200)
    assert all(user in user_ids(board, 10, 100) for board, user in found)
    assert len({user for board, user in found if board == 1}) == 10
    assert lines([(3, 7), (1, 9)]) == "/boards/board-3 7\n/boards/board-1 9\n"


# What is created


async def test_the_boards_have_the_users_that_requests_are_about(settings: Settings) -> None:
    async with filled_with_users(settings, 100, Progress()) as (_, filler):
        await filler.add_boards(1, 3, 10, 100)
    connection = await connect(settings)
    try:
        rows = await connection.fetch(
            "SELECT name, array_agg(user_id) AS users FROM boards JOIN scores USING (season_id) GROUP BY name"
        )
    finally:
        await connection.close()
    assert {row["name"]: sorted(row["users"]) for row in rows} == {
        f"board-{number}": sorted(user_ids(number, 10, 100)) for number in (1, 2, 3)
    }


async def test_many_boards_are_a_barrier_each_and_later_entries_are_logged(settings: Settings) -> None:
    async with filled_with_users(settings, 100, Progress()) as (_, filler):
        await filler.add_boards(1, 2, 10, 100)
        seasons = [await filler.value("season", f"board-{number}") for number in (1, 2)]
    connection = await connect(settings)
    try:
        logged = "SELECT season_id, user_id FROM changes WHERE season_id > 1 ORDER BY season_id"
        assert [tuple(row) for row in await connection.fetch(logged)] == [(season, None) for season in seasons]
        spare = await connection.fetchval(
            "SELECT user_id FROM users WHERE user_id NOT IN (SELECT user_id FROM scores)"
        )
        enters = "INSERT INTO scores (user_id, season_id, sort_key) VALUES ($1, $2, 1)"
        # As a session that restores a dump: only triggers that are ENABLE ALWAYS fire.
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(enters, spare, seasons[1])
        assert [tuple(row) for row in await connection.fetch(logged)][-1] == (seasons[1], spare)
    finally:
        await connection.close()
    await prune(settings, Progress())
    async with connected(settings, Progress()) as filler:
        assert await filler.value("pruned")


# What is measured


@with_wrk
async def test_the_load_is_about_the_places_in_its_file(settings: Settings, tmp_path: Path) -> None:
    async with filled_with_users(settings, 100, Progress()) as (_, filler):
        await filler.add_boards(1, 2, 10, 100)
    file = tmp_path / "places"
    file.write_text(lines(places(2, 10, 100, zipf=True, seed=1, count=20)))
    with running(ApiProcess(settings)) as api:

        async def answered() -> set[tuple[str, str]]:
            load = await wrk.run(api.url, 2, 0.5, writes=0.5, places=file, users=100, seed=1)
            assert not load.refused, "all users are on their boards"
            found = text_string_to_metric_families(api.client.get("/metrics").text)
            requests = next(family for family in found if family.name == "leaderboard_requests")
            return {(sample.labels["route"], sample.labels["status"]) for sample in requests.samples}

        async def both() -> bool:
            return await answered() >= BOARD_CALLS

        await until(both, "entries were written and read")
        assert not {route for route, _ in await answered() if route in DEFAULT_CALLS}


@with_wrk
async def test_many_boards_are_measured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_module, "_SETTLE_S", 0.1)
    monkeypatch.setattr(many_module, "_WARM_UP_S", 0.1)
    monkeypatch.setattr(many_module, "_PLACES", 100)
    many = await measure_many(settings, SMALL, Progress())
    assert [cell.contestant for cell in many.cells[:4]] == [
        DEFAULT,
        "1 board",
        "3 boards by Zipf",
        "one of 3 warm boards",
    ]
    assert len(many.cells) == 3 * 4
    for cell in many.cells:
        assert [shot.looks > 0 for shot in cell.shots] == [True]
    assert max(cell.rate for cell in many.cells) > 0
    assert many.idle is not None
    assert many.idle.boards == 5
    assert many.memory is not None
    assert many.memory.api_bytes > 10_000_000
    assert many.memory.valkey_bytes > 0


async def test_nothing_is_loaded_when_no_user_is_added_to_the_cache(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_module, "_SETTLE_S", 0)
    assert await loads_nothing(settings)

    async def load() -> None:
        with redis(settings) as client:
            client.zadd("loading", {"user": 1})
            client.delete("loading")

    loading = asyncio.create_task(load())
    assert not await loads_nothing(settings)
    await loading


async def test_large_boards_are_measured(settings: Settings) -> None:
    large = await measure_large(settings, SMALL, Progress())
    assert large.ends is not None
    assert len(large.ends.large_s) == len(large.ends.few_s) > 1
    assert large.depth is not None
    assert large.depth.large.times > 1
    connection = await connect(settings)
    try:
        ended = await connection.fetchval("SELECT count(*) FROM seasons WHERE ended_at IS NOT NULL OR number > 1")
        assert ended == 0, "each end was taken back, or the next would end an empty season"
    finally:
        await connection.close()


async def test_a_wrong_rank_on_a_large_board_ends_the_measuring(
    settings: Settings, db: asyncpg.Connection
) -> None:
    await db.execute(COUNTS_ONE_TOO_MANY)
    with pytest.raises(WrongAnswer, match="instead of rank"):
        await measure_large(settings, replace(SMALL, parts=(DEPTH,)), Progress())


# What is reported


def test_only_the_boards_are_created_that_the_parts_need() -> None:
    assert replace(SMALL, parts=(SPREAD,)).most_boards == 3
    assert replace(SMALL, parts=(WARM,), warm=2).most_boards == 2
    assert replace(SMALL, parts=(MEMORY,)).most_boards == 5
    assert replace(SMALL, parts=(IDLE, WARM), warm=4).most_boards == 4


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"small": 4000}, "the small board"),
        ({"small": 5}, "the small board"),
        ({"entries": 2001}, "10 to 2,000 entries"),
        ({"entries": 9}, "10 to 2,000 entries"),
        ({"boards": ()}, "one board or more"),
        ({"boards": (0, 5)}, "one board or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPlan, match=said):
        replace(SMALL, **sizes)


def test_options_change_the_plan() -> None:
    options = parser().parse_args(
        ["--only", "ends", "idle", "--large", "2000", "--small", "1000", "--boards", "7 3"]
    )
    plan = plan_of(options)
    assert (plan.parts, plan.large, plan.small, plan.boards) == (("ends", "idle"), 2000, 1000, [3, 7])
    assert plan.users == Plan().users
    assert plan_of(parser().parse_args(["--quick"])) == QUICK
    with pytest.raises(BadPlan):
        plan_of(parser().parse_args(["--large", "5"]))


def test_each_target_has_a_line_that_says_whether_it_is_met() -> None:
    rows = {row[0]: row[1:] for row in map(cells_of, report.summary(RESULT).splitlines())}
    assert rows["top 10, requests/s: one of 3 warm boards / `default`"] == [
        "0.50",
        "≥ 0.85",
        "**no**, missed by 41%",
    ]
    assert rows["set score, requests/s: one of 3 warm boards / `default`"] == ["0.90", "≥ 0.8", "yes"]
    assert rows["CPU without requests: 3 boards / one"] == ["1.50", "≤ 1.2", "**no**, missed by 25%"]
    assert rows["ending a season of 3 thousand entries"] == ["12.0 ms", "≤ 50 ms", "yes"]
    assert rows["ending a season of 10 entries"] == ["4.00 ms", "≤ 50 ms", "yes"]
    assert rows["ending a season of 3 thousand entries / of 10"] == ["3.00", "≤ 2", "**no**, missed by 50%"]
    assert rows["a context at half depth of 3 thousand entries / of 1,500"] == ["2.00", "≤ 3", "yes"]
    assert rows["memory of a process with 5 boards in use"] == ["80.0 MB", "≤ 200 MB", "yes"]
    assert rows["of these 3 boards, in the cache"] == ["2", "", ""]
    assert rows["of 5 boards in use, in the cache"] == ["4", "", ""]
    assert rows["memory of Valkey with 5 boards in use"] == ["4.00 MB", "", ""]
    assert rows["meanwhile, until the cache had caught up with a batch, mean"] == ["2.50 ms", "", ""]


def test_the_loads_have_a_line_for_each_spread_beside_default() -> None:
    text = report.text(RESULT)
    assert "| top 10 | `default` | 1,000 |  | 1.00 | 5.00 |" in text
    assert "| top 10 | one of 3 warm boards | 500 | 0.50 | 1.00 | 5.00 |" in text
    assert "Boards in the cache after the last load: one of 3 warm boards 3." in text
    assert "`default` / one of 3 warm boards: top 10 0.50, set score 0.90." in text


def test_parts_that_were_not_measured_are_not_reported(tmp_path: Path) -> None:
    nothing = replace(RESULT, many=None, large=None)
    assert report.targets(nothing) == []
    assert len(report.summary(nothing).splitlines()) == 2
    page = tmp_path / "page.md"
    page.write_text("<!-- boards measured -->\n<!-- end of boards -->\n")
    report.write_docs(page, RESULT)
    assert report.summary(RESULT) in page.read_text()
    report.write_json(tmp_path / "found.json", RESULT)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [target["name"] for target in found["targets"]] == [target.name for target in report.targets(RESULT)]


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")[1:-1]]


def _used(seconds: float) -> Used:
    return Used(api=seconds, postgres=seconds, valkey=seconds, load=0, others=0, elapsed=10)


def _cell(who: str, work: Work, rate: int) -> Cell:
    load = Load(requests=rate, seconds=1, p50_ms=1, p99_ms=5, p999_ms=9, refused=0, broken=0, late=0)
    return Cell(who, work.name, MANY, [Shot(load, _used(1), 1)])


RESULT = Result(
    plan=SMALL,
    postgres="18.6",
    took_s=61,
    others=0.1,
    many=Many(
        cells=[
            _cell(DEFAULT, TOP_10, 1000),
            _cell("one of 3 warm boards", TOP_10, 500),
            _cell(DEFAULT, SET_SCORE, 1000),
            _cell("one of 3 warm boards", SET_SCORE, 900),
        ],
        cached={DEFAULT: 3, "one of 3 warm boards": 3},
        idle=Idle(3, 2, one=_used(1), many=_used(1.5)),
        memory=Memory(boards=5, cached=4, api_bytes=80_000_000, valkey_bytes=4_000_000, rate=1000, visible_ms=2.5),
    ),
    large=Large(
        ends=Ends(large_s=[0.011, 0.012, 0.2], few_s=[0.003, 0.004, 0.005]),
        depth=Depth(large=Latency(2.0, 4.0, 9), small=Latency(1.0, 2.0, 9)),
    ),
)
