"""Access control and rate limits: checked once for each request, before its handler.

A caller is a key with its scopes and perhaps its boards, a user with a token, or an address. A route that no
request can be denied is not checked at all.
"""

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.credentials import KeyRing, Scope
from leaderboard.errors import LeaderboardError
from leaderboard.http.asgi import AsgiScope
from leaderboard.http.hosts import from_own_page, host_name
from leaderboard.http.limits import Limiter, Network, client_network
from leaderboard.http.route import Route

if TYPE_CHECKING:
    from leaderboard.tokens import UserTokens

_USER_SCOPES: frozenset[Scope] = frozenset({"read"})


class AccessDenied(LeaderboardError):
    """The caller may not use this route, or not now. Nothing else of the request was looked at."""


class Unauthorized(AccessDenied):
    """The route needs a credential, and the request has none or an unknown one."""


class Forbidden(AccessDenied):
    """The credential is known, but does not allow this request."""


class MisdirectedRequest(AccessDenied):
    """The request is for a host that is not in ALLOWED_HOSTS."""

    def __init__(self, host: bytes) -> None:
        super().__init__(f"the host {host.decode('latin-1')!r} is not in ALLOWED_HOSTS")


class CrossOriginWrite(AccessDenied):
    """A page of another site sends a write, where writes need no key."""

    def __init__(self) -> None:
        super().__init__("without keys, pages of other sites may not write: Origin must be the host in Host")


class RateLimited(AccessDenied):
    """The caller has reached its rate limit; it may retry in `retry_after_s` seconds, at least 1."""

    def __init__(self, caller: str, wait_ms: int) -> None:
        """`caller` is the kind of caller: a key, a user or an address."""
        self.retry_after_s = max(1, math.ceil(wait_ms / 1000))
        super().__init__(f"rate limit of this {caller} exceeded; retry in {self.retry_after_s} s")


