"""Which application answers a request, and what a server is told of the start and the end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from leaderboard.errors import LeaderboardError
from leaderboard.http.asgi import AsgiApp, AsgiScope, Message, Receive, Send
from leaderboard.http.router import MethodNotAllowed, Router, strip_root_path

pytestmark = pytest.mark.anyio

PATHS = ("/", "/users", "/users/{id}", "/users/{id}/score", "/a.b/{one}/{two}")


def app(name: str) -> AsgiApp:
    async def answer(scope: AsgiScope, _receive: Receive, send: Send) -> None:
        await send({"name": name, **scope.get("path_params", {})})

    return answer


def refuse(error: LeaderboardError) -> AsgiApp:
    return app(error.allowed if isinstance(error, MethodNotAllowed) else "none")


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


async def never() -> Message:
    raise AssertionError


ROUTER = Router(
    [*(("GET", path, app(path)) for path in PATHS), ("POST", "/users", app("create"))], refuse, nothing
)


BELOW = strip_root_path("/lb/x", ROUTER.serve)


async def asked(
    method: str, path: str, raw_path: str | None = None, router: Callable[..., Awaitable[None]] = ROUTER.serve
) -> Message:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    raw = (path if raw_path is None else raw_path).encode()
    scope = {"type": "http", "method": method, "path": path, "raw_path": raw, "headers": [(b"host", b"x")]}
    await router(scope, never, send)
    (message,) = sent
    return message


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", {"name": "/"}),
        ("HEAD", "/", {"name": "/"}),
        ("GET", "/users", {"name": "/users"}),
        ("POST", "/users", {"name": "create"}),
        ("GET", "/users/7", {"name": "/users/{id}", "id": "7"}),
        ("GET", "/users/\n", {"name": "/users/{id}", "id": "\n"}),
        ("GET", "/users/7/score", {"name": "/users/{id}/score", "id": "7"}),
        ("GET", "/a.b/x/y", {"name": "/a.b/{one}/{two}", "one": "x", "two": "y"}),
        ("GET", "/users/", {"name": "/users"}),
        ("HEAD", "/users/", {"name": "/users"}),
        ("POST", "/users/", {"name": "create"}),
        ("GET", "/users/7/", {"name": "/users/{id}", "id": "7"}),
        ("GET", "/users/7/score/", {"name": "/users/{id}/score", "id": "7"}),
        ("DELETE", "/users/", {"name": "GET, HEAD, POST"}),
        ("DELETE", "/users", {"name": "GET, HEAD, POST"}),
        ("PUT", "/users/7", {"name": "GET, HEAD", "id": "7"}),
    ],
)
async def test_a_request_is_answered_by_its_row(method: str, path: str, expected: Message) -> None:
    assert await asked(method, path) == expected


@pytest.mark.parametrize(
    "path",
    ["", "//", "///", "//users", "/users//", "/users//7", "/users/7//", "/users//score", "/users\n", "/axb/x/y"],
)
async def test_there_is_nothing_beside_the_rows(path: str) -> None:
    assert await asked("GET", path) == {"name": "none"}


async def test_a_slash_that_is_written_otherwise_ends_no_part() -> None:
    assert await asked("GET", "/users/7", "/users%2f7") == {"name": "none"}
    assert await asked("GET", "/users/7", "/users%2F7") == {"name": "none"}
    assert await asked("GET", "/users/", "/users%2F") == {"name": "none"}


@pytest.mark.parametrize(
    "path", ["/", "/users", "/users/7", "/users/7/score", "/users/", "/lb", "/x", "//", "/users//"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_below_a_path_a_request_is_answered_as_without_it(method: str, path: str) -> None:
    expected = await asked(method, path)
    assert await asked(method, path, router=BELOW) == expected
    assert await asked(method, f"/lb/x{path}", router=BELOW) == expected


@pytest.mark.parametrize("path", ["/lb/x", "/lb/x/"])
async def test_the_path_itself_is_the_root(path: str) -> None:
    assert await asked("GET", path, router=BELOW) == {"name": "/"}


@pytest.mark.parametrize(
    "path",
    [
        *("/lb/xx", "/lb/xusers", "/lb/x/lb/x/users", "/lb/users", "/lb/x//users", "//lb/x/users", "lb/x/users"),
        *("/LB/x/users", "/lb//x/users", "/lb/x\n", "/lb/", "/l"),
    ],
)
async def test_what_only_looks_like_the_path_is_nothing(path: str) -> None:
    assert await asked("GET", path, router=BELOW) == {"name": "none"}


async def test_a_slash_in_the_path_is_not_written_otherwise() -> None:
    for raw_path in ("/lb/x%2Fusers", "/lb%2Fx/users"):
        assert await asked("GET", "/lb/x/users", raw_path, router=BELOW) == {"name": "none"}


@pytest.mark.parametrize("fails", ["startup", "shutdown", None])
async def test_the_server_is_told_of_the_start_and_the_end(fails: str | None) -> None:
    sent: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        if fails == "startup":
            raise ConnectionError
        yield
        if fails == "shutdown":
            raise ConnectionError

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        sent.append(message["type"].removeprefix("lifespan."))

    router = Router([], refuse, lifespan)
    if fails is None:
        await router.serve({"type": "lifespan"}, receive, send)
        assert sent == ["startup.complete", "shutdown.complete"]
        return
    with pytest.raises(ConnectionError):
        await router.serve({"type": "lifespan"}, receive, send)
    assert sent == [*(["startup.complete"] if fails == "shutdown" else []), f"{fails}.failed"]
