"""The constants that tests set: how long to wait, how much at once. Production uses the defaults.

Settings that an operator may change are in `config.py`. These are not settings: the promises rest on some of them,
and measurements in `docs/decisions/` on others.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ConnectionTuning:
    """How the pool of connections to PostgreSQL treats a connection."""

    max_idle_s: float = 300
    silent_s: float = 1.0
    """A connection that has not answered for so long is checked before use, and has as long to answer."""
    plan_lifetime_s: float = 5.0
    """A generic plan is made anew after this: by an index that no longer fits, it would read too much."""


@dataclass(frozen=True, slots=True)
class WriteTuning:
    """How writes meet locks and conflicts."""

    attempts: int = 3
    """How often a statement runs that PostgreSQL ends for a deadlock or a serialization failure."""
    unique_wait_ms: int = 50
    """How long a batch waits for a name or an idempotency key that an open transaction has taken."""
    row_wait_s: float = 2.0
    """How long a score waits for a row that another transaction has locked."""
    row_retry_s: tuple[float, float] = (0.005, 0.05)
    """The pause between two tries for a locked row, at random from this range."""


@dataclass(frozen=True, slots=True)
class SyncTuning:
    """When writers stop waiting for the cache, and how it is caught up and rebuilt."""

    fresh_s: float = 0.8
    """A cached state older than this is not read. It bounds how stale an answer is while Redis is cut off."""
    patience_s: float = 0.25
    """How long a writer waits for the cache before it invalidates the cache."""
    lease_ms: int = 50
    """How long one process alone may catch up."""
    reuse_own_state_s: float = 0.02
    """The poll is skipped if our own last apply is younger. That is safe: apply compares the token."""
    cut_off_pause_s: float = 0.02
    """The pause between two tries to catch up while Redis cannot be reached and writers wait."""
    claim_ms: int = 1500
    """How long a process claims the rebuild for at first; doubled after a rebuild that took longer."""
    short_life_s: float = 1.0
    """A cache that was lost sooner than this after its rebuild counts as short-lived."""
    max_rebuild_pause_s: float = 1.0
    """The longest pause before a rebuild; it grows with each short-lived cache."""


@dataclass(frozen=True, slots=True)
class SeasonTuning:
    """When seasons of boards other than `default` are loaded into the cache."""

    load_after: int = 3
    """A season is loaded after so many reads that the cache did not answer, within `report_s`."""
    report_s: float = 5
    """How often a process reports its reads, by which it is decided which season is evicted."""
    claim_ms: int = 5000
    """How long one process alone may load a season. A second load would be work for nothing, and harmless."""
    max_tries: int = 50
    """A process tries to load so many seasons at most between two reports."""
    max_reported: int = 1000
    """A report names so many seasons at most, those that were read most."""


@dataclass(frozen=True, slots=True)
class LogTuning:
    """How the change log is kept short."""

    keep_s: float = 10
    prune_every_s: float = 5
    prune_batch: int = 10_000
    max_index_wait_s: float = 600
    """How long log rows are kept that the rank index has not applied."""


@dataclass(frozen=True, slots=True)
class RankIndexTuning:
    """The size of the rank index, and when it is brought up to date."""

    width: int = 200
    """Users from one checkpoint to the next; a rank counts half as many index entries on average."""
    max_checkpoints: int = 20_000
    """About as many checkpoints there are at most; their distance grows with the board instead."""
    max_pending: int = 50_000
    """With as many pending log rows, a reader counts everything instead."""
    max_applied: int = 2_000_000
    """With as many pending log rows, the index is built anew. Fewer may be written while it is built."""
    apply_from: int = 500
    """So many pending log rows are applied at once, or a twentieth of the checkpoints if that is more."""
    apply_after_s: float = 2.0
    """Fewer are applied when the last time was so long ago: the log is not pruned of them before."""


@dataclass(frozen=True, slots=True)
class KeyTuning:
    """How idempotency keys are counted and deleted."""

    count_every_s: float = 1.0
    """The pause between two counts, at least."""
    count_pause: float = 100
    """The pause after a count, in times of its duration: counting takes 1 % of one core at most."""
    delete_every_s: float = 60
    delete_batch: int = 10_000


@dataclass(frozen=True, slots=True)
class Tuning:
    """All of them."""

    connections: ConnectionTuning = field(default_factory=ConnectionTuning)
    writes: WriteTuning = field(default_factory=WriteTuning)
    sync: SyncTuning = field(default_factory=SyncTuning)
    seasons: SeasonTuning = field(default_factory=SeasonTuning)
    log: LogTuning = field(default_factory=LogTuning)
    ranks: RankIndexTuning = field(default_factory=RankIndexTuning)
    keys: KeyTuning = field(default_factory=KeyTuning)
    remembered_ids: int = 50_000
    """Of how many users a process remembers the external id, which takes some 10 MB."""
