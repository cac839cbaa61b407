"""Settings: the only reader of the environment and of `.env`.

Every field is one environment variable of the same name in capitals, with its bounds; `docs/settings.md` and
the tests are held against this class.
"""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from leaderboard import tls
from leaderboard.credentials import ALLOWED, BadEntry, parse_keys
from leaderboard.redis_url import parse_redis_url

_NOT_BLANK = r"\S"
_IMAGE_SOURCE = re.compile(r"https?:(//[A-Za-z0-9.-]+(:\d+)?/)?")
_HOST_NAME = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_OWN_PATHS = ("assets", "docs", "leaderboard", "livez", "metrics", "openapi.json", "readyz", "users")
"""The first parts of the service's own paths."""
_ALGORITHM = re.compile(r"(HS|RS|PS|ES)(256|384|512)|EdDSA")
_RATE = re.compile(r"([1-9]\d{0,4})/(second|minute|hour)", re.ASCII)
_SECONDS = MappingProxyType({"second": 1, "minute": 60, "hour": 3600})
_WITHOUT_VERIFICATION = frozenset({"disable", "allow", "prefer"})
_MOST_REQUESTS = 10_000
"""Every request that a window holds is remembered."""
FEWEST_CONNECTIONS = 16
"""The least that MAX_CONNECTIONS may be."""


class BadSetting(Exception):
    """A setting that cannot be used: one line naming the variable, its value and what is allowed."""


