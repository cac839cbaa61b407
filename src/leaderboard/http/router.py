"""Routes requests to endpoints, and handles the ASGI lifespan.

It is part of every call, so it does no more than the table of calls needs: paths of literal parts and of
parameters that are one part each, and the methods of each path. A request that does not name exactly one host is
refused here, because that applies to every path, unknown ones too.
"""

import re
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager

from leaderboard.errors import LeaderboardError
from leaderboard.http.call import AsgiApp, Receive, Scope, Send
from leaderboard.http.hosts import InvalidHost, has_one_host

_PARAMETER = re.compile(r"\{(\w+)\}")


class NoSuchPath(LeaderboardError):
    """Nothing is served at this path."""


class MethodNotAllowed(LeaderboardError):
    """Something is served at this path, by other methods; `allowed` has them, as the header Allow does."""

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed
        super().__init__(f"allow: {allowed}")


def below(root_path: str, app: AsgiApp) -> AsgiApp:
    """`app` for requests whose path begins with `root_path`, and for those from which a proxy has removed it.

    It changes the path of the request; `app` never sees `root_path`.
    """
    start = f"{root_path}/"
    length = len(root_path)

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith(start):
                scope["path"] = path[length:]
            elif path == root_path:
                scope["path"] = "/"
        return app(scope, receive, send)

    return serve


class Router:
    """Several applications as one, each for a method and a path; where there is none, what `refuse` returns."""

    def __init__(
        self,
        routes: Iterable[tuple[str, str, AsgiApp]],
        refuse: Callable[[LeaderboardError], AsgiApp],
        lifespan: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        """`routes` are methods, paths with parameters in braces, and who answers; GET answers HEAD as well.

        A path with a slash at the end is answered as the one without.

        `lifespan` is entered when the server starts and left when it stops.
        """
        by_path: dict[str, dict[str, AsgiApp]] = {}
        for method, path, app in routes:
            apps = by_path.setdefault(path, {})
            apps.update(dict.fromkeys(("GET", "HEAD") if method == "GET" else (method,), app))
        self._routes = [(_pattern(path).fullmatch, apps) for path, apps in by_path.items()]
        self._refuse = refuse
        self._lifespan = lifespan

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request, by the application that is there for it; or be told of the start and the end.

        The scope gets `path_params`, from which that application takes its parameters by their names.
        """
        if scope["type"] == "lifespan":
            return self._live(receive, send)
        return self._find(scope)(scope, receive, send)

    def _find(self, scope: Scope) -> AsgiApp:
        if not has_one_host(scope):
            return self._refuse(InvalidHost())
        # The path is decoded already: an encoded slash would be one in it, and a path have many spellings, of
        # which a proxy before us may know one.
        raw_path = scope.get("raw_path", b"")
        if b"%" in raw_path and b"%2f" in raw_path.lower():
            return self._refuse(NoSuchPath())
        path = scope["path"]
        for matches, apps in self._routes:
            if match := matches(path):
                scope["path_params"] = match
                app = apps.get(scope["method"])
                return app or self._refuse(MethodNotAllowed(", ".join(apps)))
        return self._refuse(NoSuchPath())

    async def _live(self, receive: Receive, send: Send) -> None:
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


def _pattern(path: str) -> re.Pattern[str]:
    """Matches the path, and all but `/` with a slash at the end as well."""
    literals = _PARAMETER.split(path)
    literals[::2] = map(re.escape, literals[::2])
    literals[1::2] = [f"(?P<{name}>[^/]+)" for name in literals[1::2]]
    return re.compile("".join(literals) + ("" if path == "/" else "/?"))
