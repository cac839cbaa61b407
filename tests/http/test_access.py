"""Access control and rate limits: every route with every credential, under every setting that matters.

The expectations repeat the route table, so that a new route fails here until it has one.
"""

import hashlib
import http.client
import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.http.route import Route
from leaderboard.http.routes import ROUTES
from leaderboard.tokens import LEEWAY_S
from leaderboard.web.pages import Pages
from tests.http.contract import Answer, Caller, path_of
from tests.system import ApiProcess, eventually, sql
from tests.tokens import by_hand, claims, hs256, pem

NEEDS = {
    ("GET", "/leaderboard/top/{n}"): "read",
    ("GET", "/leaderboard/user/{id}/context"): "read",
    ("GET", "/leaderboard"): "read",
    ("GET", "/users/{id}"): "read",
    ("POST", "/users/{id}/score"): "own score",
    ("POST", "/users"): "write",
    ("PUT", "/users/{id}"): "write",
    ("GET", "/users"): "read",
    ("PATCH", "/users/{id}"): "admin",
    ("DELETE", "/users/{id}"): "admin",
    ("GET", "/users/{id}/boards"): "read",
    ("GET", "/boards"): "read",
    ("GET", "/boards/{board}"): "read",
    ("PUT", "/boards/{board}"): "admin",
    ("DELETE", "/boards/{board}"): "admin",
    ("GET", "/boards/{board}/seasons"): "read",
    ("POST", "/boards/{board}/seasons"): "admin",
    ("GET", "/boards/{board}/leaderboard/top/{n}"): "read",
    ("GET", "/boards/{board}/leaderboard/user/{id}/context"): "read",
    ("GET", "/boards/{board}/leaderboard"): "read",
    ("GET", "/boards/{board}/users/{id}"): "read",
    ("DELETE", "/boards/{board}/users/{id}"): "write",
    ("POST", "/boards/{board}/users/{id}/score"): "own score",
    ("POST", "/boards/{board}/scores"): "write",
    ("GET", "/metrics"): "admin",
    ("GET", "/"): "nothing",
    ("GET", "/livez"): "nothing",
    ("GET", "/readyz"): "nothing",
    ("GET", "/openapi.json"): "nothing",
    ("GET", "/docs"): "nothing",
    ("GET", "/assets/{name}"): "nothing",
}
UNLIMITED = {"/livez", "/readyz"}
ON_DEFAULT = {
    ("GET", "/leaderboard/top/{n}"),
    ("GET", "/leaderboard/user/{id}/context"),
    ("GET", "/leaderboard"),
    ("GET", "/users/{id}"),
    ("POST", "/users/{id}/score"),
    ("POST", "/users"),
    ("PUT", "/users/{id}"),
    ("GET", "/users"),
}
"""The calls about `default`. Those with neither this nor a board in their path are about all boards or users."""

BARE = "a-bare-key-of-the-first-generation"
READER = "one-that-may-only-read"
WRITER = "one-that-may-only-write"
ADMIN = "one-that-may-only-look-at-metrics"
ALL = "one-that-may-do-everything"
GAMES = "one-that-may-do-everything-with-two-boards"
DEFAULT = "one-that-may-do-everything-with-default"


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


KEYS = (
    f"{BARE},reader:read:{READER},writer:write:{hashed(WRITER)},"
    f"ops:admin:{hashed(ADMIN)},all:read+write+admin:{ALL},"
    f"two:read+write+admin@games+ended:{GAMES},default:read+write+admin@default:{DEFAULT}"
)
PRIVATE, PUBLIC = pem(rsa.generate_private_key(65537, 2048))
STRANGER, _ = pem(rsa.generate_private_key(65537, 2048))
USER, ANOTHER = 1, 2
EXTERNAL_ID = "steam:7656"
ASSET = next(iter(Pages.load().assets))


def token(key: str = PRIVATE, algorithm: str = "RS256", **changes: Any) -> str:
    return jwt.encode(claims(**{"sub": str(USER), **changes}), key, algorithm)


@dataclass(frozen=True)
class Credential:
    """A credential, and what it allows."""

    header: str | None
    scopes: frozenset[str] = frozenset()
    user: int | None = None
    boards: frozenset[str] | None = None


def key(value: str, *scopes: str, boards: frozenset[str] | None = None) -> Credential:
    return Credential(f"Bearer {value}", frozenset(scopes), boards=boards)


def unknown(header: str | None) -> Credential:
    return Credential(header)


