"""What is measured of one board, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Self

DEPTHS = (1, 50, 99)
"""Where the users stand whose ranks are asked for, in percent of the board from its top."""
TOGETHER = 64
"""So many contexts are asked for at once, as when as many requests have waited for one batch."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took."""

    p50_ms: float
    p99_ms: float
    times: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """The quantiles of at least two."""
        p99 = quantiles(seconds, n=100, method="inclusive")[98]
        return cls(median(seconds) * 1000, p99 * 1000, len(seconds))


@dataclass(frozen=True, slots=True)
class Keeping:
    """What keeping the rank index was like while scores were set as fast as possible.

    `unusable` is how often it could not be used when looked at, as too much had not been folded. `fold` is None
    when there were fewer than two, as where little time was given.
    """

    fold: Latency | None
    most_pending: int
    unusable: int


@dataclass(frozen=True, slots=True)
class Look:
    """One of many looks at a long time of steady writes, and the contexts asked for since the one before."""

    at_s: float
    log_rows: int
    log_bytes: int
    index_bytes: int
    pending: int
    context: Latency


@dataclass(frozen=True, slots=True)
class Reads:
    """How long it took, one question at a time while nothing else ran, by depth; `together` is for a batch."""

    rank: dict[int, Latency]
    context: dict[int, Latency]
    plain: dict[int, Latency]
    together: Latency


@dataclass(frozen=True, slots=True)
class Busy:
    """The context at half depth while scores were set at a steady rate, in rows a second."""

    context: Latency
    rate: float


@dataclass(frozen=True, slots=True)
class Writes:
    """How fast scores were set, in rows a second, in each round with the index and in each without.

    `builds_s` is how long it took to build the index after each of the latter.
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
    """In bytes, with indexes and TOAST; `index_after` is of after the writes."""

    users: int
    index: int
    index_after: int


@dataclass(frozen=True, slots=True)
class Result:
    """One board; `steady` is empty unless that was asked for."""

    users: int
    postgres: str
    load_s: float
    build_s: float
    sizes: Sizes
    reads: Reads
    busy: Busy
    writes: Writes
    steady: list[Look] = field(default_factory=list)
