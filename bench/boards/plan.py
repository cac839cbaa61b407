"""What one run measures, and the sizes of its boards."""

from collections.abc import Sequence
from dataclasses import dataclass

SPREAD, WARM, IDLE, MEMORY, ENDS, DEPTH = "spread", "warm", "idle", "memory", "ends", "depth"
PARTS = (SPREAD, WARM, IDLE, MEMORY, ENDS, DEPTH)
"""The parts of a run. Each can be measured alone."""

NEEDS_LOAD = frozenset({SPREAD, WARM, IDLE, MEMORY})
"""The parts that need `wrk`."""


class BadPlan(Exception):
    """The sizes do not fit together. The text says which."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and for how long. The fields are counts unless they end in `_s`."""

    parts: Sequence[str] = PARTS
    users: int = 1_000_000
    """Users of the board `default`, beside which many boards are measured."""
    boards: Sequence[int] = (1, 100, 10_000)
    """Over how many boards the requests are spread. The largest number is also the one for `idle`."""
    entries: int = 1000
    """Entries of each of many boards."""
    warm: int = 100
    in_use: int = 1000
    """Over how many boards the requests are spread before memory is measured."""
    large: int = 10_000_000
    small: int = 100_000
    few: int = 10
    """Entries of the boards whose seasons are ended, and that are read at half depth."""
    rounds: int = 3
    seconds: float = 2
    idle_s: float = 75
    """Longer than the interval of any timer of a service. In less, only one of two may compare its cache."""

    def __post_init__(self) -> None:
        if not self.few <= self.small <= self.large:
            raise BadPlan(f"the small board has {self.small:,} entries, the large one {self.large:,}")
        if not 10 <= self.entries <= self.users:
            raise BadPlan(
                f"a board has 10 to {self.users:,} entries, as many as there are users; not {self.entries:,}"
            )
        if not self.boards or min(self.boards) < 1:
            raise BadPlan("requests are spread over one board or more")

    @property
    def most_boards(self) -> int:
        """How many boards there must be for the parts that are measured."""
        needed = [1]
        if {SPREAD, IDLE}.intersection(self.parts):
            needed.append(max(self.boards))
        if WARM in self.parts:
            needed.append(self.warm)
        if MEMORY in self.parts:
            needed.append(self.in_use)
        return max(needed)


QUICK = Plan(users=100_000, boards=(1, 100, 1000), large=1_000_000, small=100_000, rounds=2, seconds=1)
"""Smaller sizes: a few minutes instead of many."""
