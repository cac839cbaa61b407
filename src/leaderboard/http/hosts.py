"""The headers Host and Origin.

A proxy and this service may each choose another one of two Hosts, or read an invalid one differently. So both are
refused (RFC 9112, section 3.2). Browsers set Origin, and no page can change it; other clients send none.
"""

import re
from collections.abc import Collection
from types import MappingProxyType

from leaderboard.errors import LeaderboardError
from leaderboard.http.asgi import AsgiScope

# The grammar allows a comma in a host. Here a comma means that a proxy has joined two headers.
_HOST = re.compile(rb"([\w.~%-]+|\[[\w.:~%-]+\])(?::\d*)?")
_match = _HOST.fullmatch
_DEFAULT_PORTS = MappingProxyType({b"http": b":80", b"https": b":443"})


class InvalidHost(LeaderboardError):
    """The request has no Host, more than one, or an invalid one."""

    def __init__(self) -> None:
        super().__init__("the header Host must be given once: a name or an address, with a port or without")


class HostCheck:
    """Checks the header Host. Nearly all requests have the same one, so the last valid one is remembered."""

    __slots__ = ("_last_valid",)

    def __init__(self) -> None:
        self._last_valid = b""

    def has_one(self, scope: AsgiScope) -> bool:
        """Returns True if the request has exactly one valid Host; with HTTP/1.0 it may have none.

        HTTP/1.0 has no such header, and some health checks still use that version.
        """
        host: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    return False
                host = value
        if not host:
            # The server adds an empty Host where there is none.
            return bool(scope["http_version"] != "1.1")
        if host != self._last_valid:
            if not _match(host):
                return False
            self._last_valid = host
        return True


class AllowedOrigins:
    """The origins of other sites whose pages may call the API. False if there are none."""

    __slots__ = ("_origins", "any")

    def __init__(self, origins: Collection[str] = ()) -> None:
        """`origins` are as browsers send them; `*` alone is every origin."""
        self.any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def allow(self, scope: AsgiScope) -> bytes | None:
        """Returns the value of Access-Control-Allow-Origin for the answer; None if it must not have one.

        With `*` that is `*` for every request. Otherwise it is the one Origin of the request, if it is allowed.
        """
        if self.any:
            return b"*"
        origins = _origins(scope)
        return origins[0] if len(origins) == 1 and origins[0] in self._origins else None


def from_own_page(scope: AsgiScope) -> bool:
    """Returns False for a request from a page of another site: Origin is present and differs from Host.

    The scheme is not compared, as a proxy may terminate TLS. The Origin `null`, which a sandboxed frame or a local
    file sends, matches no host.
    """
    origins = _origins(scope)
    if not origins:
        return True
    scheme, _, site = origins[0].lower().partition(b"://")
    port, host = _DEFAULT_PORTS.get(scheme), _host(scope)
    if len(origins) > 1 or port is None or not host:
        return False
    return site.removesuffix(port) == host.removesuffix(port)


def host_name(scope: AsgiScope) -> bytes:
    """Returns the Host without its port, in lower case; empty if there is none."""
    match = _match(_host(scope))
    return b"" if match is None else match[1]


def _origins(scope: AsgiScope) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"origin"]


def _host(scope: AsgiScope) -> bytes:
    """Returns the Host in lower case; empty if there is none."""
    return next((bytes(value).lower() for name, value in scope["headers"] if name == b"host"), b"")
