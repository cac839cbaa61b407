"""The options of an environment, and the numbers that several stacks share.

An environment is an entry of `environments` in `cdk.json`; `-c environment=NAME` chooses one.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

API_PORT = 3000
DATABASE_PORT = 5432
CACHE_PORT = 6379

HEALTH_INTERVAL_S = 5
"""Seconds between two health checks of a task by the load balancer."""
HEALTH_TIMEOUT_S = 3
HEALTH_FAILURES = 2
"""After this many failed checks in a row the load balancer sends a task no more requests."""

REQUEST_TIMEOUT_S = 5
STOP_DELAY_S = HEALTH_FAILURES * HEALTH_INTERVAL_S + HEALTH_TIMEOUT_S + 2
"""Seconds that a task serves after SIGTERM, not ready: until the load balancer has noticed."""
CLOSING_S = 2
"""Seconds that a process takes, at most, to close its connections."""
STOP_TIMEOUT_S = STOP_DELAY_S + REQUEST_TIMEOUT_S + CLOSING_S + 3
"""Seconds after which ECS kills a task that has not ended; Fargate allows 120 at most."""
DEREGISTRATION_DELAY_S = STOP_DELAY_S + REQUEST_TIMEOUT_S
"""Seconds that the load balancer waits for requests to a deregistered task."""
IDLE_TIMEOUT_S = 30
"""Seconds after which the service closes an idle connection. The load balancer must close it earlier."""
BALANCER_IDLE_TIMEOUT_S = IDLE_TIMEOUT_S - 5

DB_POOL_SIZE = 12
"""Maximum of one task's connections to PostgreSQL, except a temporary one to build the rank index."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_LOG_DAYS = (1, 7, 30, 90, 365)
_SETTINGS_PAGE = Path(__file__).parents[3] / "docs" / "settings.md"
_NOT_HERE = (
    "DB_HOST",
    "DB_PORT",
    "DB_NAME",
    "DB_USER",
    "DB_PASSWORD",
    "DATABASE_URL",
    "REDIS_URL",
    "REDIS_PASSWORD",
    "REDIS_SENTINEL_PASSWORD",
    "API_KEYS",
    "TRUSTED_PROXIES",
)
"""Settings that the stacks set or hold as secrets, in addition to `_fixed_settings`."""
_TLS = ("require", "verify-ca", "verify-full")
"""Allowed values of `DB_SSLMODE`: those that always use TLS."""


class BadConfig(Exception):
    """A value in `cdk.json` is invalid; the message names it and what is allowed."""


@dataclass(frozen=True)
class Size:
    """The capacity of an environment."""

    task_cpu: int
    """CPU units of one task; 1024 are one vCPU."""
    task_memory: int
    """MiB of one task."""
    tasks: tuple[int, int]
    """Minimum and maximum number of tasks."""
    requests_per_task: int
    """Requests per minute and task above which another task is started."""
    db_class: str
    """PostgreSQL's instance class, without `db.`."""
    db_memory: int
    """GiB of memory of that class."""
    db_storage: tuple[int, int]
    """Initial and maximum GiB of storage."""
    cache_class: str
    """The cache's node type, without `cache.`."""

    @property
    def max_connections(self) -> int:
        """PostgreSQL's `max_connections`: for twice all tasks, as a deployment has old and new ones, plus 30."""
        return 2 * self.tasks[1] * (DB_POOL_SIZE + 1) + 30


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        # `requests_per_task`: half of what a task can serve by docs/performance.md, if a vCPU is half a core:
        # 0.5 vCPU x 0.5 x 0.5 / 66 us (95 % contexts, 5 % scores) = 1,900 a second; rounded down.
        "small": Size(512, 1024, (2, 4), 60_000, "t4g.medium", 4, (20, 100), "t4g.small"),
        "medium": Size(1024, 2048, (2, 8), 120_000, "m7g.large", 8, (50, 500), "m7g.large"),
        "large": Size(1024, 2048, (3, 16), 120_000, "m7g.2xlarge", 32, (200, 2000), "m7g.large"),
    }
)


