"""The formats of settings that are texts: rate limits, networks, host names, paths, URLs.

Each function raises ValueError whose message says what is allowed: "empty, or …".
"""

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

_MAX_RATE = 10_000
"""Requests in a window. All of them are remembered, so the number bounds the memory."""
_RATE = re.compile(r"([1-9]\d{0,4})/(second|minute|hour)", re.ASCII)
_WINDOW_S = MappingProxyType({"second": 1, "minute": 60, "hour": 3600})
_IMAGE_SOURCE = re.compile(r"https?:(//[A-Za-z0-9.-]+(:\d+)?/)?")
_HOST_NAME = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9]\d{0,4}))?", re.ASCII)
_DEFAULT_PORTS = MappingProxyType({"http": "80", "https": "443"})
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_OWN_PATHS = ("assets", "boards", "docs", "leaderboard", "livez", "metrics", "openapi.json", "readyz", "users")
"""The first parts of the service's own paths."""
_MAX_PORT = 65_535
_ALGORITHM = re.compile(r"(HS|RS|PS|ES)(256|384|512)|EdDSA")
_POSTGRES_URL = (
    "empty, or a URL like postgresql://user:<password>@host:5432/database, percent-encoded, with no other"
    " parameters than sslmode, sslrootcert, sslcert and sslkey"
)
_POSTGRES_PARAMETERS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey"})


def on_or_off(value: object) -> object:
    """Return True for `on` and False for `off`, and a bool as it is."""
    if isinstance(value, bool):
        return value
    if value not in ("on", "off"):
        raise ValueError("one of on, off")
    return value == "on"


def rate(text: str) -> tuple[int, int] | None:
    """Return a limit such as `100/minute` as requests and seconds, or None for an empty text."""
    if not text:
        return None
    match = _RATE.fullmatch(text)
    if match is None or int(match[1]) > _MAX_RATE:
        raise ValueError(f"empty, or 1 to {_MAX_RATE} requests a second, minute or hour, like 100/second")
    return int(match[1]), _WINDOW_S[match[2]]


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks, or single addresses, of a list separated by spaces."""
    try:
        if is_blank(text):
            raise ValueError
        return tuple(ip_network(part) for part in text.split())
    except ValueError:
        raise ValueError("empty, or networks like 10.0.0.0/8 or fd00::/8, no bits set beyond the prefix") from None


def host_names(text: str) -> frozenset[str]:
    """Return the hosts, in lower case, of a list separated by spaces."""
    names = text.lower().split()
    if is_blank(text) or not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("empty, or hosts without a port, like board.example, 127.0.0.1 or [::1]")
    return frozenset(names)


def origins(text: str) -> frozenset[str]:
    """Return the origins of a list separated by spaces, as browsers send them in Origin; `*` alone is any."""
    names = text.lower().split()
    if names == ["*"]:
        return frozenset(names)
    try:
        if is_blank(text):
            raise ValueError
        return frozenset(map(_origin, names))
    except ValueError:
        raise ValueError(
            "empty, * alone, or origins like https://game.example or http://localhost:8080: a scheme, a host and"
            " perhaps a port, without a path and without a slash at the end"
        ) from None


def _origin(text: str) -> str:
    """Return an origin without its scheme's default port, and with an IPv6 address in its short form."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError
    scheme, host, port = match.groups()
    if host.startswith("["):
        host = f"[{IPv6Address(host[1:-1]).compressed}]"
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    if int(port) > _MAX_PORT:
        raise ValueError
    return f"{scheme}://{host}:{port}"


def root_path(path: str) -> str:
    """Return a path below which a proxy serves the board."""
    # Not the service's own paths: behind a proxy that removes the prefix, /users/7 would have two meanings.
    if path and (not _ROOT_PATH.fullmatch(path) or path.split("/")[1] in _OWN_PATHS):
        raise ValueError(
            "empty, or a path like /lb or /games/board: of A-Z a-z 0-9 . _ ~ and -, no slash at its end,"
            f" its first part none of {', '.join(_OWN_PATHS)}"
        )
    return path


def image_sources(sources: str) -> str:
    """Return sources for the page's Content-Security-Policy, separated by spaces."""
    if is_blank(sources) or not all(_IMAGE_SOURCE.fullmatch(source) for source in sources.split()):
        raise ValueError("empty, or sources like https: or https://img.example.com/")
    return sources


def jwt_algorithms(names: str) -> str:
    """Return names of algorithms, separated by spaces."""
    if is_blank(names) or not all(_ALGORITHM.fullmatch(name) for name in names.split()):
        raise ValueError("empty, or some of HS256, HS384, HS512, the same with RS, PS or ES, and EdDSA")
    return names


def certificate_file(file: str) -> str:
    """Return the path of a file that exists."""
    if file and not Path(file).is_file():
        raise ValueError("empty, or a file that can be read, of a certificate in PEM")
    return file


def postgres_url(url: str) -> dict[str, Any]:
    """Return the settings that a PostgreSQL URL stands for, by their names."""
    try:
        parts = urlsplit(url)
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        found: dict[str, Any] = {
            "db_host": unquote(parts.hostname or ""),
            "db_port": parts.port,
            "db_name": unquote(parts.path.removeprefix("/")),
            "db_user": unquote(parts.username or ""),
            "db_password": unquote(parts.password or ""),
        }
    except ValueError:
        raise ValueError(_POSTGRES_URL) from None
    names = [name for name, _ in parameters]
    known = _POSTGRES_PARAMETERS.issuperset(names) and len(set(names)) == len(names)
    if parts.scheme not in {"postgresql", "postgres"} or parts.fragment or not known or "," in parts.netloc:
        raise ValueError(_POSTGRES_URL)
    found |= {f"db_{name}": value for name, value in parameters}
    return {name: value for name, value in found.items() if value}


def is_blank(text: str) -> bool:
    """Return whether a text is of white space alone, which a template leaves where its value is missing."""
    return text.isspace()


def _not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("empty, or a text that is not blank")
    return text


def _secret_not_blank(secret: SecretStr) -> SecretStr:
    _not_blank(secret.get_secret_value())
    return secret


def _checked(check: Any) -> AfterValidator:
    """Return a validator that keeps the text that `check` accepts."""

    def validate(text: str) -> str:
        check(text)
        return text

    return AfterValidator(validate)


OnOff = Annotated[bool, BeforeValidator(on_or_off)]
Text = Annotated[str, AfterValidator(_not_blank)]
Secret = Annotated[SecretStr, AfterValidator(_secret_not_blank)]
Rate = Annotated[str, _checked(rate)]
Networks = Annotated[str, _checked(networks)]
HostNames = Annotated[str, _checked(host_names)]
Origins = Annotated[str, _checked(origins)]
RootPath = Annotated[str, AfterValidator(root_path)]
ImageSources = Annotated[str, AfterValidator(image_sources)]
JwtAlgorithms = Annotated[str, AfterValidator(jwt_algorithms)]
CertificateFile = Annotated[str, AfterValidator(certificate_file)]
