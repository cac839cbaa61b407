"""ETag and If-None-Match: 304 is answered exactly while the answer is the one that the client has."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.http.read_responses import ReadResponses
from leaderboard.http.response import Response
from leaderboard.http.routes import ROUTES
from leaderboard.model import EncodedTop, Standing, Top
from leaderboard.service.cache_reads import Reply
from tests.http.contract import Answer, Caller
from tests.system import sql

Start = Callable[..., Caller]
KEY = "a-key-of-more-than-16-characters"
STANDING = Standing(1, 7, "ada", None, 5)


@pytest.fixture(scope="module")
def board(caller: Caller, module_settings: Settings) -> list[int]:
    """Users on `default` and on a board with a season that has ended. Returns their ids."""
    created = sql(
        module_settings,
        "INSERT INTO users (user_name, total_score) SELECT 'user ' || n, n FROM generate_series(1, 30) n"
        " RETURNING user_id",
    )
    users = [int(row[0]) for row in created]
    assert caller.call("PUT", "/boards/laps", {"better": "lower", "decimals": 2}).status == 201
    for season, fraction in ((1, 0.25), (2, 0.5)):
        scores = [{"userId": user_id, "score": user_id + fraction} for user_id in users[:20]]
        assert caller.post("/boards/laps/scores", {"scores": scores}).status == 200
        if season == 1:
            assert caller.post("/boards/laps/seasons", {"season": 1}).status == 200
    return users


def reads(user_id: int) -> Iterator[str]:
    """Yields a path for each kind of read, on `default`, on a board, and of a season that has ended."""
    yield from (f"/users/{user_id}", f"/boards/laps/users/{user_id}", f"/boards/laps/users/{user_id}?season=1")
    for board in ("", "/boards/default", "/boards/laps"):
        yield from (
            f"{board}/leaderboard/top/10",
            f"{board}/leaderboard/user/{user_id}/context",
            f"{board}/leaderboard",
            f"{board}/leaderboard?limit=3&around_rank=5",
            f"{board}/leaderboard?users={user_id},999",
        )
    yield "/boards/laps/leaderboard/top/3?season=previous"


def ask(caller: Caller, path: str, etag: str) -> Answer:
    return caller.send("GET", path, headers=[("If-None-Match", etag)])


def is_not_modified(answer: Answer) -> bool:
    """Returns True for 304; fails if it has a body or lacks what a 304 must have."""
    if answer.status == 304:
        assert answer.body == b""
        assert answer.headers["cache-control"] == "no-cache"
        assert "etag" in answer.headers
        assert "content-type" not in answer.headers
    return answer.status == 304


def test_an_answer_that_the_client_has_is_not_sent_again(caller: Caller, board: list[int]) -> None:
    for path in reads(board[3]):
        first = caller.get(path)
        etag = first.headers["etag"]
        assert (first.status, first.headers["cache-control"]) == (200, "no-cache")
        for sent in (etag, f'"other", W/{etag}', f'W/"x",{etag} , "y"', "*"):
            answer = ask(caller, path, sent)
            assert is_not_modified(answer), path
            assert answer.headers["etag"] == etag
        for sent in ('"other"', "", "other", etag.strip('"'), f"{etag[:-1]}x", '"*"'):
            answer = ask(caller, path, sent)
            assert (answer.status, answer.body) == (200, first.body), path
            assert is_not_modified(ask(caller, path, answer.headers["etag"])), "the one of that answer"
        head = caller.send("HEAD", path, headers=[("If-None-Match", etag)])
        assert (head.status, head.headers["etag"]) == (304, etag)


def test_one_of_several_headers_is_enough(caller: Caller, board: list[int]) -> None:
    etag = caller.get("/leaderboard/top/3").headers["etag"]
    sent = [("If-None-Match", '"other"'), ("If-None-Match", etag)]
    assert is_not_modified(caller.send("GET", "/leaderboard/top/3", headers=sent))


def test_the_conditional_routes_are_the_reads_of_boards(caller: Caller, board: list[int]) -> None:
    assert {route.path for route in ROUTES if route.conditional} == {
        "/users/{id}",
        "/leaderboard",
        "/leaderboard/top/{n}",
        "/leaderboard/user/{id}/context",
        "/boards/{board}/users/{id}",
        "/boards/{board}/leaderboard",
        "/boards/{board}/leaderboard/top/{n}",
        "/boards/{board}/leaderboard/user/{id}/context",
    }
    for path in ("/", "/livez", "/openapi.json", "/docs", "/boards", "/boards/laps", "/users/999", "/none"):
        answer = ask(caller, path, "*")
        assert answer.status in {200, 404}
        assert "etag" not in answer.headers


def test_304_exactly_while_the_answer_is_the_same(start: Start, caller: Caller, board: list[int]) -> None:
    """Clients of two processes poll, while scores, names and the number of users change now and then."""
    rng = random.Random(5)
    others = (caller, start())
    paths = list(reads(board[5]))
    kept: dict[tuple[int, str], Answer] = {}
    not_modified = 0
    for step in range(60):
        match rng.randrange(4):
            case 0:
                assert caller.post(f"/users/{rng.choice(board)}/score", {"score": rng.randrange(30)}).status == 200
            case 1:
                where = f"/boards/laps/users/{rng.choice(board[:20])}/score"
                assert caller.post(where, {"score": rng.randrange(30) + 0.75}).status == 200
            case 2 if step % 3 == 0:
                caller.create(f"new {step}", rng.randrange(30))
        for client in range(3):
            path = rng.choice(paths)
            asked = rng.choice(others)
            truth = rng.choice(others).get(path)
            before = kept.get((client, path))
            answer = asked.get(path) if before is None else ask(asked, path, before.headers["etag"])
            if is_not_modified(answer):
                assert before is not None
                assert before.body == truth.body, f"step {step}: 304 for an answer that differs"
                not_modified += 1
            else:
                assert answer.body == truth.body
                kept[client, path] = answer
    assert not_modified


def test_an_etag_of_another_process_is_known_at_the_second_request(
    start: Start, caller: Caller, board: list[int]
) -> None:
    other = start()
    for path in reads(board[3]):
        first = caller.get(path)
        second = ask(other, path, first.headers["etag"])
        if not is_not_modified(second):
            assert "/top/" not in path
            assert second.body == first.body
            for process in (caller, other):
                assert is_not_modified(ask(process, path, second.headers["etag"])), path


def test_where_reads_need_a_key_no_browser_stores_them(start: Start, board: list[int]) -> None:
    client = start(api_keys=SecretStr(f"reader:read:{KEY}"), reads="key").api.client
    key = {"Authorization": f"Bearer {KEY}"}
    first = client.get("/leaderboard/top/3", headers=key)
    assert first.headers["cache-control"] == "no-store"
    again = client.get("/leaderboard/top/3", headers=key | {"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-store")
    assert client.get("/leaderboard/top/3", headers={"If-None-Match": first.headers["etag"]}).status_code == 401


def test_a_page_of_an_allowed_origin_can_read_a_304(start: Start, board: list[int]) -> None:
    origin = "https://game.example"
    client = start(cors_origins=origin).api.client
    first = client.get("/leaderboard/top/3", headers={"Origin": origin})
    again = client.get("/leaderboard/top/3", headers={"Origin": origin, "If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.headers["access-control-allow-origin"]) == (304, origin)
    assert again.headers["vary"] == "origin"


# Stale answers


def respond(reply: Reply[Any], etag: bytes = b"") -> Response:
    headers = [(b"if-none-match", etag)] if etag else []
    return ReadResponses(storable=True).of({"headers": headers}, reply)


@pytest.mark.parametrize("result", [EncodedTop.of(Top([STANDING])), STANDING], ids=["top", "user"])
def test_a_stale_answer_is_always_sent_and_never_stored(result: EncodedTop | Standing) -> None:
    current = respond(Reply(result), b'"any"')
    assert respond(Reply(result), current.etag).status == 304
    for etag in (b"", current.etag, b"*"):
        stale = respond(Reply(result, age_s=2.5), etag)
        headers = dict(stale.start["headers"])
        assert (stale.status, stale.body) == (200, current.body)
        assert (headers[b"age"], headers[b"cache-control"]) == (b"3", b"no-store")
        assert b"etag" not in headers


@pytest.mark.parametrize("status", [200, 304])
def test_a_process_that_stops_says_so_and_keeps_the_etag(status: int) -> None:
    first = respond(Reply(EncodedTop.of(Top([STANDING]))))
    response = first if status == 200 else respond(Reply(EncodedTop.of(Top([STANDING]))), first.etag)
    closing = response.with_header(b"connection", b"close")
    assert closing.status == status
    assert {(b"connection", b"close"), (b"etag", first.etag)} <= set(closing.start["headers"])