def credentials() -> dict[str, Credential]:
    """Returns the credentials. Made when they are used, as some of them expire."""
    now = int(time.time())
    return {
        "none": unknown(None),
        "empty": unknown(""),
        "scheme only": unknown("Bearer"),
        "unknown key": unknown("Bearer a-key-that-does-not-exist"),
        "no scheme": unknown(BARE),
        "another scheme": unknown(f"Basic {BARE}"),
        "two keys": unknown(f"Bearer {BARE},{ALL}"),
        "longer": unknown(f"Bearer {BARE}x"),
        "hash for a key": unknown(f"Bearer {hashed(WRITER)}"),
        "bare": key(BARE, "read", "write"),
        "scheme in small letters": Credential(f"bearer  {BARE} ", frozenset({"read", "write"})),
        "reader": key(READER, "read"),
        "writer": key(WRITER, "write"),
        "admin": key(ADMIN, "admin"),
        "all": key(ALL, "read", "write", "admin"),
        "two boards": key(GAMES, "read", "write", "admin", boards=frozenset({"games", "ended"})),
        "default": key(DEFAULT, "read", "write", "admin", boards=frozenset({"default"})),
        "this user": Credential(f"Bearer {token()}", frozenset({"read"}), USER),
        "another user": Credential(f"Bearer {token(sub=str(ANOTHER))}", frozenset({"read"}), ANOTHER),
        "expired": unknown(f"Bearer {token(exp=now - LEEWAY_S - 5)}"),
        "no exp": unknown(f"Bearer {token(exp=None)}"),
        "not yet valid": unknown(f"Bearer {token(nbf=now + 300)}"),
        "issued tomorrow": unknown(f"Bearer {token(iat=now + 86_400)}"),
        "another audience": unknown(f"Bearer {token(aud='other')}"),
        "empty audience": unknown(f"Bearer {token(aud='')}"),
        "no sub": unknown(f"Bearer {token(sub=None)}"),
        "bad sub": unknown(f"Bearer {token(sub='01')}"),
        "wrong signature": unknown(f"Bearer {token(STRANGER)}"),
        "wrong algorithm": unknown(f"Bearer {token(algorithm='RS384')}"),
        "algorithm none": unknown("Bearer " + by_hand({"alg": "none"}, claims(sub="1"), lambda _: b"").decode()),
        "public key as a secret": unknown(
            "Bearer " + by_hand({"alg": "HS256"}, claims(sub="1"), hs256(PUBLIC)).decode()
        ),
    }


def expected(
    needs: str, credential: Credential, board: str | None, *, reads: str, user_writes: str, guarded: bool
) -> str:
    """Returns the expected problem code, "" for success. The user in the path is USER."""
    if needs == "nothing" or not guarded or (needs == "read" and reads == "open"):
        return ""
    if not credential.scopes:
        return "unauthorized"
    own = needs == "own score" and user_writes == "on" and credential.user == USER
    scope = "write" if needs == "own score" else needs
    on_board = credential.boards is None or board in credential.boards
    return "" if own or (scope in credential.scopes and on_board) else "forbidden"


def board_of(route: Route) -> str | None:
    """Returns the board that a call of the route is about, None for all boards or users."""
    if "{board}" in route.path:
        others = {"delete_board": "deleted", "remove_entry": "left", "end_season": "ended", "put_board": "ended"}
        return others.get(route.name, "games")
    return "default" if (route.method, route.path) in ON_DEFAULT else None


_names = count(1)


@dataclass
class Board:
    """The expected state of the board after the calls that succeeded."""

    settings: Settings
    start: Callable[..., Caller]
    names: set[str]
    open: Caller
    score: int = 0
    entry: int = 0
    put: str = "put"

    def call(self, caller: Caller, method: str, route: Route, credential: Credential) -> Answer:
        """Makes a valid call, and records what it must do if it succeeds."""
        headers = [] if credential.header is None else [("Authorization", credential.header)]
        number = next(_names)
        values = {"id": USER, "board": board_of(route) or ""}
        match route.name:
            case "erase_user":
                values["id"] = self.open.create(f"erased {number}")
                self.names.add(f"erased {number}")
            case "delete_board":
                self.open.call("PUT", "/boards/deleted", {})
            case "put_user":
                values["id"] = f"@{EXTERNAL_ID}"
            case "remove_entry":
                self.open.post(f"/boards/left/users/{USER}/score", {"score": 1})
        path = ASSET if route.path == "/assets/{name}" else path_of(route, **values)
        body = json.dumps(body_of(route, number)).encode() if route.body else None
        answer = caller.send(method, path, body, headers)
        if answer.status < 300:
            match route.name:
                case "set_score":
                    self.score = number
                case "change_entry" | "change_entries":
                    self.entry = number
                case "put_user":
                    self.names ^= {self.put, f"name {number}"}
                    self.put = f"name {number}"
                case "create_user":
                    self.names.add(f"name {number}")
                case "erase_user":
                    self.names.remove(f"erased {number}")
        return answer

    def check(self) -> None:
        """Fails if anything else was written."""
        assert {row[0] for row in sql(self.settings, "SELECT user_name FROM users")} == self.names
        assert sql(self.settings, "SELECT total_score FROM users WHERE user_id = $1", USER)[0][0] == self.score
        assert self.open.get(f"/boards/games/users/{USER}").json()["score"] == self.entry


