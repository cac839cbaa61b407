"""Parses REDIS_URL: the servers, how to find the primary among them, and the login."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

Address = tuple[str, int]
"""A host and a port."""

ALLOWED = (
    "a URL such as redis://host:6379, rediss://user:<password>@host:6379/0, unix:///path, redis://a:6379,b:6379"
    " for a Cluster, or redis+sentinel://a:26379,b:26379/service; ports from 1 to 65535, the database a number,"
    " a % in the password written %25"
)

_SCHEMES = frozenset({"redis", "rediss", "redis+sentinel", "rediss+sentinel", "unix"})
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_DATABASE = re.compile(r"[0-9]{0,4}")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a Redis URL.

    `addresses` are the Sentinels' if there is a `service`, otherwise one server's, or those of some nodes of a
    Cluster. There are none if `path` is the server's socket.
    """

    addresses: tuple[Address, ...] = ()
    path: str = ""
    service: str = ""
    tls: bool = False
    username: str = ""
    password: str = ""
    database: int = 0


def parse_redis_url(url: str) -> RedisUrl:
    """Return the parts of a URL. Raises ValueError whose message says what is allowed."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(ALLOWED)
    # The password may contain @, so it ends at the last one.
    userinfo, _, place = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    username, _, password = userinfo.partition(":")
    if _BAD_ESCAPE.search(userinfo):
        raise ValueError(ALLOWED)
    place, _, query = place.partition("?")
    hosts, _, path = place.partition("/")
    service, database = "", path
    if scheme.endswith("+sentinel"):
        service, _, database = path.partition("/")
    if scheme == "unix":
        database = _only_database(query)
    elif query:
        raise ValueError(ALLOWED)
    named = bool(_SERVICE.fullmatch(service)) == scheme.endswith("+sentinel")
    if not named or not _DATABASE.fullmatch(database) or (scheme == "unix" and (hosts or not path)):
        raise ValueError(ALLOWED)
    return RedisUrl(
        addresses=() if scheme == "unix" else _addresses(hosts, 26379 if service else 6379),
        path="/" + path if scheme == "unix" else "",
        service=service,
        tls=scheme.startswith("rediss"),
        username=unquote(username),
        password=unquote(password),
        database=int(database or 0),
    )


def _only_database(query: str) -> str:
    """Return the database in the query of a socket's URL. Its path has no place for it."""
    try:
        parameters = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError(ALLOWED) from None
    if parameters.keys() - {"db"}:
        raise ValueError(ALLOWED)
    return parameters.get("db", "")


def _addresses(hosts: str, default_port: int) -> tuple[Address, ...]:
    found = []
    for text in hosts.split(","):
        match = _HOST_AND_PORT.fullmatch(text)
        port = int(match[2] or default_port) if match else 0
        if match is None or not 1 <= port <= 65535:
            raise ValueError(ALLOWED)
        found.append((match[1].strip("[]"), port))
    return tuple(dict.fromkeys(found))
