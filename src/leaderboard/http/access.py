"""Who may call what, and how often: asked once a request, before its handler, of the row of the route table.

Who calls: a key with its scopes, a user with a token of its own, or nobody known, who is then an address. Where
a call cannot be refused, nothing is asked.
"""

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leaderboard.credentials import KeyRing, Scope
from leaderboard.errors import LeaderboardError
from leaderboard.http.call import Call
from leaderboard.http.call import Scope as Request
from leaderboard.http.hosts import from_own_page, host_name
from leaderboard.http.limits import Limiter, Network, origin

if TYPE_CHECKING:
    from leaderboard.tokens import UserTokens


class Refused(LeaderboardError):
    """The caller may not make this call, or not now; nothing of it was looked at."""


class Unauthorized(Refused):
    """The call needs a credential, and came without one or with one that is not known."""


class Forbidden(Refused):
    """The credential is known, and is not good for this call."""


class MisdirectedRequest(Refused):
    """The request is for a host that is not among those this service answers for."""

    def __init__(self, host: bytes) -> None:
        super().__init__(f"the host {host.decode('latin-1')!r} is not in ALLOWED_HOSTS")


class CrossOriginWrite(Refused):
    """Another site's page would write where no key is needed to."""

    def __init__(self) -> None:
        super().__init__("without keys, pages of other sites may not write: Origin must be the host that is asked")


class RateLimited(Refused):
    """The caller has reached its rate limit; it may call again in `retry_after_s` seconds, at least 1."""

    def __init__(self, what: str, wait_ms: int) -> None:
        self.retry_after_s = max(1, math.ceil(wait_ms / 1000))
        super().__init__(f"the rate limit of this {what} is reached; retry in {self.retry_after_s} s")


@dataclass(frozen=True, slots=True)
class _Caller:
    called: str
    scopes: frozenset[Scope]
    user_id: str | None = None


_READS: frozenset[Scope] = frozenset({"read"})


class Access:
    """Access policy. Without keys or tokens all calls are public; without limits they are not rate-limited.

    A write that another site's page has a browser send is refused even then.
    """

    def __init__(
        self,
        keys: KeyRing,
        tokens: "UserTokens | None" = None,
        *,
        reads_need_key: bool = False,
        user_writes: bool = False,
        per_key: Limiter | None = None,
        per_address: Limiter | None = None,
        trusted_proxies: Sequence[Network] = (),
        hosts: Collection[bytes] = (),
    ) -> None:
        """`hosts` are those that a request may be for, in small letters and without ports; none: any."""
        self._keys = keys
        self._tokens = tokens
        self._user_writes = user_writes
        self._per_key = per_key
        self._per_address = per_address
        self._trusted = trusted_proxies
        self._hosts = hosts
        self.guarded = bool(keys) or tokens is not None
        """Whether there are keys or tokens. Without them anyone may write."""
        self.reads_need_key = self.guarded and reads_need_key

    def needs(self, call: Call) -> Scope | None:
        """The scope that this call needs here, None if it is open to all."""
        if not self.guarded or (call.needs == "read" and not self.reads_need_key):
            return None
        return call.needs

    def users_may(self, call: Call) -> bool:
        """Whether a user's own token is good for this call, at least where the user is itself."""
        return self._tokens is not None and (call.needs == "read" or (call.own and self._user_writes))

    def gate(self, call: Call) -> Callable[[Request], str] | None:
        """What to ask of each request of this call; it names the caller, or raises Refused. None: nothing.

        The name is empty where nobody known calls.
        """
        needs = self.needs(call)
        limited = call.limited and (self._per_key or self._per_address) is not None
        # Anyone who reaches an open board may write; a page that a browser has opened elsewhere may not.
        own_pages_only = not self.guarded and call.needs == "write"
        # Health checks call a process by its address.
        hosts = self._hosts if call.limited else ()
        if needs is None and not limited and not own_pages_only and not hosts:
            return None

        def ask(request: Request) -> str:
            if hosts and (host := host_name(request)) not in hosts:
                raise MisdirectedRequest(host)
            if own_pages_only and not from_own_page(request):
                raise CrossOriginWrite
            if needs is None and not limited:
                return ""
            caller = self._caller(request, limited=limited)
            if needs is None:
                return "" if caller is None else caller.called
            if caller is None:
                wanted = ", or a user's token" if self.users_may(call) else ""
                raise Unauthorized(f"the header Authorization: Bearer is needed, and a key for {needs}{wanted}")
            itself = call.own and self._user_writes and request["path_params"]["id"] == caller.user_id
            if needs not in caller.scopes and not itself:
                raise Forbidden(f"{caller.called} may not {request['method']} {request['path']}")
            return caller.called

        return ask

    def _caller(self, request: Request, *, limited: bool) -> _Caller | None:
        """Who it is, None for nobody known; with `limited` the request is counted, and RateLimited raised."""
        credential = _bearer(request)
        key = self._keys.find(credential)
        caller = None if key is None else _Caller(f"the key {key.name}", key.scopes)
        if caller is None:
            # Counted before a token is verified, which costs more than anything else here.
            if limited and self._per_address is not None:
                _count(self._per_address, self._address(request), "address")
            user_id = self._tokens.user_id(credential) if self._tokens is not None and credential else None
            if user_id is not None:
                caller = _Caller(f"user {user_id}", _READS, user_id)
        if limited and self._per_key is not None and caller is not None:
            _count(self._per_key, caller.called, "key" if caller.user_id is None else "user")
        return caller

    def _address(self, request: Request) -> bytes:
        client: Any = request.get("client")
        forwarded = [value for name, value in request["headers"] if name == b"x-forwarded-for"]
        return origin(client[0] if client else "", forwarded, self._trusted)


def _count(limiter: Limiter, caller: Hashable, what: str) -> None:
    wait_ms = limiter.hit(caller)
    if wait_ms:
        raise RateLimited(what, wait_ms)


def _bearer(request: Request) -> bytes:
    """The credential of the request; empty if there is none, or more than one, which might differ."""
    found = [value for name, value in request["headers"] if name == b"authorization"]
    if len(found) != 1:
        return b""
    scheme, _, credential = found[0].partition(b" ")
    return bytes(credential.strip()) if scheme.lower() == b"bearer" else b""
