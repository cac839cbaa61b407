"""The headers Host and Origin: by which name a client calls this service, and which site's page has it call.

Two Hosts are read differently by a proxy and by us, and one that is no name means nothing to either; so both are
refused (RFC 9112, section 3.2). Origin is what a browser says, and no page can change it; other clients send none.
"""

import re
from types import MappingProxyType

from leaderboard.errors import LeaderboardError
from leaderboard.http.call import Scope

# A comma may stand in a host by the grammar. Here it is what became of two headers that a proxy has joined.
_HOST = re.compile(rb"([\w.~%-]+|\[[\w.:~%-]+\])(?::\d*)?")
_fits = _HOST.fullmatch
_DEFAULT_PORTS = MappingProxyType({b"http": b":80", b"https": b":443"})


class InvalidHost(LeaderboardError):
    """The request has no Host, more than one, or one that is no host."""

    def __init__(self) -> None:
        super().__init__("the header Host must be given once: a name or an address, with a port or without")


def has_one_host(scope: Scope) -> bool:
    """Whether the request names exactly one host; one of HTTP/1.0 may name none.

    HTTP/1.0 did not know the header, and some health checks still speak it.
    """
    host: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"host":
            if host is not None:
                return False
            host = value
    # The server puts an empty one where there is none.
    return _fits(host) is not None if host else scope["http_version"] != "1.1"


def from_own_page(scope: Scope) -> bool:
    """False for a request that another site's page sends: Origin is there, and is not the host that is asked.

    The scheme is not compared, as a proxy before us may have ended TLS. `null`, which a sandboxed frame or a local
    file sends, is no host.
    """
    origins: list[bytes] = [value for name, value in scope["headers"] if name == b"origin"]
    if not origins:
        return True
    scheme, _, site = origins[0].lower().partition(b"://")
    port, host = _DEFAULT_PORTS.get(scheme), _host(scope)
    if len(origins) > 1 or port is None or not host:
        return False
    return site.removesuffix(port) == host.removesuffix(port)


def host_name(scope: Scope) -> bytes:
    """The Host without its port, in small letters; empty if there is none."""
    match = _fits(_host(scope))
    return b"" if match is None else match[1]


def _host(scope: Scope) -> bytes:
    """The Host in small letters; empty if there is none."""
    return next((bytes(value).lower() for name, value in scope["headers"] if name == b"host"), b"")
