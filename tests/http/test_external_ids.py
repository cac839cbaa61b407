"""Users by the caller's own ids: made, found, changed and erased on every route and from every process."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from leaderboard.errors import InvalidParameter
from leaderboard.http.paging import Friends, page_query
from leaderboard.http.requests import user
from leaderboard.http.route import Route, UserParameter
from leaderboard.http.routes import ROUTES
from leaderboard.model import INT32_MAX, ExternalId
from leaderboard.rules import MAX_EXTERNAL_ID
from tests.http.boards import new_board, refused_field
from tests.http.contract import Answer, Caller, path_of
from tests.http.ledger import refused, short
from tests.tokens import claims

_numbers = count(1)
IDS = (
    *(
        "steam:76561198000000001",
        "a/b",
        "/",
        "//",
        "a/score",
        "100%",
        "a%2Fb",
        "%",
        "a+b",
        "@",
        "@me",
        "7",
        "7656",
    ),
    *(
        "\N{GRINNING FACE}",
        "e\u0301",
        "\u00e9",
        "\ufffd",
        " ",
        "a b ",
        "a,b",
        ",",
        ",,",
        "a,,b",
        "?x=1#y",
        ".",
        "..",
    ),
    *("x" * MAX_EXTERNAL_ID, "\N{GRINNING FACE}" * (MAX_EXTERNAL_ID // 4), "a;b", '"', "\\", "<script>", "{id}"),
)
NOT_IDS = {
    "empty": "@",
    "a NUL": "@%00",
    "a line break": "@a%0Ab",
    "DEL": "@%7F",
    "a C1 control character": "@%C2%85",
    "too long": "@" + "x" * (MAX_EXTERNAL_ID + 1),
    "too long in bytes": "@" + quote("\N{GRINNING FACE}" * (MAX_EXTERNAL_ID // 4)) + "x",
    "not UTF-8": "@%FF",
    "cut UTF-8": "@a%F0%9F",
    "a surrogate": "@%ED%A0%80",
    "no @": "steam:7656",
}


def at(external_id: str) -> str:
    """The segment of a path that names this user."""
    return f"@{quote(external_id, safe='')}"


def new_id() -> str:
    return f"player/{next(_numbers)}"


def put(caller: Caller, external_id: str, **members: object) -> Answer:
    return caller.call("PUT", f"/users/{at(external_id)}", {"username": f"user of {external_id}"[:128]} | members)


def made(caller: Caller, external_id: str) -> int:
    """The number of a new user with this external id."""
    answer = put(caller, external_id)
    assert answer.status == 201, answer
    return int(answer.json()["userId"])


@pytest.fixture(scope="module")
def other(start: Callable[..., Caller], caller: Caller) -> Caller:
    """Another process with the same databases."""
    return start()


# Every id, and what is none


@pytest.mark.parametrize("external_id", IDS, ids=short)
def test_any_text_names_its_user_in_paths_lists_and_bodies(caller: Caller, external_id: str) -> None:
    user_id = made(caller, external_id)
    board = new_board(caller)
    assert caller.post(f"/users/{at(external_id)}/score", {"score": 5}).json()["userId"] == user_id
    sent = {"scores": [{"externalId": external_id, "score": 6}]}
    assert caller.post(f"{board}/scores", sent).json()["results"][0]["externalId"] == external_id
    listed = quote("@" + external_id.replace(",", ",,"), safe="")
    for path in (f"/users/{at(external_id)}", f"{board}/users/{at(external_id)}"):
        found = caller.get(path).json()
        assert (found["userId"], found["externalId"]) == (user_id, external_id)
    for path in (f"/leaderboard?users={listed}", f"{board}/leaderboard?users={user_id},{listed}"):
        (found,) = caller.get(path).json()["users"]
        assert (found["userId"], found["externalId"]) == (user_id, external_id)
    assert caller.call("DELETE", f"/users/{at(external_id)}").status == 204
    assert caller.get(f"/users/{user_id}").code == "user_not_found"


def test_ids_that_look_alike_are_different_users(caller: Caller) -> None:
    ids = [f"alike {spelling}" for spelling in ("e\u0301", "\u00e9", "E\u0301", "e\u0301 ", " e\u0301", "%C3%A9")]
    numbers = [caller.post("/users", {"username": f"n{n}", "externalId": each}) for n, each in enumerate(ids)]
    assert len({answer.json()["userId"] for answer in numbers}) == len(ids)


@pytest.mark.parametrize("text", NOT_IDS.values(), ids=NOT_IDS)
def test_what_is_no_external_id_is_refused(caller: Caller, text: str) -> None:
    for path in (f"/users/{text}", f"/leaderboard/user/{text}/context", f"/leaderboard?users=1,{text}"):
        refused(caller.get(path), "invalid_parameter")
    refused(caller.call("PUT", f"/users/{text}", {"username": "x"}), "invalid_parameter")


@pytest.mark.parametrize(
    "value", ["", "\0", "a\nb", "\x7f", "\x85", "x" * 129, "\ud800", 7, None, True], ids=short
)
def test_what_is_no_external_id_is_refused_in_a_body(caller: Caller, value: object) -> None:
    for method, path, body, field in (
        ("POST", "/users", {"username": "x", "externalId": value}, "externalId"),
        ("PATCH", "/users/1", {"externalId": value}, "externalId"),
        (
            "POST",
            "/boards/default/scores",
            {"scores": [{"externalId": value, "score": 1}]},
            "scores[0].externalId",
        ),
    ):
        refused_field(caller.call(method, path, body), field)


@pytest.mark.parametrize(
    "path",
    ["/users%2F1", "/users/1%2Fscore", "/leaderboard%2Ftop/3", "/boards/a%2Fb", "/users/x%2F@y", "/%40a%2Fb"],
)
def test_an_encoded_slash_anywhere_else_is_not_found(caller: Caller, path: str) -> None:
    refused(caller.get(path), "not_found")


def test_an_external_id_with_a_slash_is_found_below_the_path_of_a_proxy(
    start: Callable[..., Caller], caller: Caller
) -> None:
    user_id = made(caller, "below/a/proxy")
    below = start(root_path="/games/lb").api.client
    for prefix in ("", "/games/lb", "/%67ames/lb"):
        assert below.get(f"{prefix}/users/{at('below/a/proxy')}/").json()["userId"] == user_id
    for prefix in ("/games%2Flb", "/games/lb%2F", "/@games%2Flb"):
        assert below.get(f"{prefix}/users/{at('below/a/proxy')}").status_code == 404
    created = below.put("/games/lb/users/@located", json={"username": "located"})
    assert below.get(created.headers["location"]).json()["externalId"] == "located"


ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(
    lambda text: len(text.encode()) <= 128
)


@given(ids)
def test_an_encoded_id_is_read_as_it_was(external_id: str) -> None:
    encoded = at(external_id).encode()
    assert user("id", f"@{external_id}", encoded) == external_id


@given(st.lists(st.one_of(ids, st.integers(1, INT32_MAX)), min_size=1, max_size=100))
def test_a_list_of_users_is_read_as_it_was(users: list[str | int]) -> None:
    items = [str(each) if isinstance(each, int) else "@" + each.replace(",", ",,") for each in users]
    read = page_query(urlencode({"users": ",".join(items)}).encode())
    assert read == Friends([ExternalId(each) if isinstance(each, str) else each for each in users])


@given(st.text())
def test_a_text_is_a_number_an_external_id_or_refused(text: str) -> None:
    try:
        found = user("id", text, quote(text, errors="surrogatepass").encode())
    except InvalidParameter:
        assert not re.fullmatch("[1-9][0-9]{0,8}", text)
    else:
        assert text == (str(found) if isinstance(found, int) else f"@{found}")


# Every route

BY_USER = [route for route in ROUTES if any(isinstance(each, UserParameter) for each in route.parameters)]


def structs_of(type_: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs in the type of a body."""
    for part in (type_, *getattr(type_, "__args__", ()), getattr(type_, "__origin__", None)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            yield part
            for field in msgspec.structs.fields(part):
                yield from structs_of(field.type)
        elif part is not type_ and part is not None:
            yield from structs_of(part)


def test_every_parameter_and_body_with_a_user_takes_an_external_id() -> None:
    by_id = {"/users/{id}", "/users/{id}/score", "/users/{id}/boards", "/leaderboard/user/{id}/context"}
    assert by_id == {route.path for route in BY_USER if "{board}" not in route.path}
    for route in ROUTES:
        assert ("{id}" in route.path) == (route in BY_USER or route.name == "put_user"), route
        for struct in structs_of(route.body):
            names = struct.__struct_fields__
            assert "userId" not in names or "externalId" in names, (route, struct)


def call(caller: Caller, route: Route, named: object, board: str) -> Answer:
    bodies: dict[str, object] = {
        "set_score": {"score": 7},
        "change_entry": {"score": 7},
        "update_user": {"imageUrl": None},
    }
    path = path_of(route, id=named, board=board.rpartition("/")[2])
    return caller.call(route.method, path, bodies[route.name] if route.body else None)


def without_ids(answer: Answer) -> tuple[int, str]:
    """The status and the body, without what differs between two users with the same scores."""
    return answer.status, re.sub(r'"(rank|userId|username|externalId)":("[^"]*"|\d+),?', "", answer.body.decode())


@pytest.mark.parametrize("route", BY_USER, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("on", ["default", "another"])
def test_every_route_answers_by_external_id_as_by_number(caller: Caller, route: Route, on: str) -> None:
    board = new_board(caller) if on == "another" else "/boards/default"
    first, second = new_id(), new_id()
    numbers = made(caller, first), made(caller, second)
    if on == "another":
        for number in numbers:
            assert caller.post(f"{board}/users/{number}/score", {"score": 7}).status == 200
    by_number, by_id = call(caller, route, numbers[0], board), call(caller, route, at(second), board)
    if "context" not in route.path:
        assert without_ids(by_id) == without_ids(by_number)
    assert by_id.status < 300 or (on, route.name) == ("default", "remove_entry"), by_id
    if b"userId" in by_id.body:
        answer = by_id.json()
        assert answer.get("user", answer)["externalId"] == second


@pytest.mark.parametrize("route", BY_USER, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("on", ["default", "another", "missing"])
def test_an_unknown_external_id_is_as_an_unknown_number(caller: Caller, route: Route, on: str) -> None:
    board = {"default": "/boards/default", "another": new_board(caller), "missing": "/boards/missing"}[on]
    by_number, by_id = call(caller, route, INT32_MAX, board), call(caller, route, at(new_id()), board)
    assert (by_id.status, by_id.code) == (by_number.status, by_number.code)
    assert by_id.status in {404, 409}


@pytest.mark.parametrize("route", BY_USER, ids=lambda route: f"{route.method} {route.path}")
def test_a_hidden_user_is_as_an_unknown_one(caller: Caller, other: Caller, route: Route) -> None:
    board, external_id, unknown = new_board(caller), new_id(), new_id()
    number = made(caller, external_id)
    caller.get(f"/users/{at(external_id)}")
    assert caller.call("PATCH", f"/users/{at(external_id)}", {"hidden": True}).json()["hidden"]
    for each in (caller, other):
        answer, missing = call(each, route, at(external_id), board), call(each, route, at(unknown), board)
        if route.method == "GET":
            assert answer.status == 404
            assert answer.body.replace(external_id.encode(), b"") == missing.body.replace(unknown.encode(), b"")
        elif route.name in {"set_score", "change_entry"}:
            assert answer.json()["userId"] == number


def test_answers_about_users_without_an_external_id_do_not_mention_it(caller: Caller) -> None:
    user_id, board = caller.create(f"plain {next(_numbers)}"), new_board(caller)
    answers = [
        caller.post(f"/users/{user_id}/score", {"score": 2**40}),
        caller.post(f"{board}/users/{user_id}/score?rank=true", {"score": 5}),
        caller.post(f"{board}/scores", {"scores": [{"userId": user_id, "score": 6}]}),
        caller.call("PATCH", f"/users/{user_id}", {"hidden": False}),
        *map(caller.get, (f"/users/{user_id}", f"{board}/users/{user_id}", f"{board}/leaderboard/top/3")),
        *map(caller.get, (f"{board}/leaderboard", f"/leaderboard?users={user_id}", "/leaderboard/top/1")),
    ]
    for answer in answers:
        assert answer.status == 200
        assert b"externalId" not in answer.body


def test_every_answer_about_a_user_has_its_external_id(caller: Caller) -> None:
    external_id, board = new_id(), new_board(caller)
    created = caller.post("/users", {"username": external_id, "score": 2**50, "externalId": external_id})
    assert created.headers["location"] == f"/users/{created.json()['userId']}"
    user_id = created.json()["userId"]
    name = quote(external_id)
    answers = [
        created,
        caller.post(f"/users/{user_id}/score", {"score": 2**51}),
        caller.post(f"{board}/users/{user_id}/score", {"score": 4}),
        caller.post(f"{board}/users/{user_id}/score?rank=true", {"score": 5}),
        caller.post(f"{board}/scores", {"scores": [{"userId": user_id, "score": 6}]}),
        caller.call("PATCH", f"/users/{user_id}", {"hidden": False}),
        *map(caller.get, (f"/users/{user_id}", f"/users?username={name}", f"/users?prefix={name}")),
        *map(caller.get, ("/leaderboard/top/1", "/leaderboard?limit=1", f"/leaderboard?users={user_id}")),
        *map(caller.get, (f"{board}/leaderboard/top/1", f"{board}/leaderboard/user/{user_id}/context")),
    ]
    for answer in answers:
        assert answer.body.count(f'"externalId":{json.dumps(external_id)}'.encode()) == 1, answer


# Putting a user


def test_putting_a_user_again_changes_its_name_and_image(caller: Caller, other: Caller) -> None:
    external_id = new_id()
    image = "https://img.example.com/1"
    first = put(caller, external_id, username="put once", imageUrl=image)
    assert (first.status, first.headers["location"]) == (201, f"/users/{first.json()['userId']}")
    user_id = first.json()["userId"]
    expected = {
        "userId": user_id,
        "username": "put once",
        "imageUrl": image,
        "score": 0,
        "externalId": external_id,
    }
    assert first.json() == expected
    assert caller.post(f"/users/{at(external_id)}/score", {"score": 3}).json()["previousScore"] == 0
    for each in (other, caller):
        again = put(each, external_id, username="put once", imageUrl=image)
        assert (again.status, again.json()) == (200, first.json() | {"score": 3})
    renamed = put(other, external_id, username="put twice")
    assert renamed.json() == first.json() | {"score": 3, "username": "put twice", "imageUrl": None}
    shown = caller.get(f"/users/{at(external_id)}").json()
    assert (shown["username"], shown["imageUrl"]) == ("put twice", None)


def test_putting_a_user_with_the_name_of_another_changes_nothing(caller: Caller) -> None:
    taken, external_id, unknown = f"taken {next(_numbers)}", new_id(), new_id()
    caller.create(taken)
    made(caller, external_id)
    for each in (external_id, unknown):
        refused(put(caller, each, username=taken), "username_taken")
    assert caller.get(f"/users/{at(external_id)}").json()["username"] != taken
    refused(caller.get(f"/users/{at(unknown)}"), "user_not_found")


def test_a_number_cannot_be_put(caller: Caller) -> None:
    user_id = made(caller, new_id())
    refused(caller.call("PUT", f"/users/{user_id}", {"username": "x"}), "invalid_parameter")


def test_an_external_id_is_given_once(caller: Caller, other: Caller) -> None:
    external_id, second = new_id(), new_id()
    user_id, other_id = caller.create(f"given {external_id}"), made(caller, second)
    assert caller.get(f"/users/{user_id}").status == 200
    path = f"/users/{user_id}"
    given = caller.call("PATCH", path, {"externalId": external_id, "username": f"got {external_id}"})
    assert (given.json()["externalId"], given.json()["username"]) == (external_id, f"got {external_id}")
    for each in (other, caller):
        assert each.get(f"/users/{at(external_id)}").json()["externalId"] == external_id
        assert each.call("PATCH", path, {"externalId": external_id}).status == 200
    for another in (new_id(), second):
        refused(caller.call("PATCH", path, {"externalId": another, "username": "not this"}), "external_id_fixed")
    assert caller.get(path).json()["username"] == f"got {external_id}"
    user_id = caller.create(f"without {external_id}")
    refused(caller.call("PATCH", f"/users/{user_id}", {"externalId": second}), "external_id_taken")
    refused(caller.post("/users", {"username": "new one", "externalId": second}), "external_id_taken")
    assert caller.get(f"/users/{at(second)}").json()["userId"] == other_id


# A score that creates its user

CHANGES = ("default", "default by board", "one of many on default", "score", "increment", "one of many")


def change(
    caller: Caller, kind: str, board: str, external_id: str, number: object, key: str = "", **members: object
) -> Any:
    """Sends a score of a user; returns the answer's body, or that of the item."""
    of_default = "default" in kind
    path = "/boards/default" if of_default and kind != "default" else "" if of_default else board
    body: dict[str, object] = {"increment" if "sum" in board or kind == "increment" else "score": number} | members
    headers = [("Idempotency-Key", key)] if key else []
    if "many" in kind:
        body = {"scores": [{"externalId": external_id} | body]}
        answer = caller.send("POST", f"{path}/scores", json.dumps(body).encode(), headers)
        return answer.json()["results"][0] if answer.status == 200 else answer.json()
    path = f"{path}/users/{at(external_id)}/score"
    return caller.send("POST", path, json.dumps(body).encode(), headers).json()


@pytest.fixture(params=CHANGES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(caller: Caller, kind: str) -> str:
    """A board that takes this kind of change, with an upper bound."""
    return new_board(caller, keeps="sum" if kind == "increment" else "last", highest=1000)


def code_of(answer: Any) -> str:
    return str(answer.get("error", answer).get("code", ""))


def test_a_score_with_a_name_creates_its_user(caller: Caller, other: Caller, kind: str, target: str) -> None:
    external_id, name = new_id(), f"scored {next(_numbers)}"
    assert code_of(change(caller, kind, target, external_id, 5)) == "user_not_found"
    first = change(caller, kind, target, external_id, 5, username=name)
    assert (first["externalId"], first["username"], first["imageUrl"]) == (external_id, name, None)
    assert (first["score"], first["previousScore"]) == (5, 0 if "default" in kind else None)
    # It exists now, and keeps its name.
    again = change(other, kind, target, external_id, 6, username="another name")
    assert (again["userId"], again["username"]) == (first["userId"], name)
    assert (again["score"], again["previousScore"]) == (11 if kind == "increment" else 6, 5)
    for each in (caller, other):
        assert each.get(f"/users/{at(external_id)}").json()["score"] == (6 if "default" in kind else 0)
        if "default" not in kind:
            assert each.get(f"{target}/users/{at(external_id)}").json()["score"] == again["score"]


def test_a_refused_score_creates_no_user(caller: Caller, kind: str, target: str) -> None:
    external_id, taken = new_id(), f"scored {next(_numbers)}"
    caller.create(taken)
    assert code_of(change(caller, kind, target, external_id, 5, username=taken)) == "username_taken"
    too_much = 2**60 if "default" in kind else 1001
    assert code_of(change(caller, kind, target, external_id, too_much, username=f"{taken}!")) == "invalid_field"
    assert caller.get(f"/users/{at(external_id)}").code == "user_not_found"
    assert caller.get(f"/users?username={quote(taken + '!')}").code == "user_not_found"


def test_a_score_with_a_key_creates_its_user_once(caller: Caller, other: Caller, kind: str, target: str) -> None:
    external_id, name, key = new_id(), f"scored {next(_numbers)}", f"key-{next(_numbers)}"
    first = change(caller, kind, target, external_id, 5, key, username=name)
    assert change(caller, kind, target, external_id, 6)["score"] in {6, 11}
    for each in (other, caller):
        assert change(each, kind, target, external_id, 5, key, username=name) == first
        assert code_of(change(each, kind, target, external_id, 7, key, username=name)) == "idempotency_key_reused"
    assert caller.call("DELETE", f"/users/{at(external_id)}").status == 204
    assert code_of(change(caller, kind, target, external_id, 5, key, username=name)) == "user_not_found"


def test_many_new_users_of_one_request_and_each_failure_is_of_its_item(caller: Caller) -> None:
    board, prefix = new_board(caller), new_id()
    caller.create(f"taken by {prefix}")
    known = made(caller, f"{prefix}/known")
    items: list[dict[str, object]] = [
        {"externalId": f"{prefix}/{n}", "username": f"{prefix} {n}", "score": n} for n in range(300)
    ]
    items[7] |= {"username": f"taken by {prefix}"}
    items += [{"userId": known, "score": 1}, {"externalId": f"{prefix}/known", "score": 2}]
    del items[9]["username"]
    results = caller.post(f"{board}/scores", {"scores": items}).json()["results"]
    assert len(results) == len(items)
    codes = {n: result["error"]["code"] for n, result in enumerate(results) if "error" in result}
    assert codes == {7: "username_taken", 9: "user_not_found"}
    assert results[7].keys() == {"externalId", "error"}
    assert results[7]["externalId"] == f"{prefix}/7"
    assert {results[-1]["userId"], results[-2]["userId"]} == {known}
    assert caller.get(f"{board}/leaderboard?limit=1").json()["total"] == len(items) - 3


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"score": 1}, "userId"),
        ({"userId": 1, "externalId": "a", "score": 1}, "externalId"),
        ({"userId": 1, "username": "a", "score": 1}, "username"),
        ({"externalId": "a", "username": " ", "score": 1}, "username"),
        ({"externalId": "a", "username": "b"}, "score"),
    ],
    ids=short,
)
def test_a_wrong_item_is_refused(caller: Caller, item: object, field: str) -> None:
    refused_field(caller.post("/boards/default/scores", {"scores": [item]}), f"scores[0].{field}")