def body_of(route: Route, number: int) -> object:
    """Returns a valid body."""
    return {
        "create_user": {"username": f"name {number}"},
        "put_user": {"username": f"name {number}"},
        "set_score": {"score": number},
        "change_entry": {"score": number},
        "change_entries": {"scores": [{"userId": USER, "score": number}]},
        "end_season": {"season": 1},
        "update_user": {"hidden": False},
        "put_board": {},
    }[route.name]


@pytest.fixture(scope="module")
def board(module_settings: Settings, start: Callable[..., Caller]) -> Board:
    sql(module_settings, "INSERT INTO users (user_name) VALUES ('ada'), ('another')")
    sql(module_settings, "INSERT INTO users (user_name, external_id) VALUES ('put', $1)", EXTERNAL_ID)
    caller = start()
    for name in ("games", "left", "ended"):
        assert caller.call("PUT", f"/boards/{name}", {}).status == 201
    assert caller.post(f"/boards/games/users/{USER}/score", {"score": 0}).status == 200
    return Board(module_settings, start, {"ada", "another", "put"}, caller)


def test_this_table_has_every_route() -> None:
    assert set(NEEDS) == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        needs = NEEDS[route.method, route.path]
        assert (route.needs or "nothing") == ("write" if needs == "own score" else needs)
        assert route.own_user_only == (needs == "own score")
        assert route.on_default == ((route.method, route.path) in ON_DEFAULT)
        assert route.limited == (route.path not in UNLIMITED)
        # The document agrees.
        assert {"unauthorized", "forbidden"} & set(route.problems) == (
            set() if needs == "nothing" else {"unauthorized", "forbidden"}
        )
        assert ("rate_limited" in route.problems) == route.limited


@pytest.mark.parametrize(
    ("reads", "user_writes", "guarded"),
    # Without keys, READS=key is an error at the start.
    [*product(("open", "key"), ("off", "on"), (True,)), *product(("open",), ("off", "on"), (False,))],
)
def test_every_route_with_every_credential(board: Board, reads: str, user_writes: str, guarded: bool) -> None:
    settings: dict[str, object] = {"allow_user_writes": user_writes}
    if guarded:
        settings |= {
            "api_keys": SecretStr(KEYS),
            "jwt_algorithms": "RS256",
            "jwt_key": SecretStr(PUBLIC),
            "reads": reads,
        }
    caller = board.start(**settings)
    wrong = []
    asked = 0
    for (name, credential), route in product(credentials().items(), ROUTES):
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            answer = board.call(caller, method, route, credential)
            code = expected(
                NEEDS[route.method, route.path],
                credential,
                board_of(route),
                reads=reads,
                user_writes=user_writes,
                guarded=guarded,
            )
            status = {"": route.status, "unauthorized": 401, "forbidden": 403}[code]
            if answer.status != status or (method != "HEAD" and answer.code != code):
                wrong.append((name, method, route.path, answer.status, answer.code, code))
            asked += 1
    assert not wrong
    assert asked == len(credentials()) * (len(ROUTES) + sum(route.method == "GET" for route in ROUTES))
    board.check()
    check_document(caller, reads=reads, user_writes=user_writes, guarded=guarded)


def check_document(caller: Caller, *, reads: str, user_writes: str, guarded: bool) -> None:
    """Fails unless the OpenAPI document describes each route like this."""
    assert set(caller.contract.document["components"]["securitySchemes"]) == {"key", "token"}
    for (method, path), needs in NEEDS.items():
        if path == "/assets/{name}":
            continue
        security = caller.contract.document["paths"][path][method.lower()]["security"]
        if needs == "nothing":
            assert security == []
            continue
        ways: list[dict[str, list[str]]] = [{"key": ["write" if needs == "own score" else needs]}]
        if guarded and (needs == "read" or (needs == "own score" and user_writes == "on")):
            ways.append({"token": []})
        open_to_all = not guarded or (needs == "read" and reads == "open")
        assert security == ([{}, *ways] if open_to_all else ways)


