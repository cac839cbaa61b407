"""The router: which application answers a request, and the lifespan messages."""

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
async def test_a_request_is_routed_to_its_application(method: str, path: str, expected: Message) -> None:
    assert await asked(method, path) == expected


@pytest.mark.parametrize(
    "path",
    ["", "//", "///", "//users", "/users//", "/users//7", "/users/7//", "/users//score", "/users\n", "/axb/x/y"],
)
async def test_other_paths_are_not_found(path: str) -> None:
    assert await asked("GET", path) == {"name": "none"}


async def test_a_path_with_an_encoded_slash_is_not_found() -> None:
    assert await asked("GET", "/users/7", "/users%2f7") == {"name": "none"}
    assert await asked("GET", "/users/7", "/users%2F7") == {"name": "none"}
    assert await asked("GET", "/users/", "/users%2F") == {"name": "none"}


@pytest.mark.parametrize(
    "path", ["/", "/users", "/users/7", "/users/7/score", "/users/", "/lb", "/x", "//", "/users//"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_root_path_is_removed(method: str, path: str) -> None:
    expected = await asked(method, path)
    assert await asked(method, path, router=BELOW) == expected
    assert await asked(method, f"/lb/x{path}", router=BELOW) == expected


@pytest.mark.parametrize("path", ["/lb/x", "/lb/x/"])
async def test_the_root_path_alone_is_the_root(path: str) -> None:
    assert await asked("GET", path, router=BELOW) == {"name": "/"}


@pytest.mark.parametrize(
    "path",
    [
        *("/lb/xx", "/lb/xusers", "/lb/x/lb/x/users", "/lb/users", "/lb/x//users", "//lb/x/users", "lb/x/users"),
        *("/LB/x/users", "/lb//x/users", "/lb/x\n", "/lb/", "/l"),
    ],
)
async def test_a_path_that_only_resembles_the_root_path_is_not_found(path: str) -> None:
    assert await asked("GET", path, router=BELOW) == {"name": "none"}


async def test_the_root_path_has_no_encoded_slash() -> None:
    for raw_path in ("/lb/x%2Fusers", "/lb%2Fx/users"):
        assert await asked("GET", "/lb/x/users", raw_path, router=BELOW) == {"name": "none"}


@pytest.mark.parametrize("fails", ["startup", "shutdown", None])
async def test_the_lifespan_messages(fails: str | None) -> None:
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