def test_an_external_id_may_be_there_once(caller: Caller) -> None:
    items = [{"externalId": "1", "score": 1}, {"userId": 1, "score": 1}, {"externalId": "1", "score": 2}]
    refused_field(caller.post("/boards/default/scores", {"scores": items}), "scores[2].externalId")


def test_a_name_beside_the_score_of_a_number_is_refused(caller: Caller) -> None:
    user_id, board = made(caller, new_id()), new_board(caller)
    for path in ("", "/boards/default", board):
        refused_field(caller.post(f"{path}/users/{user_id}/score", {"score": 1, "username": "x"}), "username")


# Several processes


def together(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_two_processes_that_put_one_new_id_make_one_user(caller: Caller, other: Caller) -> None:
    for _ in range(20):
        external_id = new_id()
        answers = together(*(partial(put, each, external_id) for each in (caller, other)))
        assert sorted(answer.status for answer in answers) == [200, 201]
        assert len({answer.json()["userId"] for answer in answers}) == 1


def test_two_processes_whose_scores_create_one_user_both_count(
    caller: Caller, other: Caller, kind: str, target: str
) -> None:
    for _ in range(10):
        external_id = new_id()
        results = together(
            *(
                partial(change, each, kind, target, external_id, 5, username=f"{external_id} by {n}")
                for n, each in enumerate((caller, other))
            )
        )
        assert len({result["userId"] for result in results}) == 1, results
        assert {result["score"] for result in results} == ({5, 10} if kind == "increment" else {5})


def test_a_score_that_creates_while_another_process_erases(
    caller: Caller, other: Caller, kind: str, target: str
) -> None:
    external_id = new_id()
    user_id = made(caller, external_id)
    for n in range(20):
        name = f"again {external_id} {n}"
        erased, result = together(
            partial(other.call, "DELETE", f"/users/{at(external_id)}"),
            partial(change, caller, kind, target, external_id, 5, username=name),
        )
        assert erased.status == 204
        assert code_of(result) == "", result
        answer = caller.get(f"/users/{at(external_id)}")
        # Either the score was the last one of the erased user, or it has created the next one.
        assert (answer.code == "user_not_found") == (result["userId"] == user_id), (answer, result)
        user_id = result["userId"] if answer.status == 200 else made(caller, external_id)


def test_an_id_that_was_freed_is_the_new_user_for_every_process(caller: Caller, other: Caller) -> None:
    external_id, board = new_id(), new_board(caller)
    path = at(external_id)
    for n in range(5):
        user_id = made(caller if n % 2 else other, external_id)
        for each in (other, caller):
            assert each.get(f"/users/{path}").json()["userId"] == user_id
            assert each.get(f"/leaderboard/user/{path}/context").json()["user"]["userId"] == user_id
            (friend,) = each.get(f"/leaderboard?users={path}").json()["users"]
            assert friend["userId"] == user_id
            assert each.get(f"{board}/users/{path}").code == "not_on_board"
            assert each.post(f"/users/{path}/score", {"score": 1}).json()["userId"] == user_id
        assert other.post(f"{board}/users/{path}/score", {"score": 1}).json()["userId"] == user_id
        assert caller.get(f"{board}/users/{path}").json()["userId"] == user_id
        assert other.get(f"/users/{path}/boards").json()["boards"][-1:] == ["default"]
        assert (other if n % 2 else caller).call("DELETE", f"/users/{path}").status == 204
        for each in (caller, other):
            for gone in (f"/users/{path}", f"/leaderboard/user/{path}/context", f"/users/{path}/boards"):
                assert each.get(gone).code == "user_not_found"
            assert each.get(f"/leaderboard?users={path}").json()["users"] == []
            assert each.post(f"/users/{path}/score", {"score": 2}).code == "user_not_found"


@pytest.mark.parametrize("path", ["/users/{}", "/leaderboard/user/{}/context", "/users/{}/score"])
def test_a_process_that_remembers_an_erased_user_finds_the_next_one(
    caller: Caller, other: Caller, path: str
) -> None:
    external_id = new_id()

    def ask() -> Answer:
        found = path.format(at(external_id))
        return other.post(found, {"score": 1}) if path.endswith("/score") else other.get(found)

    made(caller, external_id)
    assert ask().status == 200
    assert caller.call("DELETE", f"/users/{at(external_id)}").status == 204
    user_id = made(caller, external_id)
    answer = ask()
    assert answer.status == 200, answer
    assert answer.json().get("user", answer.json())["userId"] == user_id


# Who may do it

WRITER, POINTS, ADMIN = "a-key-that-writes", "a-key-that-writes-points", "a-key-of-operators"
SECRET = "a-secret-of-an-issuer-of-tokens-with-32-bytes"  # pragma: allowlist secret
KEYS = f"writer:write:{WRITER},points:write@points:{POINTS},ops:admin:{ADMIN}"


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Caller], caller: Caller) -> Caller:
    assert caller.call("PUT", "/boards/points", {}).status == 201
    return start(
        api_keys=SecretStr(KEYS), jwt_algorithms="HS256", jwt_key=SecretStr(SECRET), allow_user_writes="on"
    )


