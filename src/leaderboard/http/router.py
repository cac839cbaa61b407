"""Routes requests to endpoints, and handles the ASGI lifespan.

A request that does not name exactly one host is answered with an error here, because that applies to every path,
also to those that do not exist.
"""

import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from urllib.parse import unquote

from leaderboard.errors import LeaderboardError
from leaderboard.http.asgi import AsgiApp, AsgiScope, Receive, Send
from leaderboard.http.hosts import HostCheck, InvalidHost


class NoSuchPath(LeaderboardError):
    """No route has this path."""


class MethodNotAllowed(LeaderboardError):
    """The path exists, but not with this method; `allowed` is the value of the header Allow."""

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed
        super().__init__(f"allow: {allowed}")


def strip_root_path(root_path: str, app: AsgiApp) -> AsgiApp:
    """Returns `app` behind `root_path`, which is removed from the paths that begin with it.

    A proxy may have removed it already, so a request without it is served too.
    """
    prefix = f"{root_path}/"
    length = len(root_path)

    def serve(scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith(prefix):
                scope["path"] = path[length:]
            elif path == root_path:
                scope["path"] = "/"
        return app(scope, receive, send)

    return serve


class _Node:
    """One segment of the paths: the next segments, and the applications of a path that ends here."""

    __slots__ = ("apps", "literals", "parameter", "parameter_name")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.parameter_name = ""
        self.apps: dict[str, AsgiApp] = {}
        """By method."""

    def child(self, segment: str) -> "_Node":
        """Returns the node of a segment that follows, as a route writes it. Creates it if necessary."""
        if not segment.startswith("{"):
            return self.literals.setdefault(segment, _Node())
        name = segment[1:-1]
        if self.parameter is None:
            self.parameter, self.parameter_name = _Node(), name
        if self.parameter_name != name:
            raise ValueError(f"the parameters {self.parameter_name!r} and {name!r} are at the same place")
        return self.parameter


class Router:
    """Several applications as one, each for a method and a path.

    The paths are a tree of segments, so a look-up takes as long as the path has segments, however many routes
    there are. A literal segment is preferred to a parameter.
    """

    def __init__(
        self,
        routes: Iterable[tuple[str, str, AsgiApp]],
        error_app: Callable[[LeaderboardError], AsgiApp],
        lifespan: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        """`routes` are methods, paths with parameters in braces, and applications. GET serves HEAD as well.

        A path with a slash at the end is the same as the one without.

        `error_app` returns the application that answers with an error. `lifespan` is entered when the server
        starts and left when it stops.
        """
        self._root = _Node()
        self._hosts = HostCheck()
        self._error_app = error_app
        self._lifespan = lifespan
        for method, path, app in routes:
            node = self._root
            for segment in path.split("/"):
                node = node.child(segment)
            node.apps.update(dict.fromkeys(("GET", "HEAD") if method == "GET" else (method,), app))
            if path != "/":
                node.child("").apps = node.apps

    def serve(self, scope: AsgiScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answers a request by the application of its route, or handles the lifespan.

        Sets `path_params` in the scope of a request: the parameters of the path by their names.
        """
        if scope["type"] == "lifespan":
            return self._serve_lifespan(receive, send)
        raw_path = scope.get("raw_path", b"")
        if not self._hosts.has_one(scope):
            app = self._error_app(InvalidHost())
        elif b"%" in raw_path and b"%2f" in raw_path.lower():
            segments = _segments(raw_path, scope["path"])
            app = self._find(scope, segments) if segments else self._error_app(NoSuchPath())
        else:
            app = self._find(scope, scope["path"].split("/"))
        return app(scope, receive, send)

    def _find(self, scope: AsgiScope, segments: Iterable[str]) -> AsgiApp:
        node = self._root
        parameters: dict[str, str] = {}
        for segment in segments:
            child = node.literals.get(segment)
            if child is None:
                child = node.parameter
                if child is None or not segment:
                    return self._error_app(NoSuchPath())
                parameters[node.parameter_name] = segment
            node = child
        scope["path_params"] = parameters
        app = node.apps.get(scope["method"])
        if app is not None:
            return app
        return self._error_app(MethodNotAllowed(", ".join(node.apps)) if node.apps else NoSuchPath())

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        phase = "startup"
        try:
            await receive()
            async with self._lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except BaseException:
            await send({"type": f"lifespan.{phase}.failed", "message": traceback.format_exc()})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _segments(raw_path: bytes, path: str) -> list[str]:
    """Returns the segments of a path with an encoded slash; none if it must not be found.

    The server has decoded `path`, so that the slash would separate segments. It may be in an external id only, in
    a segment that begins with `@`. Elsewhere the path might mean one thing here and another to a proxy in front.
    `path` may lack the first segments, those of the root path.
    """
    _, *segments = [unquote(segment.decode("latin-1")) for segment in raw_path.split(b"/")]
    if all("/" not in segment or segment.startswith("@") for segment in segments):
        for first in range(len(segments)):
            if path == "".join(f"/{segment}" for segment in segments[first:]):
                return ["", *segments[first:]]
    return []