class Settings(BaseSettings):
    """How one process is set up. The first eight are the original service's names and defaults."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    port: int = Field(3000, ge=1, le=65535, description="TCP port the API listens on")
    db_host: str = Field("postgres", pattern=_NOT_BLANK, description="PostgreSQL host, or directory of its socket")
    db_port: int = Field(5432, ge=1, le=65535, description="PostgreSQL port")
    db_name: str = Field("leaderboard", pattern=_NOT_BLANK, description="PostgreSQL database")
    db_user: str = Field("postgres", pattern=_NOT_BLANK, description="PostgreSQL role")
    db_password: SecretStr = Field(SecretStr("password"), description="PostgreSQL password; never logged")
    database_url: SecretStr = Field(
        SecretStr(""),
        description="`postgresql://user:<password>@host:port/database` instead of the five settings before it,"
        " with `?sslmode=` and the like instead of the four after it; empty: not used; never logged",
    )
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer", description="whether PostgreSQL is spoken to with TLS, and how its certificate is verified"
    )
    db_sslrootcert: str = Field(
        "", description="file of the authorities that PostgreSQL's certificate may be from; empty: the system's"
    )
    db_sslcert: str = Field("", description="file of the client's certificate; empty: none")
    db_sslkey: str = Field("", description="file of the client's key; empty: none", validate_default=True)
    redis_url: SecretStr = Field(
        SecretStr("redis://redis:6379"),
        description="Redis or Valkey: `redis://`, with TLS `rediss://`, by Sentinel `redis+sentinel://` or"
        " `rediss+sentinel://`, or `unix://`; several hosts are nodes of a Cluster, or Sentinels; never logged",
    )
    redis_password: SecretStr = Field(
        SecretStr(""), description="Redis password as it is, instead of the one in the URL; never logged"
    )
    redis_sentinel_password: SecretStr = Field(
        SecretStr(""), description="password of the Sentinels; empty: they have none; never logged"
    )
    redis_sslmode: Literal["require", "verify-ca", "verify-full"] = Field(
        "verify-full", description="how Redis's certificate is verified where the URL says TLS; `require`: not"
    )
    redis_sslrootcert: str = Field(
        "", description="file of the authorities that Redis's certificate may be from; empty: the system's"
    )
    redis_sslcert: str = Field("", description="file of the client's certificate for Redis; empty: none")
    redis_sslkey: str = Field(
        "", description="file of the client's key for Redis; empty: none", validate_default=True
    )

    api_keys: SecretStr = Field(
        SecretStr(""),
        description="keys that may call, separated by commas, a bare one for reads and writes; empty: anyone may"
        " write; never logged",
    )
    jwt_algorithms: str = Field(
        "", description="how users' tokens are signed, such as `ES256`; several are separated by spaces"
    )
    jwt_key: SecretStr = Field(
        SecretStr(""),
        description="what users' tokens are verified with, line ends written `\\n` if need be; empty: there are no"
        " such tokens; never logged",
        validate_default=True,
    )
    jwt_audience: str = Field("", description="the `aud` that users' tokens must have; empty: they must have none")
    jwt_issuer: str = Field("", description="the `iss` that users' tokens must have; empty: any or none")
    reads: Literal["open", "key"] = Field(
        "open", description="`key`: a read needs a key with `read`, or a user's token"
    )
    allow_user_writes: Literal["on", "off"] = Field(
        "off", description="`on`: a user's token may set the score of that user; see what belongs together"
    )
    rate_limit_per_key: str = Field(
        "",
        description="how often one key, or one user with a token, may call, such as `100/second`; empty: any",
    )
    rate_limit_per_address: str = Field(
        "",
        description="how often whoever shows no key may call from one address (of IPv6, one /64); empty: any",
    )
    trusted_proxies: str = Field(
        "",
        description="networks of the proxies whose `X-Forwarded-For` is believed, separated by spaces",
    )
    allowed_hosts: str = Field(
        "",
        description="hosts that a request may name in `Host`, whatever its port, separated by spaces; empty: any",
    )
    root_path: str = Field(
        "",
        description="path below which a proxy serves the board, such as `/lb`; empty: the board has its own host",
    )
    host: str = Field("0.0.0.0", pattern=_NOT_BLANK, description="address the API listens on")  # noqa: S104
    workers: int = Field(1, ge=1, le=64, description="API processes that share the port")
    cache_size: int = Field(10_000, ge=10, le=100_000, description="best users the cache always holds")
    max_top_n: int = Field(100_000, ge=1, le=100_000, description="largest n of `/leaderboard/top/{n}`")
    sync_interval_ms: int = Field(
        300, ge=50, le=400, description="how often each process brings the cache up to date, in milliseconds"
    )
    audit_interval_s: float = Field(
        60, ge=0, le=86_400, description="seconds between comparisons of the cache with PostgreSQL; 0: never"
    )
    stale_reads: Literal["on", "off"] = Field(
        "on", description="`on`: serve cached answers, marked with `Age`, while PostgreSQL is unreachable"
    )
    ready_without_writes_s: int = Field(
        300,
        ge=0,
        le=86_400,
        description="seconds that PostgreSQL may take no writes before `/readyz` answers 503; 0: any",
    )
    db_pool_size: int = Field(12, ge=10, le=200, description="PostgreSQL connections of one process, at most")
    db_timeout_ms: int = Field(3000, ge=100, le=60_000, description="deadline of one PostgreSQL statement")
    request_timeout_ms: int = Field(
        5000, ge=100, le=60_000, description="deadline of one request, from its headers to its answer"
    )
    idle_timeout_ms: int = Field(
        30_000,
        ge=100,
        le=60_000,
        description="how long a connection may take to send the next request's headers, or may take nothing of an"
        " answer",
    )
    max_connections: int = Field(
        4096,
        ge=FEWEST_CONNECTIONS,
        le=100_000,
        description="client connections of one process, at most, or fewer if the limit of open files is low; more"
        " wait to be accepted",
    )
    stop_delay_ms: int = Field(
        3000, ge=0, le=60_000, description="how long to go on, not ready, after SIGTERM, so that balancers notice"
    )
    redis_timeout_ms: int = Field(200, ge=10, le=5000, description="deadline of one Redis call")
    queue_limit: int = Field(
        10_000, ge=1, le=1_000_000, description="requests that may wait in each queue; beyond it, 503"
    )
    idempotency_keys_per_caller: int = Field(
        5_000_000, ge=1, le=100_000_000, description="idempotency keys that one caller may have; beyond it, 429"
    )
    idempotency_keys: int = Field(
        10_000_000, ge=1, le=100_000_000, description="idempotency keys of all callers together; beyond it, 503"
    )
    page_images: str = Field(
        "",
        description="where the web page may load users' images from, such as `https:` or `https://img.example.com/`;"
        " several are separated by spaces; empty: nowhere, initials are shown",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log line")
    log_format: Literal["json", "text"] = Field("json", description="one JSON object or one text line an event")

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        url = values.get("database_url")
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        return {**values, **postgres_url(text)} if text else values

    @field_validator("db_sslrootcert", "redis_sslrootcert")
    @classmethod
    def _authorities(cls, file: str, info: ValidationInfo) -> str:
        if file:
            tls.client_context(authorities=file)
            _needs_tls(info)
        return file

    @field_validator("db_sslcert", "redis_sslcert")
    @classmethod
    def _client_certificate(cls, file: str) -> str:
        if file and not Path(file).is_file():
            raise ValueError("empty, or a file that can be read, of a certificate in PEM")
        return file

    @field_validator("db_sslkey", "redis_sslkey")
    @classmethod
    def _client_key(cls, file: str, info: ValidationInfo) -> str:
        name = "db_sslcert" if info.field_name == "db_sslkey" else "redis_sslcert"
        certificate = info.data.get(name, "")
        if file and certificate:
            tls.client_context(certificate=certificate, key=file)
            _needs_tls(info)
        elif file or certificate:
            raise ValueError(f"set together with {name.upper()}, or neither")
        return file

    @field_validator("page_images")
    @classmethod
    def _image_sources(cls, sources: str) -> str:
        if _blank(sources) or not all(_IMAGE_SOURCE.fullmatch(source) for source in sources.split()):
            raise ValueError("empty, or sources like https: or https://img.example.com/")
        return sources

    @field_validator("db_password", "redis_password", "redis_sentinel_password", "jwt_audience", "jwt_issuer")
    @classmethod
    def _empty_or_text(cls, value: str | SecretStr) -> str | SecretStr:
        if _blank(value if isinstance(value, str) else value.get_secret_value()):
            raise ValueError("empty, or a text that is not blank")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys(cls, keys: SecretStr) -> SecretStr:
        # Empty opens the board. What a template or a mounted secret leaves of a missing key must not.
        if keys.get_secret_value() and not parse_keys(keys.get_secret_value()):
            raise ValueError(f"empty, or at least one entry: {ALLOWED}")
        return keys

    @field_validator("jwt_algorithms")
    @classmethod
    def _algorithms(cls, names: str) -> str:
        if _blank(names) or not all(_ALGORITHM.fullmatch(name) for name in names.split()):
            raise ValueError("empty, or some of HS256, HS384, HS512, the same with RS, PS or ES, and EdDSA")
        return names

    @field_validator("jwt_key")
    @classmethod
    def _jwt_key(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        algorithms = info.data.get("jwt_algorithms", "").split()
        if _blank(key.get_secret_value().replace("\\n", "\n")):
            raise ValueError("empty, or a secret or a public key, set together with JWT_ALGORITHMS")
        if not key.get_secret_value() and not algorithms:
            return key
        if not key.get_secret_value() or not algorithms:
            raise ValueError("set together with JWT_ALGORITHMS, or neither")
        from leaderboard.tokens import UserTokens  # noqa: PLC0415 - its cryptography costs 20 MB where it is unused

        UserTokens(algorithms, key.get_secret_value())
        return key

    @field_validator("reads")
    @classmethod
    def _readable(cls, reads: str, info: ValidationInfo) -> str:
        keys, jwt_key = (
            info.data[name].get_secret_value() if name in info.data else "" for name in ("api_keys", "jwt_key")
        )
        if reads == "key" and not parse_keys(keys) and not jwt_key:
            raise ValueError("open unless API_KEYS or JWT_KEY is set, as nobody could read")
        return reads

    @field_validator("rate_limit_per_key", "rate_limit_per_address")
    @classmethod
    def _rate(cls, text: str) -> str:
        rate(text)
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, text: str) -> str:
        networks(text)
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, text: str) -> str:
        host_names(text)
        return text

    @field_validator("root_path")
    @classmethod
    def _below(cls, path: str) -> str:
        # Below /users, /users/7 would be a user behind a proxy that removes the prefix, else nothing.
        if path and (not _ROOT_PATH.fullmatch(path) or path.split("/")[1] in _OWN_PATHS):
            raise ValueError(
                "empty, or a path like /lb or /games/board: of A-Z a-z 0-9 . _ ~ and -, no slash at its end,"
                f" its first part none of {', '.join(_OWN_PATHS)}"
            )
        return path

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, url: SecretStr) -> SecretStr:
        parse_redis_url(url.get_secret_value())
        return url


def _needs_tls(info: ValidationInfo) -> None:
    """Raise ValueError where a file for TLS is set and TLS, or verifying it, is not."""
    if str(info.field_name).startswith("db_"):
        if info.data.get("db_sslmode") in _WITHOUT_VERIFICATION:
            raise ValueError("empty, unless DB_SSLMODE is require, verify-ca or verify-full")
        return
    url = info.data.get("redis_url")
    if url is not None and not url.get_secret_value().startswith("rediss"):
        raise ValueError("empty, unless REDIS_URL begins with rediss")
    if info.field_name == "redis_sslrootcert" and info.data.get("redis_sslmode") == "require":
        raise ValueError("empty, unless REDIS_SSLMODE is verify-ca or verify-full")


def _blank(text: str) -> bool:
    """Whether there is a text, of white space alone: something should have been there, and is missing."""
    return text.isspace()


_POSTGRES_URL = (
    "empty, or a URL like postgresql://user:<password>@host:5432/database, percent-encoded, with no other"
    " parameters than sslmode, sslrootcert, sslcert and sslkey"
)
_URL_PARAMETERS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey"})


def postgres_url(url: str) -> dict[str, Any]:
    """The settings that a URL of PostgreSQL stands for, by their names. Raises ValueError."""
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
    known = _URL_PARAMETERS.issuperset(names) and len(set(names)) == len(names)
    if parts.scheme not in {"postgresql", "postgres"} or parts.fragment or not known or "," in parts.netloc:
        raise ValueError(_POSTGRES_URL)
    found |= {f"db_{name}": value for name, value in parameters}
    return {name: value for name, value in found.items() if value}


def rate(text: str) -> tuple[int, int] | None:
    """A limit such as `100/second` as requests and seconds; None for an empty text. Raises ValueError."""
    if not text:
        return None
    match = _RATE.fullmatch(text)
    if match is None or int(match[1]) > _MOST_REQUESTS:
        raise ValueError(f"empty, or 1 to {_MOST_REQUESTS} requests a second, minute or hour, like 100/second")
    return int(match[1]), _SECONDS[match[2]]


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks in CIDR notation, or single addresses, separated by spaces. Raises ValueError."""
    try:
        if _blank(text):
            raise ValueError
        return tuple(ip_network(part) for part in text.split())
    except ValueError:
        raise ValueError("empty, or networks like 10.0.0.0/8 or fd00::/8, no bits set beyond the prefix") from None


