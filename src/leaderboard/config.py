"""Settings: the only reader of the environment and of `.env`.

Each field is the environment variable of the same name in capitals. `docs/settings.md` is tested against it.
"""

from typing import Any, Literal, get_args, get_origin

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from leaderboard import tls
from leaderboard.credentials import ALLOWED, BadEntry, parse_keys
from leaderboard.redis_url import parse_redis_url
from leaderboard.setting_formats import (
    CertificateFile,
    HostNames,
    ImageSources,
    JwtAlgorithms,
    Networks,
    OnOff,
    Origins,
    Rate,
    RootPath,
    Secret,
    Text,
    is_blank,
    postgres_url,
)

FEWEST_CONNECTIONS = 16
"""The lower bound of MAX_CONNECTIONS."""

_NOT_BLANK = r"\S"
_WITHOUT_VERIFICATION = frozenset({"disable", "allow", "prefer"})


class BadSetting(Exception):
    """A setting that cannot be used: one line with the variable, its value and what is allowed."""


class Settings(BaseSettings):
    """The settings of one process. The first eight have the names and defaults of the original service."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    port: int = Field(3000, ge=1, le=65535, description="TCP port of the API")
    db_host: str = Field("postgres", pattern=_NOT_BLANK, description="PostgreSQL host, or directory of its socket")
    db_port: int = Field(5432, ge=1, le=65535, description="PostgreSQL port")
    db_name: str = Field("leaderboard", pattern=_NOT_BLANK, description="PostgreSQL database")
    db_user: str = Field("postgres", pattern=_NOT_BLANK, description="PostgreSQL role")
    db_password: Secret = Field(SecretStr("password"), description="PostgreSQL password; never logged")
    database_url: SecretStr = Field(
        SecretStr(""),
        description="`postgresql://user:<password>@host:port/database` instead of the five settings above, and its"
        " parameters `sslmode`, `sslrootcert`, `sslcert` and `sslkey` instead of the four below; never logged",
    )
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer", description="TLS to PostgreSQL: libpq's `sslmode`"
    )
    db_sslrootcert: str = Field(
        "", description="file of the certificate authorities for PostgreSQL's certificate; empty: the system's"
    )
    db_sslcert: CertificateFile = Field("", description="file of the client certificate for PostgreSQL")
    db_sslkey: str = Field("", description="file of the client key for PostgreSQL", validate_default=True)
    redis_url: SecretStr = Field(
        SecretStr("redis://redis:6379"),
        description="Redis or Valkey: `redis://`, with TLS `rediss://`, by Sentinel `redis+sentinel://` or"
        " `rediss+sentinel://`, or `unix://`; several hosts are nodes of a Cluster, or Sentinels; never logged",
    )
    redis_password: Secret = Field(
        SecretStr(""),
        description="Redis password, not percent-encoded, instead of the one in the URL; never logged",
    )
    redis_sentinel_password: Secret = Field(
        SecretStr(""), description="password of the Sentinels; empty: they have none; never logged"
    )
    redis_sslmode: Literal["require", "verify-ca", "verify-full"] = Field(
        "verify-full",
        description="how Redis's certificate is verified if `REDIS_URL` begins with `rediss`; `require`: not at"
        " all",
    )
    redis_sslrootcert: str = Field(
        "", description="file of the certificate authorities for Redis's certificate; empty: the system's"
    )
    redis_sslcert: CertificateFile = Field("", description="file of the client certificate for Redis")
    redis_sslkey: str = Field("", description="file of the client key for Redis", validate_default=True)

    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys, separated by commas; a bare key may read and write; empty: anyone may write; never"
        " logged",
    )
    jwt_algorithms: JwtAlgorithms = Field(
        "", description="algorithms of users' tokens, such as `ES256`, separated by spaces"
    )
    jwt_key: SecretStr = Field(
        SecretStr(""),
        description="key that verifies users' tokens; `\\n` may stand for a line end; empty: no tokens are"
        " accepted; never logged",
        validate_default=True,
    )
    jwt_audience: Text = Field("", description="required `aud` of users' tokens; empty: they must have none")
    jwt_issuer: Text = Field("", description="required `iss` of users' tokens; empty: any or none")
    reads: Literal["open", "key"] = Field(
        "open", description="`key`: reads need a key with the scope `read`, or a user's token"
    )
    allow_user_writes: OnOff = Field(
        False,
        description="`on`: a user's token may set the score of that user; see [Users' tokens](#users-tokens)",
    )
    rate_limit_per_key: Rate = Field(
        "",
        description="rate limit per API key, and per user with a token, such as `100/second`; empty: no limit",
    )
    rate_limit_per_address: Rate = Field(
        "",
        description="rate limit per client address (IPv6: per /64) for unauthenticated calls; empty: no limit",
    )
    trusted_proxies: Networks = Field(
        "", description="networks of the proxies whose `X-Forwarded-For` is trusted, separated by spaces"
    )
    allowed_hosts: HostNames = Field(
        "", description="hosts allowed in `Host`, with any port, separated by spaces; empty: any"
    )
    cors_origins: Origins = Field(
        "",
        description="origins of other sites whose pages may call the API, such as `https://game.example`,"
        " separated by spaces; `*`: all; empty: none; see [Pages of other sites](#pages-of-other-sites)",
    )
    root_path: RootPath = Field(
        "", description="path below which a proxy serves the board, such as `/lb`; empty: the root"
    )
    usernames: Literal["exact", "caseless"] = Field(
        "exact",
        description="`caseless`: Bob, bob and BOB are one username; the same for all processes of a database; see"
        " [Usernames](#usernames)",
    )
    host: str = Field("0.0.0.0", pattern=_NOT_BLANK, description="address that the API listens on")  # noqa: S104
    workers: int = Field(1, ge=1, le=64, description="API processes that share the port")
    cache_size: int = Field(10_000, ge=10, le=100_000, description="the cache holds at least this many best users")
    cache_users: int = Field(
        200_000,
        ge=1000,
        le=10_000_000,
        description="the cache holds at most so many users of other boards than `default`, all boards together",
    )
    replica_users: int = Field(
        200_000,
        ge=1000,
        le=10_000_000,
        description="each process holds at most so many of these users in its own memory",
    )
    max_top_n: int = Field(100_000, ge=1, le=100_000, description="largest n of `/leaderboard/top/{n}`")
    sync_interval_ms: int = Field(
        300, ge=50, le=400, description="milliseconds between the updates of the cache by each process"
    )
    audit_interval_s: float = Field(
        60, ge=0, le=86_400, description="seconds between comparisons of the cache with PostgreSQL; 0: never"
    )
    stale_reads: OnOff = Field(
        True, description="`on`: serve cached answers, with an `Age` header, while PostgreSQL is unreachable"
    )
    ready_without_writes_s: int = Field(
        300,
        ge=0,
        le=86_400,
        description="seconds that PostgreSQL may refuse writes before `/readyz` answers 503; 0: no limit",
    )
    db_pool_size: int = Field(12, ge=10, le=200, description="most PostgreSQL connections of one process")
    db_timeout_ms: int = Field(
        3000, ge=100, le=60_000, description="timeout of one PostgreSQL statement, in milliseconds"
    )
    request_timeout_ms: int = Field(
        5000,
        ge=100,
        le=60_000,
        description="timeout of one request, from its headers to its answer, in milliseconds",
    )
    idle_timeout_ms: int = Field(
        30_000,
        ge=100,
        le=60_000,
        description="milliseconds that a client may take to send the next request's headers, or may read nothing"
        " of an answer",
    )
    max_connections: int = Field(
        4096,
        ge=FEWEST_CONNECTIONS,
        le=100_000,
        description="most client connections of one process; fewer if the limit of open files is low; more"
        " wait to be accepted",
    )
    stop_delay_ms: int = Field(
        3000,
        ge=0,
        le=60_000,
        description="milliseconds to go on serving, but not ready, after SIGTERM, so that load balancers notice",
    )
    redis_timeout_ms: int = Field(200, ge=10, le=5000, description="timeout of one Redis call, in milliseconds")
    queue_limit: int = Field(
        10_000, ge=1, le=1_000_000, description="requests that may wait in each queue; more are answered 503"
    )
    idempotency_keys_per_caller: int = Field(
        5_000_000, ge=1, le=100_000_000, description="idempotency keys of one caller; more are answered 429"
    )
    idempotency_keys: int = Field(
        10_000_000, ge=1, le=100_000_000, description="idempotency keys of all callers; more are answered 503"
    )
    page_images: ImageSources = Field(
        "",
        description="sources of users' images on the web page, such as `https:` or `https://img.example.com/`,"
        " separated by spaces; empty: none, initials are shown",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level logged")
    log_format: Literal["json", "text"] = Field("json", description="one JSON object or text line per event")

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
            _require_tls(info)
        return file

    @field_validator("db_sslkey", "redis_sslkey")
    @classmethod
    def _client_key(cls, file: str, info: ValidationInfo) -> str:
        name = "db_sslcert" if info.field_name == "db_sslkey" else "redis_sslcert"
        certificate = info.data.get(name, "")
        if file and certificate:
            tls.client_context(certificate=certificate, key=file)
            _require_tls(info)
        elif file or certificate:
            raise ValueError(f"set together with {name.upper()}, or neither")
        return file

    @field_validator("api_keys")
    @classmethod
    def _keys(cls, keys: SecretStr) -> SecretStr:
        # An empty value allows all writes. Separators alone, which a template leaves of a missing key, must not.
        if keys.get_secret_value() and not parse_keys(keys.get_secret_value()):
            raise ValueError(f"empty, or at least one entry: {ALLOWED}")
        return keys

    @field_validator("jwt_key")
    @classmethod
    def _jwt_key(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        algorithms = info.data.get("jwt_algorithms", "").split()
        if is_blank(key.get_secret_value().replace("\\n", "\n")):
            raise ValueError("empty, or a secret or a public key, set together with JWT_ALGORITHMS")
        if not key.get_secret_value() and not algorithms:
            return key
        if not key.get_secret_value() or not algorithms:
            raise ValueError("set together with JWT_ALGORITHMS, or neither")
        from leaderboard.tokens import UserTokens  # noqa: PLC0415 - 20 MB for cryptography, only if it is used

        UserTokens(algorithms, key.get_secret_value())
        return key

    @field_validator("reads")
    @classmethod
    def _reads(cls, reads: str, info: ValidationInfo) -> str:
        keys, jwt_key = (
            info.data[name].get_secret_value() if name in info.data else "" for name in ("api_keys", "jwt_key")
        )
        if reads == "key" and not parse_keys(keys) and not jwt_key:
            raise ValueError("open unless API_KEYS or JWT_KEY is set; without them every read would be refused")
        return reads

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, url: SecretStr) -> SecretStr:
        parse_redis_url(url.get_secret_value())
        return url


def _require_tls(info: ValidationInfo) -> None:
    """Raise ValueError if a file for TLS is set, but TLS or the verification that needs it is off."""
    if str(info.field_name).startswith("db_"):
        if info.data.get("db_sslmode") in _WITHOUT_VERIFICATION:
            raise ValueError("empty, unless DB_SSLMODE is require, verify-ca or verify-full")
        return
    url = info.data.get("redis_url")
    if url is not None and not url.get_secret_value().startswith("rediss"):
        raise ValueError("empty, unless REDIS_URL begins with rediss")
    if info.field_name == "redis_sslrootcert" and info.data.get("redis_sslmode") == "require":
        raise ValueError("empty, unless REDIS_SSLMODE is verify-ca or verify-full")


def load(env_file: str | None = ".env", **overrides: object) -> Settings:
    """Read the environment. Raises BadSetting, with one line, for the first value that cannot be used."""
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[arg-type,call-arg]
    except UnicodeDecodeError:
        raise BadSetting(f"{env_file}: must be text in UTF-8") from None
    except ValidationError as error:
        first = error.errors()[0]
        # The model's validator, which names no field, reads DATABASE_URL.
        name = str(first["loc"][0]) if first["loc"] else "database_url"
        secret = Settings.model_fields[name].annotation is SecretStr
        value = "(hidden)" if secret else repr(first["input"])
        allowed = str(first["ctx"]["error"]) if first["type"] == "value_error" else allowed_values(name)
        cause = first.get("ctx", {}).get("error")
        entry = f", entry {cause.number}" if isinstance(cause, BadEntry) else ""
        raise BadSetting(f"{name.upper()}={value}{entry}: must be {allowed}") from None


def allowed_values(name: str) -> str:
    """Return in words what the setting of this name may be."""
    field = Settings.model_fields[name]
    if field.annotation is bool:
        return "one of on, off"
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    limits = field.metadata
    bounds = {kind: getattr(limit, kind) for limit in limits for kind in ("ge", "le") if hasattr(limit, kind)}
    if bounds:
        kind = "an integer" if field.annotation is int else "a number"
        return f"{kind} from {bounds['ge']} to {bounds['le']}"
    return "a text that is not blank"
