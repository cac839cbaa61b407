"""The registry over HTTP: boards, their rules and their seasons; `Caller` checks each answer with the document."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from leaderboard.model import INT32_MAX, SCORE_MAX
from tests.http.boards import named, new_board, new_user, refused_field
from tests.http.contract import Caller
from tests.http.ledger import refused
from tests.system import free_port

DEFAULTS = {
    "better": "higher",
    "keeps": "last",
    "ties": "id",
    "ranks": "unique",
    "decimals": 0,
    "lowest": None,
    "highest": None,
    "season": None,
    "keepSeasons": None,
    "title": None,
}
BAD_NAMES = ["A", "Weekly", "a%20b", "-a", ".a", "_a", "a" * 65, "%C3%A9", "a%00", "a%0A", "a%3F", "%FF", "a,b"]
MISSING = "/boards/missing"


def rules_of(board: dict[str, Any]) -> dict[str, Any]:
    return {name: board[name] for name in DEFAULTS}


# The names of boards


def calls(board: str) -> list[tuple[str, str, Any]]:
    """Every call about a board, with a good body."""
    return [
        ("GET", board, None),
        ("PUT", board, {}),
        ("DELETE", board, None),
        ("GET", f"{board}/seasons", None),
        ("POST", f"{board}/seasons", {"season": 1}),
        ("GET", f"{board}/leaderboard/top/3", None),
        ("GET", f"{board}/leaderboard/user/1/context", None),
        ("GET", f"{board}/leaderboard", None),
        ("GET", f"{board}/leaderboard?users=1", None),
        ("GET", f"{board}/leaderboard?around_rank=1", None),
        ("GET", f"{board}/users/1", None),
        ("DELETE", f"{board}/users/1", None),
        ("POST", f"{board}/users/1/score", {"score": 1}),
        ("POST", f"{board}/scores", {"scores": [{"userId": 1, "score": 1}]}),
    ]


def test_the_calls_of_this_file_are_all_that_are_documented(caller: Caller) -> None:
    def template(path: str) -> str:
        path = re.sub(r"(?<=top/)\d+", "{n}", path.partition("?")[0])
        return re.sub(r"(?<=/users/|./user/)\d+", "{id}", path)

    expected = {
        (method.upper(), path)
        for path, item in caller.contract.document["paths"].items()
        for method in item
        if path.startswith("/boards/")
    }
    assert {(method, template(path)) for method, path, _ in calls("/boards/{board}")} == expected


@pytest.mark.parametrize("call", calls(MISSING), ids=lambda call: f"{call[0]} {call[1]}")
def test_a_board_that_is_not_there(caller: Caller, call: tuple[str, str, Any]) -> None:
    if call[:2] != ("PUT", MISSING):
        refused(caller.call(*call), "board_not_found")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_board_can_have(caller: Caller, name: str) -> None:
    for call in calls(f"/boards/{name}"):
        answer = caller.call(*call)
        refused(answer, "invalid_parameter")
        assert answer.json()["detail"].startswith("board is ")
        assert "a-z" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_d", "a" * 64, "leaderboard", "users", "seasons", "previous"])
def test_a_name_that_a_board_can_have(caller: Caller, name: str) -> None:
    path = f"/boards/{name}"
    created = caller.call("PUT", path, {})
    assert (created.status, created.headers["location"]) == (201, path)
    assert created.json()["name"] == name
    assert caller.get(path).body == created.body
    assert caller.get(f"{path}/leaderboard/top/1").body == b'{"users":[]}'
    assert caller.call("DELETE", path).status == 204
    refused(caller.call("DELETE", path), "board_not_found")


def test_other_methods_slashes_and_head(caller: Caller) -> None:
    board = new_board(caller)
    for method, path, allowed in (
        ("POST", board, "GET, HEAD, PUT, DELETE"),
        ("OPTIONS", board, "GET, HEAD, PUT, DELETE"),
        ("PUT", f"{board}/seasons", "GET, HEAD, POST"),
        ("DELETE", f"{board}/leaderboard", "GET, HEAD"),
        ("PATCH", f"{board}/users/1", "GET, HEAD, DELETE"),
        ("GET", f"{board}/users/1/score", "POST"),
        ("GET", f"{board}/scores", "POST"),
        ("DELETE", "/boards", "GET, HEAD"),
    ):
        for spelling in (path, f"{path}/"):
            answer = caller.send(method, spelling, b"" if method in {"POST", "PUT", "PATCH"} else None)
            refused(answer, "method_not_allowed")
            assert answer.headers["allow"] == allowed
    assert caller.get(f"{board}/").body == caller.get(board).body
    assert caller.send("HEAD", board).headers["content-length"] == caller.get(board).headers["content-length"]
    for path in ("//", "/x", "/leaderboard/top", "/users", "/users/1/score/x", "%2Fseasons"):
        refused(caller.get(board + path), "not_found")


# Rules


def test_a_new_board_without_rules_has_those_of_default(caller: Caller) -> None:
    assert rules_of(caller.get("/boards/default").json()) == DEFAULTS
    board = caller.get(new_board(caller)).json()
    assert rules_of(board) == DEFAULTS
    assert board["currentSeason"]["number"] == 1
    assert board["currentSeason"]["endsAt"] is None


def test_all_rules(caller: Caller) -> None:
    rules = {
        "better": "lower",
        "keeps": "best",
        "ties": "first",
        "ranks": "shared",
        "decimals": 2,
        "lowest": -1.5,
        "highest": 100,
        "season": {"timezone": "Europe/Berlin", "every": "week"},
        "keepSeasons": 3,
        "title": "Rounds",
    }
    path = new_board(caller, **rules)
    board = caller.get(path).json()
    assert rules_of(board) == rules
    assert board["currentSeason"]["endsAt"].endswith(":00Z")
    # All decimals of the board are shown.
    assert b'"lowest":-1.50,"highest":100.00' in caller.get(path).body
    cron = {**rules, "season": {"cron": " 0  4 * * MON "}}
    changed = caller.call("PUT", path, cron)
    assert (changed.status, changed.json()["season"]) == (200, {"timezone": "UTC", "cron": "0 4 * * MON"})
    assert "location" not in changed.headers
    # What is missing or null gets its default.
    assert rules_of(caller.call("PUT", path, {"title": None}).json()) == DEFAULTS


@pytest.mark.parametrize(
    ("rules", "fields"),
    [
        ({"better": "most"}, {"better"}),
        ({"keeps": "first"}, {"keeps"}),
        ({"ties": 1}, {"ties"}),
        ({"ranks": ""}, {"ranks"}),
        ({"decimals": 7}, {"decimals"}),
        ({"decimals": -1}, {"decimals"}),
        ({"decimals": 1.5}, {"decimals"}),
        ({"decimals": True}, {"decimals"}),
        ({"decimals": "2"}, {"decimals"}),
        ({"lowest": 1.5}, {"lowest"}),
        ({"lowest": "1"}, {"lowest"}),
        ({"highest": SCORE_MAX + 1}, {"highest"}),
        ({"decimals": 6, "highest": SCORE_MAX}, {"highest"}),
        ({"ties": "first", "highest": INT32_MAX + 1}, {"highest"}),
        ({"lowest": 2, "highest": 1}, {"lowest"}),
        ({"keepSeasons": 0}, {"keepSeasons"}),
        ({"keepSeasons": INT32_MAX + 1}, {"keepSeasons"}),
        ({"title": ""}, {"title"}),
        ({"title": "a\nb"}, {"title"}),
        ({"title": "x" * 201}, {"title"}),
        ({"season": "week"}, {"season"}),
        ({"season": {}}, {"season"}),
        ({"season": {"every": "fortnight"}}, {"season"}),
        ({"season": {"every": "week", "cron": "0 4 * * MON"}}, {"season"}),
        ({"season": {"every": "week", "timezone": "Berlin"}}, {"season"}),
        ({"season": {"every": "week", "timezone": 1}}, {"season"}),
        ({"season": {"every": "week", "until": "x"}}, {"season"}),
        ({"season": {"cron": "0 4 * *"}}, {"season"}),
        ({"season": {"cron": "61 4 * * *"}}, {"season"}),
        ({"season": {"cron": "0 0 30 2 *"}}, {"season"}),
        ({"season": {"cron": "* " * 200}}, {"season"}),
        ({"season": {"cron": "0 0 * * * 2030"}}, {"season"}),
        ({"season": {"cron": ""}}, {"season"}),
        ({"season": {"every": None, "cron": None, "timezone": "UTC"}}, {"season"}),
        *(
            ({"season": {"every": "day", "timezone": zone}}, {"season"})
            for zone in (
                "",
                " ",
                "../UTC",
                "/etc/localtime",
                "Europe",
                "europe/berlin\0",
                "UTC\n",
                "x" * 5000,
                "+01:00",
            )
        ),
        ({"season": []}, {"season"}),
        ({"name": "x"}, {"name"}),
        ({"better": "most", "decimals": 9, "x": 1}, {"better", "decimals", "x"}),
    ],
    ids=named,
)
def test_rules_that_are_refused(caller: Caller, rules: dict[str, Any], fields: set[str]) -> None:
    refused_field(caller.call("PUT", MISSING, rules), *fields)
    refused(caller.get(MISSING), "board_not_found")


def test_a_cron_expression_that_never_comes_and_an_unknown_time_zone_are_named(caller: Caller) -> None:
    never = caller.call("PUT", MISSING, {"season": {"cron": "0 0 30 2 *"}})
    assert "never comes" in never.fields["season"]
    zone = caller.call("PUT", MISSING, {"season": {"every": "day", "timezone": "Mars/Olympus"}})
    assert "'Mars/Olympus'" in zone.fields["season"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"better":"lower","better":"lower"}', b"null"])
def test_a_body_that_is_no_object(caller: Caller, body: bytes) -> None:
    assert caller.send("PUT", MISSING, body).status in {400, 422}
    refused(caller.get(MISSING), "board_not_found")


def test_rules_that_entries_depend_on_are_fixed(caller: Caller) -> None:
    user = new_user(caller)
    board = new_board(caller, decimals=1)
    assert caller.call("PUT", board, {"decimals": 2}).status == 200
    assert caller.post(f"{board}/users/{user}/score", {"score": 5.25}).status == 200
    for rules in ({"decimals": 1}, {"decimals": 2, "better": "lower"}, {"decimals": 2, "ties": "first"}):
        answer = caller.call("PUT", board, rules)
        refused(answer, "board_in_use")
        assert next(name for name in ("better", "ties", "decimals") if name in answer.json()["detail"])
    refused(caller.call("PUT", board, {"decimals": 2, "lowest": 5.5}), "board_in_use")
    assert rules_of(caller.get(board).json()) == DEFAULTS | {"decimals": 2}
    changed = {"decimals": 2, "keeps": "best", "ranks": "shared", "lowest": 5, "title": "x"}
    assert caller.call("PUT", board, changed).status == 200


def test_entries_stay_within_the_bounds_of_a_board(caller: Caller) -> None:
    """Where the lowest is the best, too."""
    user = new_user(caller)
    for better in ("higher", "lower"):
        board = new_board(caller, better=better, lowest=-10)
        assert caller.post(f"{board}/users/{user}/score", {"score": 5}).status == 200
        for bounds in ({"highest": 4}, {"lowest": 6}, {"lowest": 6, "highest": 7}):
            refused(caller.call("PUT", board, {"better": better, **bounds}), "board_in_use")
        assert rules_of(caller.get(board).json()) == DEFAULTS | {"better": better, "lowest": -10}
        for bounds in ({"lowest": 5, "highest": 5}, {"lowest": 5}, {"highest": 5}):
            assert caller.call("PUT", board, {"better": better, **bounds}).status == 200
        refused_field(caller.post(f"{board}/users/{user}/score", {"score": 6}), "score")
        assert caller.get(f"{board}/users/{user}").json()["score"] == 5


def test_default_keeps_its_rules(caller: Caller) -> None:
    for rules in (
        *({"keeps": "best"}, {"better": "lower"}, {"ties": "first"}, {"ranks": "shared"}, {"decimals": 1}),
        *({"season": {"every": "day"}}, {"keepSeasons": 1}, {"lowest": 0}, {"highest": 10}),
    ):
        refused(caller.call("PUT", "/boards/default", rules), "board_in_use")
    assert caller.call("PUT", "/boards/default", {"title": "All", "keeps": "last"}).json()["title"] == "All"
    assert caller.call("PUT", "/boards/default", {}).status == 200
    refused(caller.call("DELETE", "/boards/default"), "board_in_use")
    refused(caller.post("/boards/default/seasons", {"season": 1}), "board_in_use")
    assert [each["number"] for each in caller.get("/boards/default/seasons").json()["seasons"]] == [1]


# Lists


def test_the_boards_are_listed_by_name(caller: Caller) -> None:
    for name in ("listed-b", "listed-a", "listed-c"):
        assert caller.call("PUT", f"/boards/{name}", {}).status == 201
    names = [board["name"] for board in caller.get("/boards?limit=1000").json()["boards"]]
    assert names == sorted(names)
    assert {"default", "listed-a", "listed-b", "listed-c"} <= set(names)
    page = caller.get("/boards?after=listed&limit=2").json()
    assert [board["name"] for board in page["boards"]] == ["listed-a", "listed-b"]
    assert page["next"] == "listed-b"
    page = caller.get("/boards?limit=2&after=listed-b").json()
    assert page["boards"][0] == caller.get("/boards/listed-c").json()
    assert caller.get("/boards?after=z").json() == {"boards": [], "next": None}
    last = caller.get(f"/boards?after={names[-2]}&limit=1").json()
    assert ([board["name"] for board in last["boards"]], last["next"]) == (names[-1:], None)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after=A", "after=", "x=1", "limit=1&limit=2"]
)
def test_a_list_that_is_refused(caller: Caller, query: str) -> None:
    for path in ("/boards", f"/users/{new_user(caller)}/boards"):
        refused(caller.get(f"{path}?{query}"), "invalid_parameter")
    if not query.startswith("after"):
        refused(caller.get(f"/boards/default/seasons?{query}"), "invalid_parameter")
    refused(caller.get("/boards/default/seasons?before=0"), "invalid_parameter")


# Seasons


def test_ending_a_season_keeps_it_and_begins_the_next(caller: Caller) -> None:
    user = new_user(caller)
    board = new_board(caller, season={"every": "year"})
    before = caller.get(board).json()["currentSeason"]
    assert caller.post(f"{board}/users/{user}/score", {"score": 7}).json()["season"] == 1
    refused(caller.get(f"{board}/leaderboard/top/1?season=previous"), "season_not_found")
    ended = caller.post(f"{board}/seasons", {"season": 1}).json()
    assert (ended["number"], ended["startedAt"]) == (1, before["startedAt"])
    assert ended["endedAt"] > ended["startedAt"]
    # A repeated call ends nothing more.
    assert caller.post(f"{board}/seasons", {"season": 1}).json() == ended
    for number in (3, INT32_MAX):
        refused(caller.post(f"{board}/seasons", {"season": number}), "season_not_found")
    assert caller.get(board).json()["currentSeason"]["number"] == 2
    assert caller.get(board).json()["currentSeason"]["endsAt"] == before["endsAt"]

    refused(caller.get(f"{board}/users/{user}"), "not_on_board")
    assert caller.post(f"{board}/users/{user}/score", {"score": 1}).json()["season"] == 2
    for season, score in (("", 1), ("?season=2", 1), ("?season=1", 7), ("?season=previous", 7)):
        assert caller.get(f"{board}/users/{user}{season}").json()["score"] == score
        assert caller.get(f"{board}/leaderboard/top/2{season}").json()["users"][0]["score"] == score
        assert caller.get(f"{board}/leaderboard/user/{user}/context{season}").json()["user"]["score"] == score
        for query in ("limit=1", "around_rank=1", f"users={user}"):
            page = caller.get(f"{board}/leaderboard{season or '?'}&{query}").json()
            assert [found["score"] for found in page["users"]] == [score]

    listed = caller.get(f"{board}/seasons").json()
    assert [season["number"] for season in listed["seasons"]] == [2, 1]
    assert [season["endedAt"] for season in listed["seasons"]] == [None, ended["endedAt"]]
    assert caller.get(f"{board}/seasons?limit=1").json()["next"] == 2
    assert caller.get(f"{board}/seasons?limit=1&before=2").json() == {"seasons": [ended], "next": None}


def test_as_many_seasons_can_be_kept_as_there_can_be(caller: Caller) -> None:
    board = new_board(caller, keepSeasons=INT32_MAX)
    assert caller.post(f"{board}/seasons", {"season": 1}).status == 200
    assert len(caller.get(f"{board}/seasons?before={INT32_MAX}").json()["seasons"]) == 2


def test_seasons_beyond_those_kept_are_not_found(caller: Caller) -> None:
    board = new_board(caller, keepSeasons=1)
    for number in (1, 2):
        assert caller.post(f"{board}/seasons", {"season": number}).status == 200
    refused(caller.get(f"{board}/leaderboard/top/1?season=1"), "season_not_found")
    refused(caller.post(f"{board}/seasons", {"season": 1}), "season_not_found")
    assert caller.get(f"{board}/leaderboard/top/1?season=2").status == 200


@pytest.mark.parametrize(
    "body", [{}, {"season": 0}, {"season": "1"}, {"season": 2**31}, {"season": 1.5}, {"season": None}]
)
def test_a_season_to_end_is_a_number(caller: Caller, body: dict[str, Any]) -> None:
    refused_field(caller.post(f"{new_board(caller)}/seasons", body), "season")


READS = ["/leaderboard/top/1", "/leaderboard/user/1/context", "/leaderboard", "/leaderboard?users=1", "/users/1"]


@pytest.mark.parametrize("read", READS)
def test_a_season_that_is_not_there(caller: Caller, read: str) -> None:
    board = new_board(caller)
    join = "&" if "?" in read else "?"
    for season in ("2", "999", str(INT32_MAX), "previous"):
        refused(caller.get(f"{board}{read}{join}season={season}"), "season_not_found")
        refused(caller.get(f"/boards/default{read}{join}season={season}"), "season_not_found")
    for season in ("0", "-1", "01", "", "last", "Previous", str(INT32_MAX + 1), "1.0"):
        answer = caller.get(f"{board}{read}{join}season={season}")
        refused(answer, "invalid_parameter")
        assert "previous" in answer.json()["detail"]
    refused(caller.get(f"{board}{read}{join}season=1&season=1"), "invalid_parameter")
    refused(caller.get(f"{board}{read}{join}Season=1"), "invalid_parameter")
    refused(caller.get(f"/leaderboard?{'season=1'}"), "invalid_parameter")


# Without PostgreSQL


def test_without_postgres_every_call_is_refused_for_now(start: Callable[..., Caller]) -> None:
    alone = start(db_port=free_port(), wait_for="unavailable")
    for call in (*calls(MISSING), ("GET", "/boards", None), ("GET", "/users?username=ada", None)):
        answer = alone.call(*call)
        refused(answer, "unavailable")
        assert answer.headers["retry-after"] == "1"
    assert alone.call("PATCH", "/users/1", {"hidden": True}).code == "unavailable"
    assert alone.call("DELETE", "/users/1").code == "unavailable"
    refused_field(alone.call("PUT", MISSING, {"better": "x"}), "better")
