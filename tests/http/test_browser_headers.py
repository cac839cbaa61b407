"""The headers that restrict a browser are on every response: `Caller` checks each one for them.

The requests are made from the route table, so a new route is checked too.
"""

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from leaderboard.http import problems
from leaderboard.http.board_bodies import MAX_ITEMS_BYTES
from leaderboard.http.requests import MAX_BODY_BYTES
from leaderboard.http.route import Route
from leaderboard.http.routes import ROUTES
from tests.http.contract import Answer, Caller, check_browser_is_bound, path_of
from tests.system import free_port

PAGE = [("Accept", "text/html")]
NO_STORE = {"no-store"}
NO_CACHE = {"no-cache"}
FOR_EVER = {"public", "max-age=31536000", "immutable"}

KEY = "a-key-of-more-than-16-characters"


def path_to(caller: Caller, route: Route, user_id: int, number: int) -> str:
    """A path of the route. With the number 1, there is what it names."""
    if "{name}" not in route.path or number != 1:
        return path_of(route, id=user_id if number == 1 else number, n=number, board="board")
    page = caller.send("GET", "/docs", headers=PAGE).body.decode()
    return page.partition('href="')[2].partition('"')[0]


def bodies(route: Route, user_id: int) -> list[bytes | None]:
    """Bodies, of which one is good for the route."""
    good = {
        "change_entries": b'{"scores":[{"userId":%d,"score":1}]}' % user_id,
        "end_season": b'{"season":1}',
        "update_user": b'{"hidden":false}',
    }.get(route.name, b"{}")
    size = MAX_ITEMS_BYTES if route.name == "change_entries" else MAX_BODY_BYTES
    return [None, b"", good, b'{"username":"ada","score":1}', b'{"score":1}', b" " * (size + 1)]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_with_every_method_and_body(caller: Caller, route: Route) -> None:
    if route.name == "find_users":
        caller.post("/users", {"username": "ada"})
    user_id = caller.create(f"for {route.name}")
    assert caller.call("PUT", "/boards/board", {}).status in {200, 201}
    assert caller.post(f"/boards/board/users/{user_id}/score", {"score": 1}).status == 200
    seen: set[int] = set()
    for number in (1, 0, 2147483647):
        path = path_to(caller, route, user_id, number)
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            for body in bodies(route, user_id):
                # `send` checks the response.
                answer = caller.send(method, path, body, PAGE)
                seen.add(answer.status)
                kept = set(answer.headers["cache-control"].split(", "))
                is_asset = answer.status == 200 and "{name}" in route.path
                allowed = FOR_EVER if is_asset else NO_CACHE if "etag" in answer.headers else NO_STORE
                assert kept == allowed, answer
    assert {route.status, 405} <= seen
    assert route.body is None or {400, 413, 422} <= seen


def test_paths_without_a_route(caller: Caller) -> None:
    for method in ("GET", "HEAD", "POST"):
        assert caller.send(method, "/nothing/here").status == 404


def test_responses_without_stores_or_access(start: Callable[..., Caller]) -> None:
    keyed = ("Authorization", f"Bearer {KEY}")
    alone = start(db_port=free_port(), wait_for="unavailable", api_keys=SecretStr(KEY))
    assert alone.get("/users/1").status == 503
    assert alone.get("/readyz").status == 503
    assert alone.post("/users", {"username": "ada"}).status == 401
    assert alone.send("POST", "/users", b"{}", [("Content-Type", "text/plain"), keyed]).status == 415


def test_the_response_to_an_unexpected_error() -> None:
    response = problems.response(Exception("a bug"))
    assert response.status == 500
    headers = {name.decode(): value.decode() for name, value in response.headers}
    check_browser_is_bound(Answer(response.status, {**headers, "server": "granian"}, response.body))
