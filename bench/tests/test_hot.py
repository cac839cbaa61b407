"""`make bench` runs with small numbers, reports, and finds wrong answers."""

import random
import shutil
from dataclasses import replace

import msgspec
import pytest

from bench.hot import contestants, null, report
from bench.hot import measure as measure_module
from bench.hot.contestants import Contestant
from bench.hot.measure import Plan, check, measure
from bench.hot.result import NULL, OURS, PLAIN, TWO, Cell
from bench.hot.watch import Watcher, WrongAnswer
from bench.hot.work import CONTEXT_ALL, CREATE, HALF_READS, SET_SCORE, TOP_10
from bench.progress import Progress
from bench.tables import Target
from bench.wrk import Load
from leaderboard.config import Settings

pytestmark = pytest.mark.anyio
with_wrk = pytest.mark.skipif(
    shutil.which("wrk") is None, reason="wrk is not installed, with which `make bench` asks"
)

SMALL = Plan(
    users=1000,
    rounds=1,
    seconds=0.1,
    works=(TOP_10, CONTEXT_ALL, HALF_READS, SET_SCORE, CREATE),
    only_many=True,
)


@with_wrk
async def test_all_contestants_are_measured_and_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "_WARM_UP_S", 0.05)
    result = await measure(settings, SMALL, Progress())
    assert len(result.cells) == len(SMALL.works) * 4
    for cell in result.cells:
        assert [shot.looks > 0 for shot in cell.shots] == [True]
    assert max(cell.rate for cell in result.cells) > 0
    used = [shot.used for cell in result.cells for shot in cell.shots]
    assert max(one.api for one in used) > 0
    assert max(one.postgres for one in used) > 0
    assert max(one.load for one in used) > 0
    text = report.text(result)
    assert "| set score | 64 | plain |" in text
    assert "The stores alone" in text
    assert all(f"{target.name} |" in text for target in report.targets(result))


@with_wrk
@pytest.mark.parametrize(
    ("lie", "found"),
    [("one user is missing", "the ranks"), ("it is no answer", "Expected `object`"), ("it is refused", ": 503")],
)
async def test_a_wrong_answer_ends_the_benchmark(
    lie: str, found: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(contestant: Contestant) -> null.Answers:
        true = truly(contestant)
        path = "/leaderboard/top/10"
        told = true.gets[path]
        if lie == "one user is missing":
            users = msgspec.json.decode(told.body)["users"]
            told = msgspec.structs.replace(told, body=msgspec.json.encode({"users": users[1:]}).decode())
        elif lie == "it is no answer":
            told = msgspec.structs.replace(told, body="[]")
        else:
            told = msgspec.structs.replace(told, status=503)
        return msgspec.structs.replace(true, gets={**true.gets, path: told})

    truly = contestants.record
    monkeypatch.setattr(contestants, "record", record)
    with pytest.raises(WrongAnswer, match=found):
        await measure(
            settings, replace(SMALL, contestants=(NULL, OURS), works=(TOP_10,), limits=False), Progress()
        )


def test_a_score_that_the_next_read_does_not_show_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contestants.contestants({NULL: settings, OURS: settings}) as (constant, ours):
        with Watcher(ours.api.url, SET_SCORE, [], ours.own, "w") as watcher:
            pass
        assert watcher.looks == 1
        # Null's answer to a write has another score than its context.
        url = constant.api.url
        confirmed = constant.api.client.post("/users/1/score").json()["score"]
        monkeypatch.setattr(random, "randint", lambda *_: confirmed)
        with pytest.raises(WrongAnswer, match="the next read shows"), Watcher(url, SET_SCORE, [], ours.own, "w"):
            pass


@pytest.mark.parametrize("fault", ["refused", "broken", "late"])
def test_what_wrk_counts_as_an_error_is_one(fault: str) -> None:
    fine = Load(requests=10, seconds=1, p50_ms=1, p99_ms=1, p999_ms=1, refused=0, broken=0, late=0)
    cell = Cell(OURS, "top 10", 64, [])
    check(cell, fine)
    check(cell, msgspec.structs.replace(fine, requests=0))
    with pytest.raises(WrongAnswer):
        check(cell, msgspec.structs.replace(fine, **{fault: 1}))


@pytest.mark.parametrize(
    ("ratio", "limit", "at_least", "missed_by"),
    [(0.5, 1.0, True, 0.5), (1.5, 1.0, False, 0.5), (1.0, 1.0, True, 0.0), (2.0, 1.0, True, -1.0)],
)
def test_a_target_says_by_how_much_it_is_missed(
    ratio: float, limit: float, at_least: bool, missed_by: float
) -> None:
    target = Target("", ratio, limit, at_least)
    assert target.missed_by == pytest.approx(missed_by)
    assert target.met == (missed_by <= 0)


def test_two_processes_have_a_board_of_their_own(settings: Settings) -> None:
    found = contestants.boards(settings, [NULL, PLAIN, OURS, TWO])
    assert found[OURS] == settings
    assert found[TWO].workers == 2
    assert len({board.db_name for board in found.values()}) == 3
    assert len({board.redis_url.get_secret_value() for board in found.values()}) == 3
