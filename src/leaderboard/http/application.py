"""The HTTP application of one process: the routes, wired to the service and to each other."""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import chain

from leaderboard.errors import LeaderboardError
from leaderboard.http import openapi
from leaderboard.http.access import Access
from leaderboard.http.asgi import AsgiApp, AsgiScope, Receive
from leaderboard.http.board_handlers import BoardHandlers
from leaderboard.http.cors import answering_preflights, options_response, with_cors
from leaderboard.http.deadlines import Deadlines
from leaderboard.http.endpoint import Endpoint, EndpointContext, RequestLog, error_handler
from leaderboard.http.handlers import Handlers, WebHandlers
from leaderboard.http.large_responses import LargeResponses
from leaderboard.http.read_responses import ReadResponses
from leaderboard.http.registry_handlers import RegistryHandlers
from leaderboard.http.response import Response
from leaderboard.http.route import Handler, Route
from leaderboard.http.router import NoSuchPath, Router, methods_of, strip_root_path
from leaderboard.http.routes import ROUTES
from leaderboard.http.status import ServiceStatus
from leaderboard.http.user_handlers import UserHandlers
from leaderboard.metrics import Metrics
from leaderboard.service.service import Service
from leaderboard.web.pages import Pages


class HttpApplication:
    """The leaderboard behind HTTP."""

    def __init__(
        self,
        service: Service,
        status: ServiceStatus,
        metrics: Metrics,
        access: Access,
        pages: Pages,
        *,
        max_top_n: int,
        deadline_s: float,
        root_path: str = "",
    ) -> None:
        """`deadline_s` is the time limit of a request, in seconds; responses name paths below `root_path`."""
        self.deadlines = Deadlines(deadline_s)
        self._access = access
        self._root_path = root_path
        self._context = EndpointContext(
            status, self.deadlines, LargeResponses(self.deadlines), RequestLog(metrics), root_path
        )
        document = openapi.document(
            ROUTES, status.version, access, settings={"max_top_n": max_top_n}, root_path=root_path
        )
        # Where reads need a key, a browser keeps no answer: the next person at the machine may have none.
        responses = ReadResponses(storable=not access.reads_need_key)
        handlers = Handlers(
            service.reads,
            service.writes,
            service.entries,
            status,
            access,
            metrics,
            self.deadlines,
            # A browser sends no key, so where reads need one it cannot see the home page.
            WebHandlers(pages, document, has_home_page=not access.reads_need_key),
            responses,
            max_top_n=max_top_n,
        )
        self._handlers = (
            handlers,
            BoardHandlers(
                service.reads,
                service.scores,
                service.boards,
                service.entries,
                responses,
                access,
                max_top_n=max_top_n,
            ),
            RegistryHandlers(service.boards, root_path=root_path),
            UserHandlers(service.users, service.writes, service.boards, access, root_path=root_path),
        )

    def asgi(self, lifespan: Callable[[], AbstractAsyncContextManager[None]]) -> AsgiApp:
        """Returns the ASGI application; `lifespan` is entered when the server starts, left when it stops."""
        routes = [(route.method, route.path, self._endpoint(route)) for route in ROUTES]
        if self._access.origins:
            app = self._asgi_for_pages(routes, lifespan)
        else:
            app = Router(routes, self._error_app, lifespan).serve
        return strip_root_path(self._root_path, app) if self._root_path else app

    @property
    def stopping(self) -> bool:
        """Whether `begin_to_stop` was called."""
        return self._context.status.stopping

    def begin_to_stop(self) -> None:
        """From now on: reports not ready, closes connections after each response, extends no deadline."""
        self._context.status.stopping = True
        self.deadlines.may_extend = False

    def _endpoint(self, route: Route) -> AsgiApp:
        return Endpoint(
            self._context,
            route.path,
            self._bound(route),
            writes=route.writes,
            access_check=self._access.check_for(route),
        ).serve

    def _bound(self, route: Route) -> Handler:
        """Returns the handler of the route, bound to the object whose method it is."""
        (owner,) = (each for each in self._handlers if getattr(type(each), route.name, None) is route.handler)
        return partial(route.handler, owner)

    def _error_app(self, error: LeaderboardError) -> AsgiApp:
        return Endpoint(self._context, "none", error_handler(error)).serve

    def _asgi_for_pages(
        self, routes: Iterable[tuple[str, str, AsgiApp]], lifespan: Callable[[], AbstractAsyncContextManager[None]]
    ) -> AsgiApp:
        """Returns the application with these routes, which pages of other sites may call."""
        methods: dict[str, list[str]] = {}
        for method, path, _ in routes:
            methods.setdefault(path, []).extend(methods_of(method))
        every_method = options_response(dict.fromkeys(chain.from_iterable(methods.values())))
        options = (("OPTIONS", path, self._options_app(path, of_path)) for path, of_path in methods.items())

        def error_app(error: LeaderboardError) -> AsgiApp:
            if not isinstance(error, NoSuchPath):
                return self._error_app(error)
            # If the preflight fails, the browser does not show the page that there is no such path.
            return Endpoint(self._context, "none", answering_preflights(error_handler(error), every_method)).serve

        router = Router(chain(routes, options), error_app, lifespan)
        return with_cors(router.serve, self._access.origins)

    def _options_app(self, path: str, methods: Iterable[str]) -> AsgiApp:
        response = options_response((*methods, "OPTIONS"))

        async def options(_scope: AsgiScope, _receive: Receive) -> Response:
            return response

        return Endpoint(self._context, path, options).serve
