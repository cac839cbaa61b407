"""The header Host: which name a client has called this service by.

Two of them are read differently by a proxy and by us, and one that is no name means nothing to either; so both are
refused (RFC 9112, section 3.2).
"""

import re

from leaderboard.errors import LeaderboardError
from leaderboard.http.call import Scope

# A comma may stand in a host by the grammar. Here it is what became of two headers that a proxy has joined.
_HOST = re.compile(rb"(?:[\w.~%-]+|\[[\w.:~%-]+\])(?::\d*)?")
_fits = _HOST.fullmatch


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
