"""Which host is asked, and by which site's page: what a browser can be made to do by a page of somebody else's."""

from collections.abc import Callable, Iterable
from itertools import count

import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from tests.http.contract import Answer, Caller, check_problem, exchange
from tests.system import sql

KEY = "a-key-of-more-than-16-characters"
SECRET = "a secret of at least thirty-two bytes, for users' tokens"  # pragma: allowlist secret
JSON_HEADERS = ("Content-Type: application/json", "Connection: close")

_numbers = count(1)


def send(
    caller: Caller, line: str, body: str = "", headers: Iterable[str] = (), host: str | None = "localhost"
) -> Answer:
    """Send exactly these headers and a Host, unless it is None."""
    lines = [f"{line} HTTP/1.{0 if host is None else 1}", *([] if host is None else [f"Host: {host}"]), *headers]
    lines += [*JSON_HEADERS, f"Content-Length: {len(body)}", "", body]
    answer = exchange(caller.api, "\r\n".join(lines).encode("latin-1"))
    assert answer is not None
    if answer.status >= 400:
        check_problem(answer)
    return answer


def writes(
    caller: Caller, *origins: str, host: str | None = "localhost", headers: Iterable[str] = ()
) -> set[tuple[int, str]]:
    """What both calls that write answer: statuses and codes."""
    sent = [*(f"Origin: {origin}" for origin in origins), *headers]
    number = next(_numbers)
    answers = (
        send(caller, "POST /users", f'{{"username":"name {number}"}}', sent, host),
        send(caller, "POST /users/1/score", f'{{"score":{number}}}', sent, host),
    )
    return {(answer.status, answer.code) for answer in answers}


DONE = {(201, ""), (200, "")}
REFUSED = {(403, "cross_origin_write")}

# Writes of pages


@pytest.fixture(scope="module")
def open_board(module_settings: Settings, caller: Caller) -> Caller:
    """A process without keys, and a user with the id 1."""
    sql(module_settings, "INSERT INTO users (user_name) VALUES ('one')")
    return caller


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost", "http://localhost"),
        ("localhost:3000", "http://localhost:3000"),
        ("LocalHost:3000", "HTTP://localhost:3000"),
        ("127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("[::1]", "http://[::1]"),
        # TLS is ended before us, and some proxies add the port.
        ("board.example", "https://board.example"),
        ("board.example:443", "https://board.example"),
        ("board.example", "https://board.example:443"),
        ("board.example:80", "http://board.example"),
        ("board.example:8443", "https://board.example:8443"),
    ],
)
def test_without_keys_our_own_page_may_write(open_board: Caller, host: str, origin: str) -> None:
    assert writes(open_board, origin, host=host) == DONE


def test_without_keys_a_client_that_is_no_browser_may_write(open_board: Caller) -> None:
    assert writes(open_board) == DONE
    assert writes(open_board, host=None) == DONE, "HTTP/1.0"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:3000", "https://evil.example"),
        ("localhost:3000", "http://localhost"),
        ("localhost:3000", "http://localhost:3001"),
        ("localhost:3000", "http://127.0.0.1:3000"),
        ("localhost", "http://localhost:443"),
        ("localhost:443", "http://localhost"),
        ("board.example", "https://board.example.evil.example"),
        ("board.example", "https://evil.board.example"),
        ("board.example", "https://evil-board.example"),
        ("board.example", "https://board.example@evil.example"),
        ("board.example", "https://board.example/"),
        ("board.example", "https://board.example https://evil.example"),
        ("board.example", "https://board.example, https://evil.example"),
        ("board.example", "chrome-extension://board.example"),
        ("board.example", "file://board.example"),
        ("board.example", "//board.example"),
        ("board.example", "board.example"),
        ("[::1]:3000", "http://[::2]:3000"),
        ("localhost", "null"),
        ("null", "null"),
        ("localhost", "NULL"),
        ("localhost", ""),
        ("localhost", "http://"),
        ("localhost", "\xff"),
        ("localhost", "x" * 50_000),
        (None, "null"),
        (None, "http://"),
        (None, "http://:80"),
        (None, "https://evil.example"),
    ],
)
def test_without_keys_the_page_of_another_site_may_not_write(
    open_board: Caller, module_settings: Settings, host: str | None, origin: str
) -> None:
    before = sql(module_settings, "SELECT * FROM users ORDER BY user_id")
    assert writes(open_board, origin, host=host) == REFUSED
    assert sql(module_settings, "SELECT * FROM users ORDER BY user_id") == before


def test_two_origins_are_another_sites(open_board: Caller) -> None:
    assert writes(open_board, "http://localhost", "https://evil.example") == REFUSED
    assert writes(open_board, "http://localhost", "http://localhost") == REFUSED


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-Host: evil.example",
        "Forwarded: host=evil.example",
        "X-Host: evil.example",
        "X-Original-Host: e",
    ],
)
def test_no_other_header_says_which_host_is_asked(open_board: Caller, header: str) -> None:
    assert writes(open_board, "https://evil.example", headers=[header]) == REFUSED
    assert writes(open_board, "http://localhost", headers=[header]) == DONE


def test_reads_are_not_asked_where_they_come_from(open_board: Caller) -> None:
    for path in ("/users/1", "/leaderboard/top/3", "/leaderboard", "/", "/metrics", "/livez"):
        assert send(open_board, f"GET {path}", headers=["Origin: https://evil.example"]).status == 200


def test_a_refused_write_is_a_request_that_ends_where_it_says(open_board: Caller) -> None:
    origin = [("Origin", "null")]
    for body in (b"{", b"", b'{"username":5}', b"x" * 16_000):
        assert open_board.send("POST", "/users", body, origin).code == "cross_origin_write"
    assert open_board.get("/livez").status == 200


@pytest.mark.parametrize(
    "guard",
    [
        {"api_keys": SecretStr(KEY)},
        {"jwt_algorithms": "HS256", "jwt_key": SecretStr(SECRET)},
    ],
    ids=["API_KEYS", "JWT_KEY"],
)
def test_with_keys_the_key_decides(
    start: Callable[..., Caller], open_board: Caller, guard: dict[str, object]
) -> None:
    caller = start(**guard)
    for origin in ("https://evil.example", "null", "http://localhost"):
        assert writes(caller, origin) == {(401, "unauthorized")}
        if "api_keys" in guard:
            assert writes(caller, origin, headers=[f"Authorization: Bearer {KEY}"]) == DONE


def test_limits_by_address_leave_the_check_in_place(start: Callable[..., Caller], open_board: Caller) -> None:
    caller = start(rate_limit_per_address="1000/second")
    assert writes(caller, "null") == REFUSED
    assert writes(caller, "http://localhost") == DONE