def call_as(caller: Caller, credential: str, method: str, path: str, value: object) -> Answer:
    return caller.send(method, path, json.dumps(value).encode(), [("Authorization", f"Bearer {credential}")])


def token(subject: str) -> str:
    return jwt.encode(claims(sub=subject), SECRET, "HS256")


def test_creating_by_a_score_needs_what_creating_a_user_needs(caller: Caller, guarded: Caller) -> None:
    external_id = new_id()
    made(caller, external_id)
    path = f"/boards/points/users/{at(external_id)}/score"
    for credential in (WRITER, POINTS, token(f"@{external_id}")):
        assert call_as(guarded, credential, "POST", path, {"score": 1}).status == 200
    named = {"score": 1, "username": "new"}
    many = {"scores": [{"externalId": external_id} | named]}
    assert call_as(guarded, WRITER, "POST", path, named).status == 200
    for credential in (POINTS, token(f"@{external_id}")):
        refused(call_as(guarded, credential, "POST", path, named), "forbidden")
    refused(call_as(guarded, POINTS, "POST", "/boards/points/scores", many), "forbidden")
    refused(
        call_as(guarded, token(f"@{external_id}"), "POST", f"/users/{at(external_id)}/score", named), "forbidden"
    )
    put_path = f"/users/{at(external_id)}"
    for credential in (POINTS, ADMIN, token(f"@{external_id}")):
        refused(call_as(guarded, credential, "PUT", put_path, {"username": "other"}), "forbidden")
    assert call_as(guarded, WRITER, "PUT", put_path, {"username": f"other {external_id}"}).status == 200


def test_a_token_is_for_the_paths_with_its_subject(caller: Caller, guarded: Caller) -> None:
    external_id = new_id()
    user_id = made(caller, external_id)
    spellings = {f"@{external_id}": at(external_id), str(user_id): str(user_id)}
    for subject, own in spellings.items():
        for segment in (*spellings.values(), at(new_id()), "@1", at(f"@{external_id}")):
            answer = call_as(guarded, token(subject), "POST", f"/users/{segment}/score", {"score": 1})
            assert answer.code == ("" if segment == own else "forbidden"), (subject, segment)
    for subject in ("@", "@\n", f"@{'x' * 129}", external_id):
        assert call_as(guarded, token(subject), "POST", f"/users/{at(external_id)}/score", {}).status == 401
