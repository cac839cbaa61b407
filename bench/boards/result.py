"""The results, as plain data. What was not measured is None or empty."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.boards.plan import Plan
from bench.hot.result import Cell
from bench.latency import Latency
from bench.usage import Used

DEFAULT = "`default`"
"""The name of the board that the others are measured beside."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What a service without requests used, with one board and with `boards` of them, `cached` in the cache."""

    boards: int
    cached: int
    one: Used
    many: Used


@dataclass(frozen=True, slots=True)
class Memory:
    """A process and Valkey after `boards` boards were read and written, of which `cached` were in the cache.

    `visible_ms`: how long a batch of writes waited on average until the cache showed it.
    """

    boards: int
    cached: int
    api_bytes: int
    valkey_bytes: int
    rate: float
    visible_ms: float | None


@dataclass(frozen=True, slots=True)
class Ends:
    """How long it took to end a season, for each time, in seconds."""

    large_s: Sequence[float]
    few_s: Sequence[float]

    @property
    def large_ms(self) -> float:
        return median(self.large_s) * 1000

    @property
    def few_ms(self) -> float:
        return median(self.few_s) * 1000


@dataclass(frozen=True, slots=True)
class Depth:
    """A context at half depth of the large board and of the small one."""

    large: Latency
    small: Latency


@dataclass(frozen=True, slots=True)
class Many:
    """The results of many boards. `cells` has DEFAULT and each spread of requests as contestants.

    `cached`: how many boards were in the cache, besides DEFAULT, after the last load of each spread.
    """

    cells: list[Cell] = field(default_factory=list)
    cached: dict[str, int] = field(default_factory=dict)
    idle: Idle | None = None
    memory: Memory | None = None

    def cell(self, who: str, work: str) -> Cell | None:
        """Returns the figures of one spread of requests at one kind of work."""
        return next((cell for cell in self.cells if (cell.contestant, cell.work) == (who, work)), None)


@dataclass(frozen=True, slots=True)
class Large:
    """The results of large boards."""

    ends: Ends | None = None
    depth: Depth | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The results of one run."""

    plan: Plan
    postgres: str
    took_s: float
    others: float
    """The CPU time of other programs during the run, as a share of the machine."""
    many: Many | None
    large: Large | None
