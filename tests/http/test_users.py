"""Users over HTTP: found, renamed, hidden, shown again and erased, at once on every board and on every process.

What happens when such changes meet others is in `tests/boards`.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from leaderboard.rules import MAX_NAME
from tests.http.boards import named, new_board, new_user, refused_field
from tests.http.contract import Answer, Caller
from tests.http.ledger import refused, short
from tests.system import eventually

ADMIN, READER = "admin-key-of-this-file", "reader-key-of-this-file"
KEYS = f"operator:admin+read:{ADMIN},page:read:{READER}"
GONE = 2_000_000_000
"""The id of no user."""


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Caller]) -> Caller:
    """Another process, whose callers need keys: each change by the first must be shown by this one."""
    return start(api_keys=SecretStr(KEYS))


def call_as(caller: Caller, key: str, method: str, path: str, value: Any = None) -> Answer:
    body = None if value is None else json.dumps(value).encode()
    return caller.send(method, path, body, [("Authorization", f"Bearer {key}")])


def change(caller: Caller, user: int, **members: object) -> Answer:
    return caller.call("PATCH", f"/users/{user}", members)


def find(caller: Caller, name: str, key: str = "") -> Answer:
    path = f"/users?username={quote(name)}"
    return call_as(caller, key, "GET", path) if key else caller.get(path)


def loads(caller: Caller) -> float:
    """How many seasons of boards this process has loaded into the cache."""
    (line,) = re.findall(
        r"^leaderboard_season_loads_total (.*)$", caller.get("/metrics").body.decode(), re.MULTILINE
    )
    return float(line)


def read_until_cached(caller: Caller, path: str) -> None:
    """Reads a season until it is in the cache, so that the changes of the test reach it there."""
    before = loads(caller)

    def cached() -> bool:
        assert caller.get(path).status == 200
        return loads(caller) > before

    eventually(cached)


def on_three_boards(caller: Caller, user: int, score: int) -> tuple[str, str]:
    """Gives the user this score on two boards and in the ended season of the second one; returns their paths.

    All three seasons are cached.
    """
    board, seasons = new_board(caller), new_board(caller, better="lower", keeps="best")
    for path in (board, seasons):
        assert caller.post(f"{path}/users/{user}/score", {"score": score}).status == 200
    assert caller.post(f"{seasons}/seasons", {"season": 1}).status == 200
    assert caller.post(f"{seasons}/users/{user}/score", {"score": score}).status == 200
    for read in (board, seasons):
        read_until_cached(caller, f"{read}/leaderboard/top/3")
    read_until_cached(caller, f"{seasons}/leaderboard/top/3?season=1")
    return board, seasons


def reads_of(user: int, board: str, seasons: str) -> list[str]:
    """Every read of one user, on `default`, on both boards and in the ended season."""
    return [
        *(f"/users/{user}", f"/leaderboard/user/{user}/context"),
        *(f"/boards/default/users/{user}", f"/boards/default/leaderboard/user/{user}/context"),
        *(f"{board}/users/{user}", f"{board}/leaderboard/user/{user}/context"),
        *(f"{seasons}/users/{user}?season={season}" for season in (1, 2, "previous")),
        *(f"{seasons}/leaderboard/user/{user}/context?season={season}" for season in (1, 2, "previous")),
    ]


def lists_with(user: int, board: str, seasons: str) -> list[str]:
    """Every read of several users, of whom the user is one unless it is hidden."""
    return [
        path
        for query in (
            "/leaderboard/top/1000",
            "/leaderboard",
            "/leaderboard?around_rank=1",
            f"/leaderboard?users={user}",
        )
        for path in (
            *(query, f"/boards/default{query}", f"{board}{query}"),
            *(f"{seasons}{query}{'&' if '?' in query else '?'}season={season}" for season in (1, 2)),
        )
    ]


def ids_in(answer: Answer) -> list[int]:
    assert answer.status == 200, answer
    return [user["userId"] for user in answer.json()["users"]]


# Finding by name


def test_a_user_is_found_by_its_whole_name(caller: Caller) -> None:
    user = caller.create("Zoë Ann", 7)
    account = {"userId": user, "username": "Zoë Ann", "imageUrl": None, "score": 7, "hidden": False}
    # Names are trimmed and in normal form C, wherever they are given.
    for name in ("Zoë Ann", "  Zoë Ann ", unicodedata.normalize("NFD", "Zoë Ann")):
        assert find(caller, name).json() == account
    for name in ("Zoë", "zoë ann", "Zoë  Ann", "Zoe Ann"):
        refused(find(caller, name), "user_not_found")
    assert caller.send("HEAD", f"/users?username={quote('Zoë Ann')}").status == 200


@pytest.mark.parametrize(
    "query",
    [
        *("", "?", "?username=", "?username=%20", "?username=a%00b", "?username=%E2%80%AE", "?username=%0A"),
        *(f"?username={'x' * (MAX_NAME + 1)}", "?username=a&username=a", "?username=a&x=1", "?Username=a"),
    ],
    ids=short,
)
def test_a_name_that_no_user_can_have_is_refused(caller: Caller, query: str) -> None:
    refused(caller.get(f"/users{query}"), "invalid_parameter")


# Finding by prefix

NAMES = ["px", "px A", "px AA", "px B", "px a", "px aa", "px É", "px ß", "px 中文", "px 😀"]
"""In the order of code points."""


@pytest.fixture(scope="module")
def prefixed(caller: Caller) -> list[int]:
    """The ids of users with the names in `NAMES`; other users come before and after them."""
    for name in ("pw", "pw\U0010fffd", "py", "PX", "p", "éx"):
        caller.create(name)
    ids = {name: caller.create(name, number) for number, name in reversed(list(enumerate(NAMES)))}
    return [ids[name] for name in NAMES]


def names_in(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [user["username"] for user in answer.json()["users"]]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("px", NAMES),
        ("px ", NAMES[1:]),
        (" px A", ["px A", "px AA"]),
        ("px E\u0301", ["px É"]),
        ("px \u4e2d", ["px 中文"]),
        ("px 😀", ["px 😀"]),
        ("px%", []),
        ("px _", []),
        ("px 😀 ", []),
        ("PX", ["PX"]),
        ("pw\U0010fffd", ["pw\U0010fffd"]),
    ],
    ids=short,
)
def test_the_users_with_a_prefix_are_listed_by_name(
    caller: Caller, prefixed: list[int], prefix: str, expected: list[str]
) -> None:
    answer = caller.get(f"/users?prefix={quote(prefix)}")
    assert names_in(answer) == expected
    assert answer.json()["next"] is None
    ids = dict(zip(NAMES, prefixed, strict=True))
    for user in answer.json()["users"]:
        name = user["username"]
        assert user == find(caller, name).json()
        assert name not in ids or user["userId"] == ids[name]


@pytest.mark.usefixtures("prefixed")
def test_lists_of_users_are_read_page_by_page(caller: Caller) -> None:
    found, after = [], ""
    while after is not None:
        page = caller.get(f"/users?prefix=px&limit=3{after and f'&after={quote(after)}'}")
        assert len(names_in(page)) <= 3
        found += names_in(page)
        after = page.json()["next"]
    assert found == NAMES
    # A name that is not there any more is a place in the list all the same.
    for after, expected in (("px AAA", NAMES[3:]), ("", NAMES), ("a", NAMES), ("py", []), ("px 😀", [])):
        assert names_in(caller.get(f"/users?prefix=px&after={quote(after)}")) == expected
    assert names_in(caller.get("/users?prefix=px&limit=10&after=px%20A")) == NAMES[2:]
    last = caller.get("/users?prefix=px&limit=8&after=px%20A").json()
    assert (last["users"][-1]["username"], last["next"]) == (NAMES[-1], None)
    # An empty prefix is that of every name.
    page = caller.get("/users?prefix=&limit=4&after=pw").json()
    assert [user["username"] for user in page["users"]] == ["pw\U0010fffd", "px", "px A", "px AA"]


def test_hidden_users_are_listed_for_operators_only(caller: Caller, guarded: Caller) -> None:
    users = {name: caller.create(name) for name in ("hx 1", "hx 2", "hx 3")}
    assert change(caller, users["hx 2"], hidden=True).status == 200
    for key, expected in (("", ["hx 1", "hx 3"]), (READER, ["hx 1", "hx 3"]), (ADMIN, ["hx 1", "hx 2", "hx 3"])):
        path = "/users?prefix=hx"
        answer = call_as(guarded, key, "GET", path) if key else guarded.get(path)
        assert names_in(answer) == expected
        # Those that are left out do not count.
        answer = call_as(guarded, key, "GET", f"{path}&limit=2") if key else guarded.get(f"{path}&limit=2")
        assert (names_in(answer), answer.json()["next"]) == (expected[:2], None if len(expected) == 2 else "hx 2")
    assert [user["hidden"] for user in caller.get("/users?prefix=hx").json()["users"]] == [False, True, False]
    # A new name is found at once, the old one is not, on every process.
    assert change(caller, users["hx 1"], username="hy 1").status == 200
    assert caller.call("DELETE", f"/users/{users['hx 3']}").status == 204
    assert names_in(call_as(guarded, ADMIN, "GET", "/users?prefix=hx")) == ["hx 2"]
    assert names_in(guarded.get("/users?prefix=hy")) == ["hy 1"]


@pytest.mark.parametrize(
    "query",
    [
        *("prefix=a%00", "prefix=a%0A", "prefix=%E2%80%AE", f"prefix={'x' * (MAX_NAME + 1)}", "prefix=a&prefix=b"),
        *("prefix=a&limit=0", "prefix=a&limit=1001", "prefix=a&limit=x", "prefix=a&after=%00", "prefix=a&x=1"),
        *("prefix=a&username=a", "username=a&after=b", "username=a&limit=5", "after=a", "limit=5"),
    ],
    ids=short,
)
def test_a_list_of_users_that_is_refused(caller: Caller, query: str) -> None:
    refused(caller.get(f"/users?{query}"), "invalid_parameter")


# Changing


def test_a_change_touches_only_what_is_given(caller: Caller) -> None:
    user, url = new_user(caller, 5), "https://img.example.com/a.png"
    account: dict[str, Any] = {"userId": user, "imageUrl": None, "score": 5, "hidden": False}
    changes: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"username": "  Grace "}, {"username": "Grace"}),
        ({"imageUrl": url}, {"imageUrl": url}),
        ({"username": "Grace"}, {}),
        ({"hidden": True}, {"hidden": True}),
        ({"username": "Grace H", "imageUrl": None}, {"username": "Grace H", "imageUrl": None}),
        ({"hidden": False}, {"hidden": False}),
        ({"hidden": False}, {}),
    ]
    for members, expected in changes:
        account |= expected
        assert change(caller, user, **members).json() == account
        assert find(caller, account["username"]).json() == account
    assert caller.get(f"/users/{user}").json()["score"] == 5


def test_a_new_name_and_image_are_shown_at_once_on_every_board(caller: Caller, guarded: Caller) -> None:
    user, url = caller.create("before", 1), "https://img.example.com/b.png"
    board, seasons = on_three_boards(caller, user, 5)
    assert change(caller, user, username="after", imageUrl=url).status == 200
    for process in (guarded, caller):
        for path in reads_of(user, board, seasons):
            found = process.get(path).json()
            assert (found.get("user", found)["username"], found.get("user", found)["imageUrl"]) == ("after", url)
        for path in lists_with(user, board, seasons):
            (found,) = (each for each in process.get(path).json()["users"] if each["userId"] == user)
            assert (found["username"], found["imageUrl"]) == ("after", url)
        refused(find(process, "before", READER), "user_not_found")
        assert find(process, "after", READER).json()["userId"] == user
    # The old name is free.
    assert caller.create("before") != user


def test_a_name_that_another_user_has_is_refused(caller: Caller) -> None:
    other, user = caller.create("first come"), caller.create("second come")
    refused(change(caller, user, username="first come", imageUrl="https://x.example/y"), "username_taken")
    refused(change(caller, user, username=" first come "), "username_taken")
    assert find(caller, "second come").json()["imageUrl"] is None
    # A hidden user keeps its name.
    assert change(caller, other, hidden=True).status == 200
    refused(change(caller, user, username="first come"), "username_taken")
    refused(caller.post("/users", {"username": "first come"}), "username_taken")
    assert caller.call("DELETE", f"/users/{other}").status == 204
    assert change(caller, user, username="first come").json()["userId"] == user


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ({}, {"body"}),
        ({"username": None}, {"username"}),
        ({"username": " "}, {"username"}),
        ({"username": "x" * (MAX_NAME + 1)}, {"username"}),
        ({"username": "a\u202eb"}, {"username"}),
        ({"username": 5}, {"username"}),
        ({"imageUrl": ""}, {"imageUrl"}),
        ({"imageUrl": "ftp://x.example/"}, {"imageUrl"}),
        ({"imageUrl": "https://user:pass@x.example/"}, {"imageUrl"}),  # pragma: allowlist secret
        ({"hidden": None}, {"hidden"}),
        ({"hidden": "true"}, {"hidden"}),
        ({"hidden": 1}, {"hidden"}),
        ({"score": 5}, {"score"}),
        ({"userId": 5, "hidden": True}, {"userId"}),
        ({"username": "", "imageUrl": 5, "hidden": 0, "x": 1}, {"username", "imageUrl", "hidden", "x"}),
    ],
    ids=named,
)
def test_a_change_that_is_refused_changes_nothing(caller: Caller, members: Any, fields: set[str]) -> None:
    user = new_user(caller, 3)
    before = caller.get(f"/users/{user}").body
    refused_field(caller.call("PATCH", f"/users/{user}", members), *fields)
    assert caller.get(f"/users/{user}").body == before


def test_a_body_or_an_id_that_is_refused(caller: Caller) -> None:
    user = new_user(caller)
    for body in (b"", b"{", b'{"hidden":true,"hidden":false}'):
        refused(caller.send("PATCH", f"/users/{user}", body), "malformed_json")
    refused_field(caller.send("PATCH", f"/users/{user}", b"[]"), "body")
    text = [("Content-Type", "text/plain")]
    refused(caller.send("PATCH", f"/users/{user}", b"{}", text), "unsupported_media_type")
    refused(caller.send("PATCH", f"/users/{user}", b" " * (16 * 1024 + 1)), "body_too_large")
    for bad in ("0", "01", "x", "-1", str(2**31), "%20"):
        refused(caller.call("PATCH", f"/users/{bad}", {"hidden": True}), "invalid_parameter")
        refused(caller.call("DELETE", f"/users/{bad}"), "invalid_parameter")
        refused(caller.get(f"/users/{bad}/boards"), "invalid_parameter")
    refused(caller.call("PATCH", f"/users/{GONE}", {"hidden": True}), "user_not_found")
    refused(caller.call("DELETE", f"/users/{GONE}"), "user_not_found")
    refused(caller.get(f"/users/{GONE}/boards"), "user_not_found")


# Hiding


def test_a_hidden_user_is_on_no_board(caller: Caller, guarded: Caller) -> None:
    user, neighbour = caller.create("out of sight", 50), new_user(caller, 49)
    board, seasons = on_three_boards(caller, user, 50)
    for path in (board, seasons):
        assert caller.post(f"{path}/users/{neighbour}/score", {"score": 50}).status == 200
    totals = {path: caller.get(f"{path}/leaderboard").json()["total"] for path in ("", board, seasons)}
    assert caller.get(f"/users/{user}/boards").json()["boards"]

    assert change(caller, user, hidden=True).json()["hidden"] is True
    for process in (guarded, caller):
        for path in reads_of(user, board, seasons):
            code = "not_on_board" if path.startswith("/boards/board") else "user_not_found"
            refused(process.get(path), code)
        for path in lists_with(user, board, seasons):
            assert user not in ids_in(process.get(path)), path
        refused(process.get(f"/users/{user}/boards"), "user_not_found")
        for path, total in totals.items():
            assert process.get(f"{path}/leaderboard").json()["total"] == total - 1
            context = process.get(f"{path}/leaderboard/user/{neighbour}/context").json()
            assert context["total"] == total - 1
            assert user not in [each["userId"] for each in context["above"] + context["below"]]
            assert context["user"]["rank"] == 1 + len(context["above"])
    assert user not in [each["userId"] for each in caller.get("/leaderboard/top/1000").json()["users"]]


def test_the_scores_of_a_hidden_user_are_taken_and_kept(caller: Caller) -> None:
    """It is shown again at the right place."""
    users = [new_user(caller, score) for score in (1000, 1001, 1002)]
    user, board = users[0], new_board(caller, keeps="sum")
    for each, increment in zip(users, (1, 2, 3), strict=True):
        caller.post(f"{board}/users/{each}/score", {"increment": increment})
    assert change(caller, user, hidden=True).status == 200

    done = caller.post(f"/users/{user}/score", {"score": 1003}).json()
    assert (done["score"], done["previousScore"]) == (1003, 1000)
    done = caller.post(f"{board}/users/{user}/score?rank=true", {"increment": 9}).json()
    assert (done["score"], done["previousScore"], done["improved"], done["rank"]) == (10, 1, True, None)
    done = caller.post(f"{board}/scores", {"scores": [{"userId": user, "increment": 10}]}).json()["results"][0]
    assert (done["score"], done["previousScore"]) == (20, 10)
    # The first entry on a board of a user who is hidden already.
    late = new_board(caller)
    assert caller.post(f"{late}/users/{user}/score", {"score": 4}).json()["previousScore"] is None
    for path in (board, late):
        assert user not in ids_in(caller.get(f"{path}/leaderboard"))
    assert user not in ids_in(caller.get(f"/leaderboard?users={user}"))
    # It may leave a board, and enter it again.
    assert caller.call("DELETE", f"{late}/users/{user}").status == 204
    assert caller.post(f"{late}/users/{user}/score", {"score": 5}).json()["previousScore"] is None

    assert change(caller, user, hidden=False).json()["score"] == 1003
    assert ids_in(caller.get(f"/leaderboard?users={','.join(map(str, users))}")) == [user, *users[:0:-1]]
    assert ids_in(caller.get(f"{board}/leaderboard/top/3")) == [user, *users[:0:-1]]
    assert [caller.get(f"{path}/users/{user}").json()["score"] for path in (board, late)] == [20, 5]
    boards = [path.removeprefix("/boards/") for path in (board, late)]
    assert caller.get(f"/users/{user}/boards").json()["boards"] == sorted([*boards, "default"])


def test_changes_need_the_admin_scope_and_so_does_finding_a_hidden_user(caller: Caller, guarded: Caller) -> None:
    user, name = caller.create("kept out"), "kept out"
    for key, code in (("", "unauthorized"), (READER, "forbidden")):
        for method, path, body in (
            ("PATCH", f"/users/{user}", {"hidden": True}),
            ("DELETE", f"/users/{user}", None),
        ):
            answer = call_as(guarded, key, method, path, body) if key else guarded.call(method, path, body)
            refused(answer, code)
    assert find(guarded, name).json()["hidden"] is False
    assert call_as(guarded, ADMIN, "PATCH", f"/users/{user}", {"hidden": True}).status == 200
    # Found with the admin scope only. It is a user that is not there for all others.
    for key in ("", READER, "an-unknown-key-of-a-caller"):
        refused(find(guarded, name, key), "user_not_found")
    assert find(guarded, name, ADMIN).json()["hidden"] is True
    refused(call_as(guarded, ADMIN, "GET", f"/users/{user}"), "user_not_found")
    assert call_as(guarded, ADMIN, "DELETE", f"/users/{user}").status == 204
    refused(find(guarded, name, ADMIN), "user_not_found")


# Erasing


def test_an_erased_user_is_nowhere(caller: Caller, guarded: Caller) -> None:
    user = caller.create("to be erased", 50)
    board, seasons = on_three_boards(caller, user, 50)
    total = caller.get("/leaderboard").json()["total"]
    assert caller.call("DELETE", f"/users/{user}").status == 204
    for process in (guarded, caller):
        for path in (*reads_of(user, board, seasons), f"/users/{user}/boards"):
            code = "not_on_board" if path.startswith("/boards/board") else "user_not_found"
            refused(process.get(path), code)
        for path in lists_with(user, board, seasons):
            assert user not in ids_in(process.get(path)), path
        refused(find(process, "to be erased", ADMIN), "user_not_found")
        assert process.get("/leaderboard").json()["total"] == total - 1
    for method, path, body in (
        ("DELETE", f"/users/{user}", None),
        ("PATCH", f"/users/{user}", {"hidden": False}),
        ("POST", f"/users/{user}/score", {"score": 1}),
        ("POST", f"{board}/users/{user}/score", {"score": 1}),
    ):
        refused(caller.call(method, path, body), "user_not_found")
    results = caller.post(f"{board}/scores", {"scores": [{"userId": user, "score": 1}]}).json()["results"]
    assert results[0]["error"]["code"] == "user_not_found"
    # Its name is free, for another user.
    again = caller.create("to be erased")
    assert again != user
    refused(caller.get(f"{board}/users/{again}"), "not_on_board")
