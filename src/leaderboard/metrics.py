"""The metrics of a process.

They have their own registry, made by App, so that nothing is registered at import.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

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
        self.cached_seasons = Gauge(
            "leaderboard_cached_seasons", "Seasons of other boards than `default` in the cache", registry=registry
        )
        self.season_loads = Counter(
            "leaderboard_season_loads_total", "Seasons that were loaded for the cache", registry=registry
        )
        self.season_evictions = Counter(
            "leaderboard_season_evictions_total",
            "Seasons that were evicted for others that are read more often",
            registry=registry,
        )
        self.redis_up = Gauge("leaderboard_redis_up", "Whether Redis answers", registry=registry)
        self.postgres_up = Gauge("leaderboard_postgres_up", "Whether PostgreSQL answers", registry=registry)
        self.postgres_writable = Gauge(
            "leaderboard_postgres_writable", "Whether PostgreSQL takes writes", registry=registry
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
