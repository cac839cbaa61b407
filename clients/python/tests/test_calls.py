"""Every call of the service has a method in both clients, which sends all that the call takes."""

import inspect
import json
import re
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from clients.python import make_sync
from leaderboard.http.routes import ROUTES
from leaderboard_client import (
    NO_RETRY,
    AsyncLeaderboard,
    ExternalId,
    Leaderboard,
    LeaderboardError,
    Rules,
    Schedule,
    users,
)
from tests.system import ApiProcess

NOT_FOR_PROGRAMS = {("GET", "/docs")}
"""Calls without a method: pages for people."""

Client = Any
"""A Leaderboard or an AsyncLeaderboard, and what their methods return."""

RULES = Rules(season=Schedule(every="week", timezone="UTC"), lowest=0, highest=9, keep_seasons=3, title="A title")

# Each with all arguments, so that everything is sent that the method can send.
CALLS: tuple[Callable[[Client], Any], ...] = (
    lambda lb: lb.top(3),
    lambda lb: lb.top(3, season=1),
    lambda lb: lb.standing(1),
    lambda lb: lb.standing(1, season="previous"),
    lambda lb: lb.context(1),
    lambda lb: lb.context(1, season=1),
    lambda lb: lb.standings_of([1, 2]),
    lambda lb: lb.page(limit=2, after="x"),
    lambda lb: lb.page_around(5, limit=2),
    lambda lb: lb.standings(page_size=5),
    lambda lb: lb.set_score(1, 5),
    lambda lb: lb.set_score(1, 5, rank=True),
    lambda lb: lb.set_score(ExternalId("x"), 5, username=""),
    lambda lb: lb.add_score(1, 5),
    lambda lb: lb.set_scores({1: 5, 2: 6}),
    lambda lb: lb.add_scores([(1, 5)]),
    lambda lb: lb.board("b").top(3, season=1),
    lambda lb: lb.board("b").standing(1, season=1),
    lambda lb: lb.board("b").context(1, season=1),
    lambda lb: lb.board("b").standings_of([1, 2], season=1),
    lambda lb: lb.board("b").page(limit=2, after="x", season=1),
    lambda lb: lb.board("b").page_around(5, limit=2, season=1),
    lambda lb: lb.board("b").standings(season=1),
    lambda lb: lb.board("b").set_score(1, 5, rank=True),
    lambda lb: lb.board("b").add_score(ExternalId("x"), 5, rank=True, username=""),
    lambda lb: lb.board("b").set_scores([(1, 5)]),
    lambda lb: lb.board("b").add_scores([(1, 5), (ExternalId("x"), 5, "")]),
    lambda lb: lb.board("b").info(),
    lambda lb: lb.board("default").put(RULES),
    lambda lb: lb.board("default").put(Rules(season=Schedule(cron="0 4 * * MON"))),
    lambda lb: lb.board("b").delete(),
    lambda lb: lb.board("b").remove(1),
    lambda lb: lb.board("b").end_season(1),
    lambda lb: lb.board("b").seasons(before=5, page_size=5),
    lambda lb: lb.boards(after="a", page_size=5),
    lambda lb: lb.create_user("", score=5, image_url="https://example.com", external_id=ExternalId("x")),
    lambda lb: lb.put_user(ExternalId("x"), "", image_url="https://example.com"),
    lambda lb: lb.find_user("x"),
    lambda lb: lb.find_users("x", after="y", page_size=5),
    lambda lb: lb.update_user(999_999, username="x", image_url=None, hidden=True, external_id=ExternalId("x")),
    lambda lb: lb.erase_user(999_999),
    lambda lb: lb.user_boards(1, after="a", page_size=5),
    lambda lb: lb.status(),
    lambda lb: lb.ready(),
    lambda lb: lb.alive(),
    lambda lb: lb.metrics(),
    lambda lb: lb.openapi(),
)


@dataclass
class Sent:
    """What was sent with the requests of one call of the API."""

    query: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    with_key: set[bool] = field(default_factory=set)


class Recorder:
    """Notes the requests by their method and the path in the route table."""

    def __init__(self) -> None:
        self.sent: dict[tuple[str, str], Sent] = {}

    def __call__(self, request: httpx.Request) -> None:
        sent = self.sent.setdefault(operation_of(request), Sent())
        sent.query |= {name for name, _ in parse_qsl(request.url.query.decode())}
        sent.members |= set(names_in(json.loads(request.content or b"null")))
        sent.with_key.add("idempotency-key" in request.headers)

    async def later(self, request: httpx.Request) -> None:
        self(request)


