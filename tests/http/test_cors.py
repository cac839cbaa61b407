"""CORS: which pages of other sites may call the API, and what their browsers are allowed to show them."""

import json
from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr

from leaderboard.http.requests import MAX_BODY_BYTES
from leaderboard.http.routes import ROUTES
from tests.http.contract import Caller, exchange, path_of
from tests.system import free_port

GAME = "https://game.example"
LOCAL = "http://localhost:8080"
EVIL = "https://evil.example"
KEY = "a-key-of-more-than-16-characters"

Start = Callable[..., Caller]


@pytest.fixture(scope="module")
def listed(start: Start) -> httpx.Client:
    """A process without keys, which pages of two origins may call."""
    return start(cors_origins=f"{GAME} {LOCAL}").api.client


@pytest.fixture(scope="module")
def open_to_all(start: Start) -> httpx.Client:
    """A process without keys, which pages of every origin may call."""
    return start(cors_origins="*").api.client


def methods_by_path() -> list[tuple[str, set[str]]]:
    """Returns each path of the route table with its methods."""
    found: dict[str, set[str]] = {}
    for route in ROUTES:
        found.setdefault(route.path, set()).update({"GET", "HEAD"} if route.method == "GET" else {route.method})
    return list(found.items())


def listed_in(response: httpx.Response, name: str) -> set[str]:
    """Returns the items of a header that is a list, in lower case."""
    return {item.strip().lower() for item in response.headers.get(name, "").split(",") if item.strip()}


def preflight(client: httpx.Client, path: str, origin: str, method: str = "POST") -> httpx.Response:
    return client.options(path, headers={"Origin": origin, "Access-Control-Request-Method": method})


def assert_allowed(response: httpx.Response, origin: str) -> None:
    """Fails unless a browser shows this response, and its headers, to a page of the origin."""
    headers = response.headers
    assert headers.get_list("access-control-allow-origin") == [origin]
    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-credentials" not in headers
    assert len(headers.get_list("vary")) <= 1
    assert ("origin" in listed_in(response, "vary")) == (origin != "*")
    own = set(headers) - {"date", "server", "content-length", "vary", "connection", "content-security-policy"}
    unseen = {name for name in own if not name.startswith(("access-control-", "x-content-", "cross-origin-"))}
    readable = {"cache-control", "content-type", *listed_in(response, "access-control-expose-headers")}
    assert unseen - {"referrer-policy", "x-frame-options", "accept-encoding"} <= readable, (
        "a page can read the rest"
    )


def assert_not_allowed(response: httpx.Response) -> None:
    """Fails if a browser shows this response to a page of another site."""
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert listed_in(response, "vary") >= {"origin"}, "a cache must not take it for the answer to another origin"


# Preflights


@pytest.mark.parametrize(("path", "methods"), methods_by_path())
def test_a_preflight_names_the_methods_of_the_path(listed: httpx.Client, path: str, methods: set[str]) -> None:
    route = next(route for route in ROUTES if route.path == path)
    for spelling in (path_of(route), f"{path_of(route).partition('?')[0]}/"):
        response = preflight(listed, spelling, GAME, min(methods))
        assert response.status_code == 204
        assert response.content == b""
        assert_allowed(response, GAME)
        assert listed_in(response, "access-control-allow-methods") == {
            method.lower() for method in (*methods, "OPTIONS")
        }
        assert listed_in(response, "access-control-allow-headers") >= {"authorization", "content-type"}
        assert int(response.headers["access-control-max-age"]) > 0


def test_a_preflight_names_every_header_that_the_api_reads(listed: httpx.Client) -> None:
    allowed = listed_in(preflight(listed, "/users", GAME), "access-control-allow-headers")
    read = {"authorization", "content-type", "idempotency-key", "if-none-match", "last-event-id"}
    assert allowed == read, "and X-Forwarded-For must never be one of them"


def test_a_preflight_needs_neither_key_nor_limit_nor_database(start: Start) -> None:
    caller = start(
        cors_origins=GAME,
        api_keys=SecretStr(KEY),
        reads="key",
        rate_limit_per_address="1/hour",
        db_port=free_port(),
        wait_for="unavailable",
    )
    for _ in range(3):
        assert preflight(caller.api.client, "/users", GAME).status_code == 204


def test_the_preflight_of_another_origin_allows_nothing(listed: httpx.Client) -> None:
    for origin in (EVIL, "null", "http://game.example", f"{GAME}:8443", "https://game.example.evil.example", "x"):
        assert_not_allowed(preflight(listed, "/users", origin))


def test_a_preflight_of_a_path_without_route_lets_the_page_read_the_404(listed: httpx.Client) -> None:
    for path in ("/nothing/here", "/users/1%2Fscore"):
        response = preflight(listed, path, GAME, "PATCH")
        assert response.status_code == 204
        assert_allowed(response, GAME)
        assert "patch" in listed_in(response, "access-control-allow-methods")
        for method in ("PATCH", "OPTIONS"):
            refused = listed.request(method, path, headers={"Origin": GAME})
            assert refused.status_code == 404
            assert refused.json()["code"] == "not_found"
            assert_allowed(refused, GAME)


def test_options_without_origin_names_the_methods(listed: httpx.Client) -> None:
    response = listed.options("/users")
    assert (response.status_code, response.headers["allow"]) == (204, "POST, GET, HEAD, OPTIONS")
    assert_not_allowed(response)


# Every answer


