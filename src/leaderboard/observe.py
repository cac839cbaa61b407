"""Metrics, and structured logs on standard error.

The metrics have their own registry, made by App, so that nothing is registered at import.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from leaderboard.printable import printable, printable_lines, shortened

MOST_CHARACTERS = 10_000
"""Characters of one text in a log line, such as a traceback, at most; a longer one loses its middle."""

_PRINTED_AS_THEY_ARE = frozenset({"level", "logger", "logger_name", "timestamp"})
_PRINTED_BELOW = frozenset({"exception", "stack", "stack_info"})
_NOT_PLAIN = re.compile(r"[^ -~]")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Tally(Collector):
    """A counter with labels that takes no lock.

    Every request counts, and the library's own counters take a lock for that.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self.labels = labels
        self.counts: dict[tuple[str, ...], int] = {}
        registry.register(self)

    def inc(self, *labels: str) -> None:
        """Add one for these labels."""
        self.counts[labels] = self.counts.get(labels, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self.labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        yield family


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Tally(
            "leaderboard_requests_total", "Responses by route and status", ["route", "status"], registry
        )
        self.refusals = Counter(
            "leaderboard_refusals_total", "Error responses by code", ["code"], registry=registry
        )
        self.in_flight = Gauge("leaderboard_requests_in_flight", "Requests being handled", registry=registry)
        self.waiting = Gauge(
            "leaderboard_queue_waiting", "Requests waiting in a queue", ["queue"], registry=registry
        )
        self.answers = Tally(
            "leaderboard_answers_total", "Reads by the source of the result", ["source"], registry
        )
        self.batch_items = Histogram(
            "leaderboard_batch_items",
            "Requests in one batch",
            ["queue"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=registry,
        )
        self.visible_seconds = Histogram(
            "leaderboard_visible_seconds",
            "Seconds that a batch waited until its commit or snapshot was visible",
            buckets=_SECONDS,
            registry=registry,
        )
        self.changes_applied = Counter(
            "leaderboard_changes_applied_total", "Users updated in the cache by catching up", registry=registry
        )
        self.invalidations = Counter(
            "leaderboard_invalidations_total", "Times the cache was made invalid", registry=registry
        )
        self.rebuilds = Counter("leaderboard_rebuilds_total", "Rebuilds of the cache", registry=registry)
        self.rebuild_seconds = Histogram(
            "leaderboard_rebuild_seconds", "Seconds that a rebuild took", buckets=_SECONDS, registry=registry
        )
        self.audit_differences = Counter(
            "leaderboard_audit_differences_total",
            "Users that differ between the cache and PostgreSQL; must stay 0",
            registry=registry,
        )
        self.rank_index_up = Gauge(
            "leaderboard_rank_index_up", "Whether the rank index is valid", registry=registry
        )
        self.rank_index_pending = Gauge(
            "leaderboard_rank_index_pending",
            "Log rows not yet applied to the rank index, at the last look",
            registry=registry,
        )
        self.rank_index_updates = Counter(
            "leaderboard_rank_index_updates_total",
            "Times the log was applied to the rank index",
            registry=registry,
        )
        self.rank_index_update_seconds = Histogram(
            "leaderboard_rank_index_update_seconds",
            "Seconds that applying the log took",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rank_index_builds = Counter(
            "leaderboard_rank_index_builds_total", "Times the rank index was built", registry=registry
        )
        self.rank_index_differences = Counter(
            "leaderboard_rank_index_differences_total",
            "Parts of the rank index that differed from PostgreSQL; must stay 0",
            registry=registry,
        )
        self.idempotency_keys = Gauge(
            "leaderboard_idempotency_keys", "Idempotency keys at the last count", registry=registry
        )
        self.cached_users = Gauge("leaderboard_cached_users", "Users in the cache", registry=registry)
        self.redis_up = Gauge("leaderboard_redis_up", "Whether Redis answers", registry=registry)
        self.postgres_up = Gauge("leaderboard_postgres_up", "Whether PostgreSQL answers", registry=registry)
        self.postgres_writable = Gauge(
            "leaderboard_postgres_writable", "Whether PostgreSQL takes writes", registry=registry
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def set_up_logs(level: str, style: Literal["json", "text"]) -> None:
    """Send one line an event to standard error, from this program and from the libraries it uses.

    A traceback has no local variables: they hold keys, names and bodies of requests. Characters that are not
    printable are escaped. "json": a line is ASCII, and its strings mean exactly what was logged. "text": a
    traceback follows its line, and each of its lines has a mark, so that no message can forge a line of the log.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    finish: list[structlog.typing.Processor] = [structlog.processors.ExceptionRenderer(_traceback), _bounded]
    if style == "json":
        finish += [structlog.processors.JSONRenderer(_json)]
    else:
        # It gets exceptions as text; its default formatter, which shows local variables, must not be reachable.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        )
        finish += [_printable_event, console]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Writes a line and its end in one call: several processes share standard error.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def _traceback(exc_info: structlog.typing.ExcInfo) -> str:
    return "".join(traceback.format_exception(*exc_info)).rstrip("\n")


def _bounded(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: _short(value) for key, value in event.items()}


def _short(value: object) -> object:
    if isinstance(value, str):
        return shortened(value, MOST_CHARACTERS)
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def _printable_event(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make printable what ConsoleRenderer prints unchanged; of other texts it prints the printable `repr`.

    The further lines of an event go below its line too: Granian logs a traceback as one text.
    """
    shown: structlog.typing.EventDict = {}
    below: list[str] = []
    for key, value in event.items():
        if key == "event":
            first, *more = str(value).split("\n", 1)
            shown[key] = printable(first)
            below = more + below
        elif key in _PRINTED_BELOW:
            below.append(str(value))
        elif key in _PRINTED_AS_THEY_ARE:
            shown[key] = printable(str(value))
        elif isinstance(value, str) or repr(value).isprintable():
            shown[printable(key)] = value
        else:
            shown[printable(key)] = printable(repr(value))
    if below:
        shown["exception"] = printable_lines("\n".join(below))
    return shown


def _json(event: structlog.typing.EventDict, **options: Any) -> str:
    """`event` as JSON in ASCII without control characters."""
    return _NOT_PLAIN.sub(_json_escape, json.dumps(event, ensure_ascii=False, **options))


def _json_escape(match: re.Match[str]) -> str:
    character = match[0]
    if "\ud800" <= character <= "\udfff":
        # No character, so JSON has no way to write it that every reader takes.
        return "\\" + printable(character)
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
