"""With USERNAMES=caseless, Bob, bob and fullwidth Ｂｏｂ are one name, wherever a name is given."""
# ruff: noqa: RUF001, RUF002 - the tests use letters that look like others

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from leaderboard import app
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.database.importer import NamesTaken
from leaderboard.importing import ImportReport, OnConflict
from leaderboard.usernames import name_key
from tests.http.boards import new_board
from tests.http.contract import Answer, Caller
from tests.http.ledger import refused
from tests.importing.boards import FAIL, SKIP, UPDATE, counts, rejected, run, write_csv
from tests.system import connect, sql, until


@pytest.fixture(scope="module")
def caseless(module_settings: Settings) -> Settings:
    settings = module_settings.model_copy(update={"usernames": "caseless"})
    asyncio.run(app.database_from(settings).migrate(lambda _line: None))
    return settings


@pytest.fixture(scope="module")
def caller(caseless: Settings, start: Callable[..., Caller]) -> Caller:
    return start(usernames=caseless.usernames)


@pytest.fixture
def other(caseless: Settings, start: Callable[..., Caller]) -> Caller:
    """Another process on the same database."""
    return start(usernames=caseless.usernames)


def find(caller: Caller, name: str) -> Answer:
    return caller.get(f"/users?username={quote(name)}")


def test_a_name_is_taken_in_every_form_and_shown_as_it_was_given(caller: Caller) -> None:
    user = caller.create("Bob Smith", 7)
    for name in ("bob smith", "BOB  SMITH", "Ｂｏｂ　Ｓｍｉｔｈ", "Bob Smith"):
        taken = caller.post("/users", {"username": name})
        refused(taken, "username_taken")
        # The answer says nothing about the other user.
        assert taken.json()["detail"] == f"the username {' '.join(name.split(' '))!r} is taken"
        assert find(caller, name).json()["userId"] == user
        assert find(caller, name).json()["username"] == "Bob Smith"
    assert caller.get(f"/users/{user}").json()["username"] == "Bob Smith"
    refused(find(caller, "Bob Smit"), "user_not_found")


def test_a_rename_follows_the_names_of_others_only(caller: Caller) -> None:
    first, second = caller.create("Renate", 1), caller.create("Rita", 2)
    refused(caller.call("PATCH", f"/users/{second}", {"username": "RENATE"}), "username_taken")
    assert caller.call("PATCH", f"/users/{first}", {"username": "RENATE"}).json()["username"] == "RENATE"
    assert caller.call("PATCH", f"/users/{first}", {"hidden": True}).status == 200
    refused(caller.call("PATCH", f"/users/{second}", {"username": "renate"}), "username_taken")
    assert caller.call("PATCH", f"/users/{first}", {"username": "Renata"}).status == 200
    assert caller.call("PATCH", f"/users/{second}", {"username": "renate"}).status == 200
    assert find(caller, "RENATE").json()["userId"] == second


def test_users_of_external_ids_follow(caller: Caller) -> None:
    user = caller.create("Paula", 1)
    refused(caller.call("PUT", "/users/@p1", {"username": "PAULA"}), "username_taken")
    assert caller.call("PUT", "/users/@p2", {"username": "Peter"}).status == 201
    assert caller.call("PUT", "/users/@p2", {"username": "PETER"}).json()["username"] == "PETER"
    refused(caller.call("PUT", "/users/@p2", {"username": "paula"}), "username_taken")
    refused(caller.post("/users/@p3/score", {"score": 5, "username": "peter"}), "username_taken")
    board = new_board(caller)
    refused(caller.post(f"{board}/users/@p3/score", {"score": 5, "username": "pAula"}), "username_taken")
    items = [
        {"externalId": f"q{n}", "score": n, "username": name} for n, name in enumerate(["Quinn", "QUINN", "Q"])
    ]
    results = caller.post(f"{board}/scores", {"scores": items}).json()["results"]
    assert sorted(("error" in result) for result in results) == [False, False, True]
    assert caller.get(f"/users/{user}").json()["username"] == "Paula"


def test_a_prefix_follows_and_pages_go_on_after_any_form(caller: Caller) -> None:
    names = ["px", "PX A", "px Ab", "Px B", "PX ß", "px É", "ＰＸ Z"]
    for name in names:
        caller.create(name)
    by_key = ["px", "PX A", "px Ab", "Px B", "ＰＸ Z", "PX ß", "px É"]

    def listed(query: str) -> list[str]:
        return [user["username"] for user in caller.get(f"/users?{query}").json()["users"]]

    for prefix in ("px", "PX", "Ｐx"):
        assert listed(f"prefix={quote(prefix)}") == by_key
    assert listed("prefix=px%20") == by_key[1:]
    assert listed("prefix=px%20a") == ["PX A", "px Ab"]
    found, after = [], ""
    while after is not None:
        page = caller.get(f"/users?prefix=pX&limit=2{after and f'&after={quote(after)}'}").json()
        found += [user["username"] for user in page["users"]]
        after = page["next"]
    assert found == by_key
    assert listed("prefix=px&after=PX%20b") == by_key[4:]