def host_names(text: str) -> frozenset[str]:
    """Hosts without ports, separated by spaces, in small letters. Raises ValueError."""
    names = text.lower().split()
    if _blank(text) or not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("empty, or hosts without a port, like board.example, 127.0.0.1 or [::1]")
    return frozenset(names)


def load(env_file: str | None = ".env", **overrides: object) -> Settings:
    """Read the environment. Raises BadSetting with one line for the first value that cannot be used."""
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[arg-type,call-arg]
    except UnicodeDecodeError:
        raise BadSetting(f"{env_file}: must be text in UTF-8") from None
    except ValidationError as error:
        first = error.errors()[0]
        # A validator of all settings is about the URL, from which several are made.
        name = str(first["loc"][0]) if first["loc"] else "database_url"
        secret = Settings.model_fields[name].annotation is SecretStr
        value = "(hidden)" if secret else repr(first["input"])
        allowed = str(first["ctx"]["error"]) if first["type"] == "value_error" else allowed_values(name)
        cause = first.get("ctx", {}).get("error")
        entry = f", entry {cause.number}" if isinstance(cause, BadEntry) else ""
        raise BadSetting(f"{name.upper()}={value}{entry}: must be {allowed}") from None


def allowed_values(name: str) -> str:
    """What the setting of this name may be, in words."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    limits = field.metadata
    bounds = {kind: getattr(limit, kind) for limit in limits for kind in ("ge", "le") if hasattr(limit, kind)}
    if bounds:
        kind = "an integer" if field.annotation is int else "a number"
        return f"{kind} from {bounds['ge']} to {bounds['le']}"
    return "a text that is not blank"
