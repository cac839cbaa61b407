"""The headers Host and Origin: what a page of another site can make a browser do."""

import http.client
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.http.routes import ROUTES
from tests.http.contract import Answer, Caller, check_problem, exchange, path_of
from tests.system import dev, sql

KEY = "a-key-of-more-than-16-characters"
SECRET = "a secret of at least thirty-two bytes, for users' tokens"  # pragma: allowlist secret
JSON_HEADERS = ("Content-Type: application/json", "Connection: close")

_numbers = count(1)


def send(
    caller: Caller, line: str, body: str = "", headers: Iterable[str] = (), host: str | None = "localhost"
) -> Answer:
    """Sends exactly these headers, and a Host unless it is None."""
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
    """Returns the statuses and codes of both routes that write."""
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
        # A proxy terminates TLS, and some proxies add the port.
        ("board.example", "https://board.example"),
        ("board.example:443", "https://board.example"),
        ("board.example", "https://board.example:443"),
        ("board.example:80", "http://board.example"),
        ("board.example:8443", "https://board.example:8443"),
    ],
)
def test_without_keys_the_own_page_may_write(open_board: Caller, host: str, origin: str) -> None:
    assert writes(open_board, origin, host=host) == DONE


def test_without_keys_a_client_without_origin_may_write(open_board: Caller) -> None:
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


def test_two_origins_are_refused(open_board: Caller) -> None:
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
def test_no_other_header_replaces_host(open_board: Caller, header: str) -> None:
    assert writes(open_board, "https://evil.example", headers=[header]) == REFUSED
    assert writes(open_board, "http://localhost", headers=[header]) == DONE


def test_reads_may_have_any_origin(open_board: Caller) -> None:
    for path in ("/users/1", "/leaderboard/top/3", "/leaderboard", "/", "/metrics", "/livez"):
        assert send(open_board, f"GET {path}", headers=["Origin: https://evil.example"]).status == 200


def test_the_body_of_a_refused_write_is_read(open_board: Caller) -> None:
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
def test_with_keys_the_origin_does_not_matter(
    start: Callable[..., Caller], open_board: Caller, guard: dict[str, object]
) -> None:
    caller = start(**guard)
    for origin in ("https://evil.example", "null", "http://localhost"):
        assert writes(caller, origin) == {(401, "unauthorized")}
        if "api_keys" in guard:
            assert writes(caller, origin, headers=[f"Authorization: Bearer {KEY}"]) == DONE


def test_rate_limits_do_not_disable_the_origin_check(start: Callable[..., Caller], open_board: Caller) -> None:
    caller = start(rate_limit_per_address="1000/second")
    assert writes(caller, "null") == REFUSED
    assert writes(caller, "http://localhost") == DONE


# Allowed hosts

HOSTS = "Board.Example 127.0.0.1 [::1]"
MISDIRECTED = (421, "misdirected_request")


@pytest.fixture(scope="module")
def named(start: Callable[..., Caller], open_board: Caller) -> Caller:
    """A process without keys that serves some hosts only."""
    return start(allowed_hosts=HOSTS)


def paths() -> list[tuple[str, str]]:
    """Returns method and path of every row of the route table."""
    return [(route.method, path_of(route)) for route in ROUTES]


@pytest.mark.parametrize("call", paths(), ids=" ".join)
@pytest.mark.parametrize(
    "host", ["evil.example:3000", "board.example.evil.example", "xboard.example", "127.0.0.2", "[::2]", None]
)
def test_a_request_for_another_host_is_refused(named: Caller, call: tuple[str, str], host: str | None) -> None:
    answer = send(named, " ".join(call), '{"username":"other"}', host=host)
    if call[1] in {"/livez", "/readyz"}:
        # A health check uses the address as the host.
        assert answer.status == 200
    else:
        assert (answer.status, answer.code) == MISDIRECTED


@pytest.mark.parametrize("host", ["board.example", "BOARD.example:8443", "127.0.0.1:1", "[::1]:3000", "[::1]"])
def test_a_request_for_one_of_the_hosts_is_answered(named: Caller, host: str) -> None:
    assert send(named, "GET /leaderboard/top/3", host=host).status == 200
    assert writes(named, host=host) == DONE
    assert writes(named, f"http://{host}", host=host) == DONE
    assert writes(named, "http://evil.example", host=host) == REFUSED


def test_dns_rebinding_is_refused(named: Caller, open_board: Caller) -> None:
    """The page's origin equals its Host: only the name shows the attack."""
    host, origin = "evil.example:3000", "http://evil.example:3000"
    assert writes(named, origin, host=host) == {MISDIRECTED}
    assert writes(open_board, origin, host=host) == DONE, "where all hosts are allowed"


def test_the_host_is_checked_before_the_key(start: Callable[..., Caller], open_board: Caller) -> None:
    caller = start(allowed_hosts=HOSTS, api_keys=SecretStr(f"all:read+write+admin:{KEY}"), reads="key")
    key = [f"Authorization: Bearer {KEY}"]
    for headers in ([], key):
        assert writes(caller, host="evil.example", headers=headers) == {MISDIRECTED}
        assert send(caller, "GET /users/1", headers=headers, host="evil.example").code == MISDIRECTED[1]
    assert writes(caller, host="board.example", headers=key) == DONE
    assert send(caller, "GET /users/1", headers=key, host="board.example").status == 200


# `leaderboard dev`


def status(port: int, host: str, path: str = "/leaderboard/top/3", address: str = "127.0.0.1") -> int:
    """Returns the status of a GET for that host; 0 if there is no response."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_dev_serves_this_machine_only(data_dir: Path) -> None:
    with dev(data_dir) as (port, _):
        for host in ("localhost", "127.0.0.1", "[::1]"):
            assert status(port, f"{host}:{port}") == 200
            assert status(port, host) == 200
        for host in ("evil.example", "localhost.evil.example", "0.0.0.0", "127.0.0.2"):
            assert status(port, f"{host}:{port}") == 421
            assert status(port, host, "/") == 421


@pytest.mark.parametrize(
    ("variables", "answered"),
    [
        ({"HOST": "0.0.0.0"}, {"evil.example": 200, "localhost": 200}),
        ({"ALLOWED_HOSTS": ""}, {"evil.example": 421, "localhost": 200}),
        ({"ALLOWED_HOSTS": "board.test"}, {"board.test": 200, "localhost": 421}),
        ({"HOST": "0.0.0.0", "ALLOWED_HOSTS": "board.test"}, {"board.test": 200, "localhost": 421}),
    ],
    ids=str,
)
def test_dev_serves_the_hosts_that_are_set(
    data_dir: Path, variables: dict[str, str], answered: dict[str, int]
) -> None:
    with dev(data_dir, **variables) as (port, _):
        assert {host: status(port, f"{host}:{port}") for host in answered} == answered