def operation_of(request: httpx.Request) -> tuple[str, str]:
    path = request.url.raw_path.decode().partition("?")[0]
    found = [
        (route.method, route.path)
        for route in ROUTES
        if route.method == request.method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route.path), path)
    ]
    assert len(found) == 1, (request.method, path, found)
    return found[0]


def names_in(value: Any) -> Iterator[str]:
    """Yields the names of all members of a JSON value."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from names_in(each)


def names_of(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    """Yields the names of all properties that values of a schema may have."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for name, each in schema.get("properties", {}).items():
        yield name
        yield from names_of(each, document)
    for each in (*schema.get("anyOf", ()), schema.get("items", {})):
        if each:
            yield from names_of(each, document)


async def run(call: Callable[[Client], Any], client: Client) -> None:
    """Makes a call to its end. It need not succeed: only the request matters."""
    try:
        result = call(client)
        if inspect.isawaitable(result):
            await result
        elif isinstance(result, AsyncIterable):
            async for _ in result:
                pass
        elif isinstance(result, Iterable):
            for _ in result:
                pass
    except LeaderboardError:
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_every_call_of_the_service_has_a_method_that_sends_all_it_takes(
    service: ApiProcess, kind: str
) -> None:
    recorder = Recorder()
    if kind == "sync":
        with httpx.Client(event_hooks={"request": [recorder]}) as http:
            for call in CALLS:
                await run(call, Leaderboard(service.url, http=http, retry=NO_RETRY))
    else:
        async with httpx.AsyncClient(event_hooks={"request": [recorder.later]}) as async_http:
            for call in CALLS:
                await run(call, AsyncLeaderboard(service.url, http=async_http, retry=NO_RETRY))
    routes = {(route.method, route.path): route for route in ROUTES if route.documented}
    assert recorder.sent.keys() == routes.keys() - NOT_FOR_PROGRAMS
    document = service.client.get("/openapi.json").json()
    for (method, path), sent in recorder.sent.items():
        described = document["paths"][path][method.lower()]
        parameters = described.get("parameters", [])
        assert sent.query == {each["name"] for each in parameters if each["in"] == "query"}, (method, path)
        body = described.get("requestBody", {"content": {"application/json": {"schema": {}}}})
        schema = body["content"]["application/json"]["schema"]
        assert sent.members == set(names_of(schema, document)), (method, path)
        assert sent.with_key == {routes[method, path].takes_key}, (method, path)


def test_every_method_is_in_the_table_above() -> None:
    source = Path(__file__).read_text("utf-8")
    called = set(re.findall(r"lambda lb: lb(?:\.board\(\"\w+\"\))?\.(\w+)\(", source))
    lb = Leaderboard("http://localhost")
    methods = {
        name
        for each in (lb, lb.board("b"))
        for name, _ in inspect.getmembers(each, inspect.ismethod)
        if not name.startswith("_")
    }
    assert methods - {"close", "board"} == called
    lb.close()


def test_the_synchronous_client_is_made_from_the_other_one() -> None:
    source = (make_sync.FOLDER / "async_client.py").read_text("utf-8")
    assert make_sync.synchronous(source) == (make_sync.FOLDER / "sync_client.py").read_text("utf-8")


@pytest.mark.parametrize(
    ("user", "path", "body"),
    [
        (7, "7", {"userId": 7}),
        (ExternalId("steam:76561"), "@steam%3A76561", {"externalId": "steam:76561"}),
        (ExternalId("ä/b c?#%"), "@%C3%A4%2Fb%20c%3F%23%25", {"externalId": "ä/b c?#%"}),
    ],
)
def test_a_user_is_named_by_number_or_external_id(user: users.UserRef, path: str, body: dict[str, object]) -> None:
    assert users.in_path(user) == path
    assert users.in_body(user) == body


@pytest.mark.parametrize("user", ["7", "ada", None, True, 7.0])
def test_another_value_is_no_user(user: Any) -> None:
    with pytest.raises(TypeError, match="must be an int or an ExternalId"):
        users.in_path(user)
    with pytest.raises(TypeError, match="must be an int or an ExternalId"):
        users.in_body(user)


def test_an_external_id_arrives_as_it_is_quoted() -> None:
    """Not as httpx would quote it: the service reads the path that was sent."""
    paths = []
    with httpx.Client(event_hooks={"request": [lambda request: paths.append(request.url.raw_path)]}) as http:
        lb = Leaderboard("http://127.0.0.1:1/below", http=http, retry=NO_RETRY)
        with pytest.raises(LeaderboardError):
            lb.standing(ExternalId("a/b@c%2F"))
    assert paths == [b"/below/users/@a%2Fb%40c%252F"]