def test_every_answer_is_readable_by_a_page_of_an_allowed_origin(listed: httpx.Client) -> None:
    user_id = listed.post("/users", json={"username": "every answer"}).json()["userId"]
    seen = set()
    for route in ROUTES:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "BREW"):
            for body in ("", "{", json.dumps({"username": "x", "score": 1}), " " * (MAX_BODY_BYTES + 1)):
                path = path_of(route, id=user_id if body else 2**31 - 1)
                media_type = "text/plain" if body == "{" else "application/json"
                # A body that is not read costs the connection.
                headers = {"Origin": LOCAL, "Content-Type": media_type, "Connection": "close"}
                response = listed.request(method, path, content=body, headers=headers)
                assert_allowed(response, LOCAL)
                seen.add(response.status_code)
    assert seen >= {200, 201, 404, 405, 413, 415, 422}


def test_refusals_are_readable_too(start: Start) -> None:
    limited = start(cors_origins=GAME, api_keys=SecretStr(KEY), rate_limit_per_address="1/hour").api
    page = {"Origin": GAME}
    # The one request that the limit allows was for the OpenAPI document.
    response = limited.client.get("/leaderboard/top/1", headers=page)
    assert (response.status_code, "retry-after" in response.headers) == (429, True)
    assert_allowed(response, GAME)
    named = start(cors_origins=GAME, api_keys=SecretStr(KEY), allowed_hosts="board.example 127.0.0.1").api
    for path, host, status in (("/users", "127.0.0.1", 401), ("/users", "evil.example", 421)):
        response = named.client.post(path, json={}, headers=page | {"Host": host})
        assert response.status_code == status
        assert_allowed(response, GAME)
    answer = exchange(named, f"GET / HTTP/1.1\r\nHost: a b\r\nOrigin: {GAME}\r\n\r\n".encode())
    assert answer is not None
    assert (answer.code, answer.headers["access-control-allow-origin"]) == ("invalid_host", GAME)


def test_answers_without_a_database_are_readable(start: Start) -> None:
    alone = start(cors_origins=GAME, db_port=free_port(), wait_for="unavailable").api.client
    for path in ("/leaderboard/top/1", "/readyz"):
        response = alone.get(path, headers={"Origin": GAME})
        assert response.status_code == 503
        assert_allowed(response, GAME)


def test_a_body_that_does_not_arrive_in_time_has_a_readable_answer(start: Start) -> None:
    api = start(cors_origins=GAME, request_timeout_ms=100).api
    head = f"POST /users HTTP/1.1\r\nHost: x\r\nOrigin: {GAME}\r\nContent-Type: application/json\r\n"
    answer = exchange(api, f"{head}Content-Length: 9\r\n\r\n{{".encode())
    assert answer is not None
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (408, GAME)


def test_an_answer_to_several_callers_has_the_origin_of_each(listed: httpx.Client) -> None:
    """The docs are one response for all of them."""
    for origin in (GAME, LOCAL):
        assert_allowed(listed.get("/docs", headers={"Origin": origin}), origin)
        assert_not_allowed(listed.get("/docs"))
        assert_not_allowed(listed.get("/docs", headers={"Origin": EVIL}))


def test_two_origins_are_none(listed: httpx.Client) -> None:
    response = listed.get("/users/1", headers=[("Origin", GAME), ("Origin", GAME)])
    assert_not_allowed(response)


def test_the_home_page_varies_by_both_headers(listed: httpx.Client) -> None:
    assert listed_in(listed.get("/", headers={"Origin": GAME}), "vary") == {"accept", "origin"}


def test_below_a_root_path(start: Start) -> None:
    below = start(cors_origins=GAME, root_path="/lb").api.client
    for path in ("/lb/users", "/users", "/lb/none"):
        response = preflight(below, path, GAME)
        assert response.status_code == 204
        assert_allowed(response, GAME)


# Every origin


def test_with_a_star_every_answer_allows_every_origin(open_to_all: httpx.Client) -> None:
    for origin in (GAME, EVIL, "null", None):
        headers = {"Origin": origin} if origin else {}
        for response in (
            open_to_all.get("/leaderboard/top/3", headers=headers),
            open_to_all.get("/none", headers=headers),
            open_to_all.options("/users", headers=headers),
        ):
            assert_allowed(response, "*")


# Writes without keys


def test_without_keys_an_allowed_origin_may_write_and_others_may_not(listed: httpx.Client) -> None:
    for number, origin in enumerate((GAME, LOCAL, EVIL, "null", "http://game.example")):
        response = listed.post("/users", json={"username": f"w{number}"}, headers={"Origin": origin})
        allowed = origin in {GAME, LOCAL}
        assert response.status_code == (201 if allowed else 403)
        if allowed:
            assert_allowed(response, origin)
            assert "location" in listed_in(response, "access-control-expose-headers")
        else:
            assert response.json()["code"] == "cross_origin_write"
            assert_not_allowed(response)
    own = str(listed.base_url).rstrip("/")
    assert listed.post("/users", json={"username": "own"}, headers={"Origin": own}).status_code == 201


def test_with_a_star_every_page_may_write(open_to_all: httpx.Client) -> None:
    for number, origin in enumerate((EVIL, "null")):
        body = {"username": f"star {number}"}
        assert open_to_all.post("/users", json=body, headers={"Origin": origin}).status_code == 201


# Without the setting


def test_without_the_setting_no_answer_has_a_header_of_cors(caller: Caller) -> None:
    client = caller.api.client
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        for path in ("/leaderboard/top/3", "/users", "/none", "/"):
            response = client.request(
                method, path, headers={"Origin": GAME, "Access-Control-Request-Method": "GET"}
            )
            assert not [name for name in response.headers if name.startswith("access-control-")]
            assert "origin" not in listed_in(response, "vary")
    assert client.options("/users", headers={"Origin": GAME}).status_code == 405
