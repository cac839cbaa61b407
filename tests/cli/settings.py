"""Every setting with its default and its bounds, and how tests read one."""

from typing import Any

import pytest
from pydantic import SecretStr

from leaderboard.config import BadSetting, Settings, load

DEFAULTS: dict[str, Any] = {
    "PORT": 3000,
    "DB_HOST": "postgres",
    "DB_PORT": 5432,
    "DB_NAME": "leaderboard",
    "DB_USER": "postgres",
    "DB_PASSWORD": "password",  # pragma: allowlist secret
    "DATABASE_URL": "",
    "DB_SSLMODE": "prefer",
    "DB_SSLROOTCERT": "",
    "DB_SSLCERT": "",
    "DB_SSLKEY": "",
    "REDIS_URL": "redis://redis:6379",
    "REDIS_PASSWORD": "",
    "REDIS_SENTINEL_PASSWORD": "",
    "REDIS_SSLMODE": "verify-full",
    "REDIS_SSLROOTCERT": "",
    "REDIS_SSLCERT": "",
    "REDIS_SSLKEY": "",
    "API_KEYS": "",
    "JWT_ALGORITHMS": "",
    "JWT_KEY": "",
    "JWT_AUDIENCE": "",
    "JWT_ISSUER": "",
    "READS": "open",
    "ALLOW_USER_WRITES": "off",
    "RATE_LIMIT_PER_KEY": "",
    "RATE_LIMIT_PER_ADDRESS": "",
    "TRUSTED_PROXIES": "",
    "ALLOWED_HOSTS": "",
    "CORS_ORIGINS": "",
    "ROOT_PATH": "",
    "USERNAMES": "exact",
    "HOST": "0.0.0.0",
    "WORKERS": 1,
    "CACHE_SIZE": 10_000,
    "CACHE_USERS": 200_000,
    "REPLICA_USERS": 200_000,
    "MAX_TOP_N": 100_000,
    "SYNC_INTERVAL_MS": 300,
    "AUDIT_INTERVAL_S": 60,
    "STALE_READS": "on",
    "READY_WITHOUT_WRITES_S": 300,
    "DB_POOL_SIZE": 12,
    "DB_TIMEOUT_MS": 3000,
    "REDIS_TIMEOUT_MS": 200,
    "QUEUE_LIMIT": 10_000,
    "REQUEST_TIMEOUT_MS": 5000,
    "IDLE_TIMEOUT_MS": 30_000,
    "MAX_CONNECTIONS": 4096,
    "STOP_DELAY_MS": 3000,
    "IDEMPOTENCY_KEYS_PER_CALLER": 5_000_000,
    "IDEMPOTENCY_KEYS": 10_000_000,
    "PAGE_IMAGES": "",
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "json",
}
BOUNDS: dict[str, tuple[int, int]] = {
    "PORT": (1, 65_535),
    "DB_PORT": (1, 65_535),
    "WORKERS": (1, 64),
    "CACHE_SIZE": (10, 100_000),
    "CACHE_USERS": (1000, 10_000_000),
    "REPLICA_USERS": (1000, 10_000_000),
    "MAX_TOP_N": (1, 100_000),
    "SYNC_INTERVAL_MS": (50, 400),
    "AUDIT_INTERVAL_S": (0, 86_400),
    "READY_WITHOUT_WRITES_S": (0, 86_400),
    "DB_POOL_SIZE": (10, 200),
    "DB_TIMEOUT_MS": (100, 60_000),
    "REDIS_TIMEOUT_MS": (10, 5000),
    "QUEUE_LIMIT": (1, 1_000_000),
    "REQUEST_TIMEOUT_MS": (100, 60_000),
    "IDLE_TIMEOUT_MS": (100, 60_000),
    "MAX_CONNECTIONS": (16, 100_000),
    "STOP_DELAY_MS": (0, 60_000),
    "IDEMPOTENCY_KEYS_PER_CALLER": (1, 100_000_000),
    "IDEMPOTENCY_KEYS": (1, 100_000_000),
}
CHOICES = {
    "DB_SSLMODE": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "REDIS_SSLMODE": ("require", "verify-ca", "verify-full"),
    "STALE_READS": ("on", "off"),
    "READS": ("open", "key"),
    "USERNAMES": ("exact", "caseless"),
    "ALLOW_USER_WRITES": ("on", "off"),
    "LOG_LEVEL": ("debug", "info", "warning", "error"),
    "LOG_FORMAT": ("json", "text"),
}
NOT_EMPTY = ("DB_HOST", "DB_NAME", "DB_USER", "HOST")
SECRETS = (
    "DB_PASSWORD",
    "DATABASE_URL",
    "REDIS_URL",
    "REDIS_PASSWORD",
    "REDIS_SENTINEL_PASSWORD",
    "API_KEYS",
    "JWT_KEY",
)
PASSWORD = "correct-horse-battery"  # pragma: allowlist secret
FILES = (
    "DB_SSLROOTCERT",
    "DB_SSLCERT",
    "DB_SSLKEY",
    "REDIS_SSLROOTCERT",
    "REDIS_SSLCERT",
    "REDIS_SSLKEY",
)
"""Files of certificates, which `test_tls_files_are_checked` tests."""
OTHERS = {
    "DATABASE_URL": "postgresql:///",
    "REDIS_URL": "rediss://:x@elsewhere:1/2",
    "PAGE_IMAGES": "https: http://a.example/",
    "API_KEYS": "reader:read:" + PASSWORD,  # pragma: allowlist secret
    "JWT_ALGORITHMS": "HS256 HS384",
    "JWT_KEY": "a secret of no fewer than forty-eight characters",
    "RATE_LIMIT_PER_KEY": "100/second",
    "RATE_LIMIT_PER_ADDRESS": "10000/hour",
    "TRUSTED_PROXIES": "10.0.0.0/8 fd00::1",
    "ALLOWED_HOSTS": "board.example [::1]",
    "CORS_ORIGINS": "https://game.example http://localhost:8080",
    "ROOT_PATH": "/games/board",
}
"""Valid values of the texts that have a format."""
NEEDED = {"JWT_ALGORITHMS": "JWT_KEY", "JWT_KEY": "JWT_ALGORITHMS", "READS": "API_KEYS"}
"""The setting that each of these needs."""
BLANKS = (" ", "\n", "\t", "\r\n", " \n ", "\N{NO-BREAK SPACE}")
"""What templates and mounted files leave where a value is missing."""


def value_of(settings: Settings, name: str) -> Any:
    """Return the value as `DEFAULTS` has it."""
    value = getattr(settings, name.lower())
    if isinstance(value, bool):
        return "on" if value else "off"
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def error_for(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    """Return the error, which is one line, when the environment has this value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting) as caught:
        load()
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "the context has the value"
    return line