@dataclass(frozen=True)
class Config:
    """One environment, validated. Raises BadConfig for an invalid value."""

    name: str
    """Name of the environment; part of the names of its stacks."""
    size: str
    """One of `SIZES`."""
    domain: str
    """Host name of the service, such as `board.example.com`."""
    alarm_email: str
    """E-mail address for alarms; AWS asks it for a confirmation first."""
    hosted_zone_id: str = ""
    """The Route 53 zone of the domain, for the certificate and the record."""
    hosted_zone_name: str = ""
    """The zone's name, such as `example.com`."""
    certificate_arn: str = ""
    """ARN of an ACM certificate for the domain, instead of a zone; you then create the DNS record."""
    allowed_cidrs: tuple[str, ...] = ("0.0.0.0/0",)
    """Networks that may reach the load balancer."""
    requests_per_address: int = 20_000
    """Requests from one address in five minutes above which WAF blocks the address."""
    own_cidrs: tuple[str, ...] = ()
    """Networks of your own servers, such as a game server; `requests_per_address` does not apply to them."""
    log_days: int = 30
    """Days that logs are kept."""
    backup_days: int = 14
    """For how many days back PostgreSQL can be restored."""
    python_image: str = ""
    """Base image of the service's image; empty: the Dockerfile's default."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Other settings of the service, such as `READS`; no secrets."""

    def __post_init__(self) -> None:
        self._match("name", _NAME, "1 to 20 of a-z 0-9 -, beginning with a letter")
        if self.size not in SIZES:
            raise self._bad("size", f"one of {', '.join(SIZES)}")
        self._match("domain", _DOMAIN, "a name such as board.example.com")
        self._match("alarm_email", _EMAIL, "an address such as ops@example.com")
        if bool(self.hosted_zone_id) == bool(self.certificate_arn):
            raise self._bad("hosted_zone_id", "set if certificate_arn is not, and empty if it is")
        if self.hosted_zone_id and not f".{self.domain}".endswith(f".{self.hosted_zone_name or '?'}"):
            raise self._bad("hosted_zone_name", "the zone that the domain ends with, such as example.com")
        if self.certificate_arn and not self.certificate_arn.startswith("arn:"):
            raise self._bad("certificate_arn", "the ARN of a certificate of ACM in the same region")
        if not self.allowed_cidrs or not all(map(_is_network, self.allowed_cidrs)):
            raise self._bad("allowed_cidrs", 'a list of IPv4 networks such as ["0.0.0.0/0"]')
        if not all(map(_is_network, self.own_cidrs)):
            raise self._bad("own_cidrs", 'a list of IPv4 networks such as ["192.0.2.0/24"], or empty')
        self._within("requests_per_address", 10, 2_000_000_000)
        self._one_of("log_days", _LOG_DAYS)
        self._within("backup_days", 1, 35)
        if not isinstance(self.python_image, str) or self.python_image != self.python_image.strip():
            raise self._bad("python_image", "the name of an image, such as leaderboard-python:1, or empty")
        self._check_settings()

    @property
    def sizes(self) -> Size:
        """The capacity for the name in `size`."""
        return SIZES[self.size]

    @property
    def prefix(self) -> str:
        """Prefix of the names of stacks and named resources."""
        return f"leaderboard-{self.name}"

    @property
    def plain_settings(self) -> dict[str, str]:
        """The service's settings, without secrets and without the servers' addresses."""
        return {**self._fixed_settings(), "DB_SSLMODE": "require", **self.settings}

    @classmethod
    def load(cls, context: Mapping[str, Any], name: str) -> "Config":
        """Returns the environment of that name from the context's `environments`. Raises BadConfig."""
        entry = context.get(name)
        if not isinstance(entry, Mapping):
            raise BadConfig(
                f"environment={name!r}: must be one of {', '.join(context) or 'environments, which is empty'}"
            )
        known = {entry_field.name for entry_field in fields(cls)} - {"name"}
        for key in entry:
            if key not in known:
                raise BadConfig(
                    f"environments.{name}.{key}: is not known; the known keys are {', '.join(sorted(known))}"
                )
        for key in ("size", "domain", "alarm_email"):
            if key not in entry:
                raise BadConfig(f"environments.{name}.{key}: must be set")
        values = dict(entry)
        for key in ("allowed_cidrs", "own_cidrs"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        return cls(name=name, **values)

    def _fixed_settings(self) -> dict[str, str]:
        return {
            "PORT": str(API_PORT),
            "DB_POOL_SIZE": str(DB_POOL_SIZE),
            "WORKERS": "1",
            "REQUEST_TIMEOUT_MS": str(REQUEST_TIMEOUT_S * 1000),
            "IDLE_TIMEOUT_MS": str(IDLE_TIMEOUT_S * 1000),
            "STOP_DELAY_MS": str(STOP_DELAY_S * 1000),
            "LOG_FORMAT": "json",
        }

    def _check_settings(self) -> None:
        if not isinstance(self.settings, Mapping) or not all(isinstance(v, str) for v in self.settings.values()):
            raise self._bad("settings", "the service's settings by name, with each value a string")
        known = known_settings()
        for name, value in self.settings.items():
            where = f"environments.{self.name}.settings.{name}"
            if name not in known:
                raise BadConfig(f"{where}: is not a setting of the service; docs/settings.md lists them")
            if name in _NOT_HERE or name in self._fixed_settings():
                raise BadConfig(f"{where}: must not be set; the stacks set it")
            if name == "JWT_KEY" and "PUBLIC KEY" not in value:
                raise BadConfig(f"{where}: must be a public key in PEM")
        mode = self.plain_settings["DB_SSLMODE"]
        where = f"environments.{self.name}.settings"
        if mode not in _TLS:
            raise BadConfig(f"{where}.DB_SSLMODE={mode!r}: must be one of {', '.join(_TLS)}")
        if mode != "require" and not self.settings.get("DB_SSLROOTCERT"):
            raise BadConfig(
                f"{where}.DB_SSLROOTCERT: must be a file in the image with RDS's certificate authorities if"
                f" DB_SSLMODE={mode}; the system's certificate authorities do not include them"
            )

    def _match(self, key: str, pattern: re.Pattern[str], allowed: str) -> None:
        value = getattr(self, key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._bad(key, allowed)

    def _within(self, key: str, least: int, most: int) -> None:
        value = getattr(self, key)
        if type(value) is not int or not least <= value <= most:
            raise self._bad(key, f"an integer from {least} to {most}")

    def _one_of(self, key: str, allowed: tuple[int, ...]) -> None:
        if getattr(self, key) not in allowed:
            raise self._bad(key, f"one of {', '.join(map(str, allowed))}")

    def _bad(self, key: str, allowed: str) -> BadConfig:
        return BadConfig(f"environments.{self.name}.{key}={getattr(self, key)!r}: must be {allowed}")


def known_settings() -> frozenset[str]:
    """Returns the names of the service's settings, from docs/settings.md."""
    return frozenset(re.findall(r"^\| `([A-Z_]+)` \|", _SETTINGS_PAGE.read_text("utf-8"), re.MULTILINE))


def _is_network(text: object) -> bool:
    try:
        return isinstance(text, str) and "/" in text and bool(ipaddress.IPv4Network(text))
    except ValueError:
        return False
