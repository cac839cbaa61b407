"""The results of one board, as plain data."""

from dataclasses import dataclass, field
from statistics import median

from bench.latency import Latency

DEPTHS = (1, 50, 99)
"""The depths at which ranks are measured, in percent of the board from its top."""
TOGETHER = 64
"""How many contexts are asked for in one batch."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How the rank index was maintained while scores were set as fast as possible.

    `fold` is the time to apply the change log, None if that was done less than twice. `unusable` is how often
    the index was found invalid, because too many changes were pending.
    """

    fold: Latency | None
    most_pending: int
    unusable: int


@dataclass(frozen=True, slots=True)
class Look:
    """One measurement during steady writes, with the contexts asked for since the one before."""

    at_s: float
    log_rows: int
    log_bytes: int
    index_bytes: int
    pending: int
    context: Latency


@dataclass(frozen=True, slots=True)
class Reads:
    """Durations of single reads by depth, while nothing else ran; `together` is for a batch."""

    rank: dict[int, Latency]
    context: dict[int, Latency]
    plain: dict[int, Latency]
    together: Latency


@dataclass(frozen=True, slots=True)
class Busy:
    """The context at half depth while scores were set at `rate` rows per second."""

    context: Latency
    rate: float


@dataclass(frozen=True, slots=True)
class Writes:
    """Scores set per second, for each round with the rank index and for each without.

    `builds_s` are the durations of building the index after each round without.
    """

    rates_with: list[float]
    rates_without: list[float]
    builds_s: list[float]
    keeping: Keeping

    @property
    def with_index(self) -> float:
        return median(self.rates_with)

    @property
    def without_index(self) -> float:
        return median(self.rates_without)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes in bytes, with indexes and TOAST. `index_after` is that after the writes."""

    users: int
    index: int
    index_after: int


@dataclass(frozen=True, slots=True)
class Result:
    """The results of one board. `steady` is empty unless it was asked for."""

    users: int
    postgres: str
    load_s: float
    build_s: float
    sizes: Sizes
    reads: Reads
    busy: Busy
    writes: Writes
    steady: list[Look] = field(default_factory=list)
