"""What binds a browser is on every answer of every route: `check_browser_is_bound`, which `Caller` does to each.

The answers are made from the route table, so a new route is looked at as soon as it is there.
"""

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from leaderboard.http import problems
from leaderboard.http.call import Call
from leaderboard.http.routes import CALLS
from tests.http.contract import Answer, Caller, check_browser_is_bound
from tests.system import free_port

PAGE = [("Accept", "text/html")]
NO_STORE = {"no-store"}
FOR_EVER = {"public", "max-age=31536000", "immutable"}

KEY = "a-key-of-more-than-16-characters"


def path_of(caller: Caller, call: Call, number: str) -> str:
    path = call.path.replace("{id}", number).replace("{n}", number)
    if "{name}" not in path:
        return path
    page = caller.send("GET", "/docs", headers=PAGE).body.decode()
    return page.partition('href="')[2].partition('"')[0] if number == "1" else path.replace("{name}", number)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path}")
def test_every_route_in_every_way(caller: Caller, call: Call) -> None:
    assert caller.post("/users", {"username": "the one with the id 1"}).status in (201, 409)
    seen: set[int] = set()
    for number in ("1", "0", "2147483647"):
        path = path_of(caller, call, number)
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
            for body in (None, b"", b"{}", b'{"username":"ada","score":1}', b'{"score":1}', b" " * 20_000):
                # Sending it is looking at it.
                answer = caller.send(method, path, body, PAGE)
                seen.add(answer.status)
                kept = set(answer.headers["cache-control"].split(", "))
                is_asset = answer.status == 200 and "{name}" in call.path
                assert kept == (FOR_EVER if is_asset else NO_STORE), answer
    assert {call.status, 405} <= seen
    assert call.method != "POST" or {400, 413, 422} <= seen


def test_what_is_no_route(caller: Caller) -> None:
    for method in ("GET", "HEAD", "POST"):
        assert caller.send(method, "/nothing/here").status == 404


def test_what_is_refused_for_other_reasons(start: Callable[..., Caller]) -> None:
    keyed = ("Authorization", f"Bearer {KEY}")
    alone = start(db_port=free_port(), wait_for="unavailable", api_keys=SecretStr(KEY))
    assert alone.get("/users/1").status == 503
    assert alone.get("/readyz").status == 503
    assert alone.post("/users", {"username": "ada"}).status == 401
    assert alone.send("POST", "/users", b"{}", [("Content-Type", "text/plain"), keyed]).status == 415


def test_even_a_bug_is_told_with_them() -> None:
    status, headers, body = problems.render(Exception("a bug"))
    assert status == 500
    names = {name.decode(): value.decode() for name, value in headers}
    check_browser_is_bound(Answer(status, {**names, "server": "granian"}, body))