def test_tokens_without_keys_protect_writes(board: Board) -> None:
    caller = board.start(jwt_algorithms="RS256", jwt_key=SecretStr(PUBLIC), allow_user_writes="on")
    for name, found in credentials().items():
        credential = found if found.user else unknown(found.header)
        for method, path in (("POST", "/users"), ("POST", "/users/{id}/score"), ("GET", "/metrics")):
            (route,) = (each for each in ROUTES if (each.method, each.path) == (method, path))
            answer = board.call(caller, method, route, credential)
            code = expected(NEEDS[method, path], credential, None, reads="open", user_writes="on", guarded=True)
            assert answer.code == code, (name, method, path)
    board.check()


def test_a_request_with_two_credentials_is_unauthorized(board: Board) -> None:
    caller = board.start(api_keys=SecretStr(KEYS))
    both = [("Authorization", f"Bearer {BARE}"), ("Authorization", f"Bearer {ALL}")]
    assert caller.send("POST", "/users", b'{"username": "x"}', both).status == 401


def test_access_is_checked_before_the_body_is_parsed(board: Board) -> None:
    caller = board.start(api_keys=SecretStr(KEYS))
    for body in (b"{", b"", b'{"username": 5}', b"x" * 16_000):
        assert caller.send("POST", "/users", body).code == "unauthorized"
        reader = [("Authorization", f"Bearer {READER}")]
        assert caller.send("POST", "/users", body, reader).code == "forbidden"
    # A body that is declared too large is not read.
    assert caller.api.client.post("/users", content=b"x" * 20_000).status_code == 401


def test_the_body_is_read_before_access_is_denied(board: Board) -> None:
    caller = board.start(api_keys=SecretStr(KEYS))
    head = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
    with socket.create_connection(("127.0.0.1", caller.api.settings.port), timeout=30) as connection:
        for _ in range(2):
            connection.sendall(head + b"12")
            # This is answered by another request, after which an early response to the first would have arrived.
            assert caller.get("/livez").status == 200
            assert select.select([connection], [], [], 0.2)[0] == []
            connection.sendall(b"34")
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, response.will_close) == (401, False)
            response.read()


def test_the_home_page_is_not_shown_where_reads_need_a_key(board: Board) -> None:
    browser = {"Accept": "text/html"}
    caller = board.start(api_keys=SecretStr(KEYS), reads="key")
    for headers in (browser, browser | {"Authorization": f"Bearer {READER}"}):
        answer = caller.get("/", **headers)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    caller = board.start(api_keys=SecretStr(KEYS))
    assert caller.get("/", **browser).headers["content-type"].startswith("text/html")


def test_a_key_that_is_limited_to_boards_is_told_to_which(board: Board) -> None:
    caller = board.start(api_keys=SecretStr(KEYS), reads="key")

    def detail(key: str, method: str, path: str, body: bytes | None = None) -> str:
        answer = caller.send(method, path, body, [("Authorization", f"Bearer {key}")])
        assert (answer.status, answer.code) == (403, "forbidden")
        return str(answer.json()["detail"])

    two, default = "it is limited to the boards ended, games", "it is limited to the board default"
    score = b'{"score": 1}'
    assert detail(GAMES, "POST", "/boards/left/users/1/score", score) == (
        f"the key two may not POST /boards/left/users/1/score, about the board left: {two}"
    )
    assert detail(GAMES, "POST", "/users/1/score", score) == (
        f"the key two may not POST /users/1/score, about the board default: {two}"
    )
    assert detail(GAMES, "GET", "/boards") == f"the key two may not GET /boards, about all boards or users: {two}"
    assert detail(DEFAULT, "DELETE", "/users/1") == (
        f"the key default may not DELETE /users/1, about all boards or users: {default}"
    )
    # A board's name is compared as it is.
    for path in (
        "/boards/GAMES/scores",
        "/boards/games%20/scores",
        "/boards/games%2B/scores",
        "/boards/ended+games/scores",
    ):
        detail(GAMES, "POST", path, b"{}")


def test_a_limited_key_may_use_its_boards_under_each_of_their_paths(board: Board) -> None:
    caller = board.start(api_keys=SecretStr(KEYS), reads="key")
    headers = [("Authorization", f"Bearer {DEFAULT}")]
    for path in (f"/users/{USER}", f"/boards/default/users/{USER}", f"/boards/default/users/{USER}/"):
        assert caller.send("GET", path, None, headers).status == 200
    made = [("Authorization", f"Bearer {key}") for key in (GAMES, ALL)]
    path, body = "/boards/ended", b'{"title": "Ended"}'
    assert caller.send("PUT", path, body, made[:1]).status == 200