def test_two_processes_create_one_name_at_once(caller: Caller, other: Caller) -> None:
    async def both(n: int) -> list[int]:
        upper = asyncio.to_thread(caller.post, "/users", {"username": f"RACE {n}"})
        lower = asyncio.to_thread(other.post, "/users", {"username": f"race {n}"})
        return [answer.status for answer in await asyncio.gather(upper, lower)]

    for n in range(20):
        assert sorted(asyncio.run(both(n))) == [201, 409]
        # Whichever process is asked, it is the same user.
        assert find(caller, f"Race {n}").json() == find(other, f"rAce {n}").json()


# Imports


def names(settings: Settings, prefix: str) -> dict[str, int]:
    rows = sql(settings, "SELECT user_name, total_score FROM users WHERE name_key LIKE $1", f"{prefix}%")
    return {row["user_name"]: row["total_score"] for row in rows}


def test_an_import_finds_users_in_any_form(caller: Caller, caseless: Settings, tmp_path: Path) -> None:
    caller.create("Im Bob", 1)
    path = write_csv(tmp_path / "in.csv", [("IM BOB", 5, ""), ("Im Ann", 6, ""), ("im ann", 7, "")])
    report = asyncio.run(run(caseless, path, SKIP))
    assert counts(report) == (3, 1, 0, 1, 1)
    assert rejected(report)[0][:3] == ["4", "username: duplicate of line 3", "im ann"]
    assert names(caseless, "im ") == {"Im Bob": 1, "Im Ann": 6}
    assert counts(asyncio.run(run(caseless, path, UPDATE))) == (3, 0, 2, 0, 1)
    assert names(caseless, "im ") == {"Im Bob": 5, "Im Ann": 6}
    with pytest.raises(NamesTaken) as error:
        asyncio.run(run(caseless, path, FAIL))
    assert list(error.value.lines) == [2, 3]
    assert find(caller, "IM ANN").json()["score"] == 6


def test_an_import_to_a_board_finds_users_in_any_form(caller: Caller, caseless: Settings, tmp_path: Path) -> None:
    user = caller.create("Ib Bob", 1)
    path = new_board(caller)
    assert caller.post(f"{path}/users/{user}/score", {"score": 3}).status == 200
    file = write_csv(tmp_path / "in.csv", [("IB BOB", 5, ""), ("IB ANN", 6, "")])

    async def board() -> Board:
        process = app.App(caseless)
        async with process.running():
            return await process.service.boards.get(path.rpartition("/")[2])

    assert counts(asyncio.run(run(caseless, file, UPDATE, board=asyncio.run(board())))) == (2, 1, 1, 0, 0)
    found = caller.get(f"{path}/leaderboard/top/5").json()["users"]
    assert [(each["username"], each["score"]) for each in found] == [("IB ANN", 6), ("Ib Bob", 5)]


def test_an_import_by_external_ids_compares_names_as_the_service_does(
    caller: Caller, caseless: Settings, tmp_path: Path
) -> None:
    assert caller.call("PUT", "/users/@ie1", {"username": "Ie Bob"}).status == 201
    caller.create("Ie Ann", 1)
    rows = [
        ("Ie whatever", 5, "ie1"),  # Ie Bob
        ("IE BOB", 6, "ie2"),  # the name of Ie Bob
        ("IE ANN", 7, "ie3"),
        ("ie ann", 8, ""),  # Ie Ann
        ("Ie New", 9, "ie4"),
        ("IE NEW", 10, "ie5"),
    ]
    path = write_csv(tmp_path / "in.csv", rows, "username,score,external_id")
    report = asyncio.run(run(caseless, path, UPDATE))
    assert counts(report) == (6, 1, 2, 0, 3)
    assert names(caseless, "ie ") == {"Ie Bob": 5, "Ie Ann": 8, "Ie New": 9}
    assert {
        row["user_name"]: row["name_key"] for row in sql(caseless, "SELECT * FROM users WHERE external_id = 'ie4'")
    } == {"Ie New": "ie new"}


@pytest.mark.parametrize("on_conflict", [SKIP, UPDATE])
def test_a_name_that_is_created_while_an_import_runs(
    caseless: Settings, tmp_path: Path, on_conflict: OnConflict
) -> None:
    name = f"Iw {on_conflict}"

    async def meet() -> ImportReport:
        db = await connect(caseless)
        try:
            async with db.transaction():
                await db.execute("INSERT INTO users (user_name, name_key) VALUES ($1, $2)", name, name_key(name))
                importing = asyncio.create_task(run(caseless, path, on_conflict))
                waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                await until(lambda: db.fetchval(waiting), "the import waits for the name")
            return await importing
        finally:
            await db.close()

    path = write_csv(tmp_path / "in.csv", [(name.upper(), 7, ""), ("Iw other", 7, "")])
    updates = on_conflict is UPDATE
    assert counts(asyncio.run(meet())) == (2, 1, int(updates), int(not updates), 0)
    assert names(caseless, name_key(name)) == {name: 7 if updates else 0}
    sql(caseless, "DELETE FROM users WHERE name_key LIKE 'iw %'")


def test_the_document_says_it(caller: Caller) -> None:
    assert "caseless" in json.dumps(caller.get("/openapi.json").json()["components"]["schemas"]["CreateUser"])