@dataclass(frozen=True, slots=True)
class _Caller:
    name: str
    scopes: frozenset[Scope]
    user_id: str | None = None
    boards: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The rate limits; None is no limit."""

    per_key: Limiter | None = None
    per_address: Limiter | None = None
    trusted_proxies: Sequence[Network] = ()


class Access:
    """Access policy. Without keys or tokens all routes are public; without limits none is limited.

    A write that a page of another site sends is denied even then.
    """

    def __init__(
        self,
        keys: KeyRing,
        tokens: "UserTokens | None" = None,
        *,
        reads_need_key: bool = False,
        user_writes: bool = False,
        limits: RateLimits | None = None,
        hosts: Collection[bytes] = (),
    ) -> None:
        """`hosts` are those a request may be for, in lower case and without ports; empty: any."""
        self._keys = keys
        self._tokens = tokens
        self._user_writes = user_writes
        self._limits = limits or RateLimits()
        self._hosts = hosts
        self.guarded = bool(keys) or tokens is not None
        """Whether there are keys or tokens. Without them anyone may write."""
        self.reads_need_key = self.guarded and reads_need_key

    def needs(self, route: Route) -> Scope | None:
        """Returns the scope that the route needs under this policy, None if it is public."""
        if not self.guarded or (route.needs == "read" and not self.reads_need_key):
            return None
        return route.needs

    def has_scope(self, scope: Scope, request: AsgiScope, board: str | None = None) -> bool:
        """Returns True if the caller has a key for what needs the scope on all boards, or on `board`.

        Without keys everyone may do everything.
        """
        if not self.guarded:
            return True
        key = self._keys.find(_bearer(request))
        return key is not None and scope in key.scopes and (key.boards is None or board in key.boards)

    def accepts_user_tokens(self, route: Route) -> bool:
        """Returns True if a user's token allows the route, perhaps only for that user."""
        if self._tokens is None:
            return False
        return route.needs == "read" or (route.own_user_only and self._user_writes)

    def check_for(self, route: Route) -> Callable[[AsgiScope], str] | None:
        """Returns the check for each request of the route; None if no request can be denied.

        The check returns the name of the caller, empty if it is unknown. It raises AccessDenied.
        """
        needs = self.needs(route)
        limited = route.limited and (self._limits.per_key or self._limits.per_address) is not None
        # Without credentials anyone who reaches the service may write; pages of other sites may not.
        own_pages_only = not self.guarded and route.writes
        # Health checks use the address of a process as the host.
        hosts = self._hosts if route.limited else ()
        if needs is None and not limited and not own_pages_only and not hosts:
            return None

        def check(request: AsgiScope) -> str:
            if hosts and (host := host_name(request)) not in hosts:
                raise MisdirectedRequest(host)
            if own_pages_only and not from_own_page(request):
                raise CrossOriginWrite
            if needs is None and not limited:
                return ""
            caller = self._caller(request, limited=limited)
            if needs is not None:
                self._authorize(route, needs, caller, request)
            return "" if caller is None else caller.name

        return check

    def _authorize(self, route: Route, needs: Scope, caller: _Caller | None, request: AsgiScope) -> None:
        """Raises Unauthorized or Forbidden unless the caller may use the route."""
        if caller is None:
            or_token = ", or a user's token" if self.accepts_user_tokens(route) else ""
            raise Unauthorized(f"the header Authorization: Bearer is required, with a key for {needs}{or_token}")
        if needs in caller.scopes:
            if caller.boards is not None:
                _check_board(route, caller.name, caller.boards, request)
            return
        own = route.own_user_only and self._user_writes and request["path_params"]["id"] == caller.user_id
        if not own:
            raise Forbidden(f"{caller.name} may not {request['method']} {request['path']}")

    def _caller(self, request: AsgiScope, *, limited: bool) -> _Caller | None:
        """Returns the caller, None if it is unknown. If `limited`, counts the request; raises RateLimited."""
        limits = self._limits
        credential = _bearer(request)
        key = self._keys.find(credential)
        caller = None if key is None else _Caller(f"the key {key.name}", key.scopes, boards=key.boards)
        if caller is None:
            # Counted before a token is verified, as that costs more than anything else here.
            if limited and limits.per_address is not None:
                _count(limits.per_address, self._network(request), "address")
            user_id = self._tokens.user_id(credential) if self._tokens is not None and credential else None
            if user_id is not None:
                caller = _Caller(f"user {user_id}", _USER_SCOPES, user_id)
        if limited and limits.per_key is not None and caller is not None:
            _count(limits.per_key, caller.name, "key" if caller.user_id is None else "user")
        return caller

    def _network(self, request: AsgiScope) -> bytes:
        client: Any = request.get("client")
        forwarded = [value for name, value in request["headers"] if name == b"x-forwarded-for"]
        return client_network(client[0] if client else "", forwarded, self._limits.trusted_proxies)


def _check_board(route: Route, caller: str, boards: Collection[str], request: AsgiScope) -> None:
    """Raises Forbidden unless the request is about one of the boards that the caller is limited to."""
    board = request["path_params"].get("board", DEFAULT_BOARD if route.on_default else None)
    if board not in boards:
        about = "all boards or users" if board is None else f"the board {board}"
        limit = f"it is limited to {'the boards ' if len(boards) > 1 else 'the board '}{', '.join(sorted(boards))}"
        raise Forbidden(f"{caller} may not {request['method']} {request['path']}, about {about}: {limit}")


def _count(limiter: Limiter, caller: Hashable, kind: str) -> None:
    wait_ms = limiter.hit(caller)
    if wait_ms:
        raise RateLimited(kind, wait_ms)


def _bearer(request: AsgiScope) -> bytes:
    """Returns the credential; empty if there is none, or more than one header, as they might differ."""
    values = [value for name, value in request["headers"] if name == b"authorization"]
    if len(values) != 1:
        return b""
    scheme, _, credential = values[0].partition(b" ")
    return bytes(credential.strip()) if scheme.lower() == b"bearer" else b""