def test_only_a_key_for_all_boards_finds_hidden_users(board: Board) -> None:
    sql(board.settings, "INSERT INTO users (user_name, hidden) VALUES ('hidden', true)")
    board.names.add("hidden")
    caller = board.start(api_keys=SecretStr(KEYS), reads="key")
    found = [
        caller.send("GET", "/users?username=hidden", None, [("Authorization", f"Bearer {key}")]).status
        for key in (ALL, DEFAULT)
    ]
    assert found == [200, 404]


# Rate limits

Serve = Callable[..., ApiProcess]


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def test_requests_above_the_limit_of_an_address_get_retry_after(serve: Serve) -> None:
    api = serve(rate_limit_per_address="3/hour")
    assert [api.client.get("/users/1").status_code for _ in range(4)] == [404, 404, 404, 429]
    refused = api.client.get("/leaderboard/top/3")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 3000 < int(refused.headers["retry-after"]) <= 3600
    for path in UNLIMITED:
        assert {api.client.get(path).status_code for _ in range(20)} == {200}


def test_requests_are_allowed_again_after_the_window(serve: Serve) -> None:
    api = serve(rate_limit_per_address="1/second")
    for _ in range(2):
        eventually(lambda: api.client.get("/users/1").status_code == 404)


def test_all_routes_but_health_checks_are_rate_limited(serve: Serve) -> None:
    api = serve(rate_limit_per_address="1/hour")
    assert api.client.get("/users/1").status_code == 404
    for route in ROUTES:
        answer = api.client.request(route.method, path_of(route))
        assert (answer.status_code == 429) == (route.path not in UNLIMITED), route.path
        if answer.status_code == 429:
            assert 3000 < int(answer.headers["retry-after"]) <= 3600


def test_each_key_has_its_own_limit(serve: Serve) -> None:
    api = serve(api_keys=SecretStr(KEYS), rate_limit_per_key="2/hour", rate_limit_per_address="1/hour")
    assert api.client.get("/users/1").status_code == 404
    assert api.client.get("/users/1").status_code == 429
    for value in (BARE, ALL):
        assert [api.client.get("/users/1", headers=bearer(value)).status_code for _ in range(3)] == [404, 404, 429]
    # Denied requests of a key count too.
    assert [api.client.get("/metrics", headers=bearer(READER)).status_code for _ in range(3)] == [403, 403, 429]


def test_an_unknown_credential_counts_for_its_address(serve: Serve) -> None:
    api = serve(
        api_keys=SecretStr(KEYS),
        jwt_algorithms="RS256",
        jwt_key=SecretStr(PUBLIC),
        rate_limit_per_address="2/hour",
    )

    def create(value: str) -> int:
        return api.client.post("/users", json={"username": "ada"}, headers=bearer(value)).status_code

    assert [create(f"guess-{number}") for number in range(4)] == [401, 401, 429, 429]
    assert api.client.get("/users/1", headers=bearer(token())).status_code == 429, (
        "a token is counted for its address first"
    )
    assert create(BARE) == 201


def test_each_user_has_its_own_limit(serve: Serve) -> None:
    api = serve(
        jwt_algorithms="RS256", jwt_key=SecretStr(PUBLIC), rate_limit_per_key="2/hour", api_keys=SecretStr(KEYS)
    )
    for user in ("1", "2"):
        found = [api.client.get("/users/9", headers=bearer(token(sub=user))).status_code for _ in range(3)]
        assert found == [404, 404, 429]
    # Another token of the same user counts for that user.
    assert api.client.get("/users/9", headers=bearer(token(nonce=1))).status_code == 429


def test_behind_a_trusted_proxy_the_clients_address_counts(serve: Serve) -> None:
    def ask(api: ApiProcess, forwarded: str) -> int:
        return api.client.get("/users/1", headers={"X-Forwarded-For": forwarded}).status_code

    api = serve(rate_limit_per_address="1/hour", trusted_proxies="127.0.0.0/8")
    assert [ask(api, f"198.51.100.{number}") for number in (1, 2, 1)] == [404, 404, 429]
    assert [ask(api, f"2001:db8::{number}") for number in (1, 2)] == [404, 429], "one /64"
    assert ask(api, "203.0.113.1, 198.51.100.1") == 429, "the client's own entry is ignored"
    api = serve(rate_limit_per_address="1/hour")
    assert [ask(api, f"198.51.100.{number}") for number in (1, 2)] == [404, 429]
