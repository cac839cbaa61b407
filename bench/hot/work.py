"""The kinds of work, and the numbers of connections."""

from dataclasses import dataclass
from typing import Literal

MANY = 64
"""The usual number of connections, which the targets are about."""
_ALL = (1, 16, MANY, 256)


@dataclass(frozen=True, slots=True)
class Work:
    """Reads, of the best `top` or of contexts `of` some users, and a share of writes."""

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
"""All kinds of work. Reads come first, because writes make the tables larger."""
