"""What is asked: the kinds of work, and how many connections ask at once."""

from dataclasses import dataclass
from typing import Literal

MANY = 64
"""So many connections where nothing else is said, and where the targets are looked at."""
_ALL = (1, 16, MANY, 256)


@dataclass(frozen=True, slots=True)
class Work:
    """Reads, of the best `top` or of contexts `of` some users, and a share of writes. `label` is for the plot."""

    name: str
    label: str
    top: int = 0
    of: Literal["", "best", "all"] = ""
    writes: float = 0
    creates: bool = False
    connections: tuple[int, ...] = (MANY,)


TOP_10 = Work("top 10", "top 10", top=10, connections=_ALL)
TOP_100 = Work("top 100", "top 100", top=100)
CONTEXT_BEST = Work("context of the best 10,000", "context, best", of="best", connections=_ALL)
CONTEXT_ALL = Work("context of all", "context, all", of="all", connections=_ALL)
SET_SCORE = Work("set score", "set score", writes=1)
CREATE = Work("create users", "create", writes=1, creates=True)
MOSTLY_READS = Work("95 % context, 5 % set score", "95 % / 5 %", of="best", writes=0.05)
HALF_READS = Work("50 % context, 50 % set score", "50 % / 50 %", of="best", writes=0.5)

READS = (TOP_10, TOP_100, CONTEXT_BEST, CONTEXT_ALL)
WORKS = (*READS, MOSTLY_READS, HALF_READS, SET_SCORE, CREATE)
"""Those that read first: what is written makes the tables larger."""
