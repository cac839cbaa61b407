"""The results, as plain data."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.hot.work import MANY, Work
from bench.usage import Used
from bench.wrk import Load

NULL, PLAIN, OURS, TWO = "null", "plain", "ours", "ours, 2 processes"


@dataclass(frozen=True, slots=True)
class Shot:
    """One contestant at one kind of work in one round. `looks` counts the checked answers."""

    load: Load
    used: Used
    looks: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.load.requests / self.load.seconds

    def per_thousand(self, seconds: float) -> float:
        """Returns CPU seconds per thousand requests."""
        return seconds / max(1, self.load.requests) * 1000


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one contestant at one kind of work."""

    contestant: str
    work: str
    connections: int
    shots: list[Shot]

    def median(self, figure: Callable[[Shot], float]) -> float:
        return median(figure(shot) for shot in self.shots)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.median(lambda shot: shot.rate)

    @property
    def api_s(self) -> float:
        """CPU seconds of the API processes per thousand requests."""
        return self.median(lambda shot: shot.per_thousand(shot.used.api))


@dataclass(frozen=True, slots=True)
class Raw:
    """The limits of the stores: rows per second in batches, and single calls per second."""

    rows: list[float]
    calls: list[float]


@dataclass(frozen=True, slots=True)
class Facts:
    """One API process: its start on an empty Redis, and the memory with a full cache."""

    cold_start_s: float
    rebuild_s: float
    redis_bytes: int
    api_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """The results of one run. What was not asked for is None."""

    users: int
    postgres: str
    rounds: int
    seconds: float
    took_s: float
    cells: list[Cell]
    raw: Raw | None
    facts: Facts | None

    def cell(self, contestant: str, work: Work, connections: int = MANY) -> Cell | None:
        for cell in self.cells:
            if (cell.contestant, cell.work, cell.connections) == (contestant, work.name, connections):
                return cell
        return None
