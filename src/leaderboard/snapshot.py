"""What PostgreSQL had committed at one instant, and how two such instants compare.

Every view remembers the snapshot it is at, and every promise about freshness is a question to this file.
"""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A `pg_snapshot`: everything below `xmax` had ended, except the transactions `xip` still in progress."""

    xmin: int
    xmax: int
    xip: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's own notation, `xmin:xmax:xip,xip`. Raises ValueError for anything else."""
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in xip.split(",") if xid))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(str(xid) for xid in sorted(self.xip))}"

    def sees(self, xid: int) -> bool:
        """Whether the transaction `xid`, if it committed at all, had done so by now."""
        return xid < self.xmax and xid not in self.xip

    def covers(self, other: "Snapshot") -> bool:
        """Whether everything that `other` sees is seen here as well."""
        return self.xmax >= other.xmax and not any(other.sees(xid) for xid in self.xip)


@dataclass(frozen=True, slots=True)
class CommitPosition:
    """One committed transaction. `epoch` names the life of the database in which its number means it."""

    epoch: str
    xid: int


@dataclass(frozen=True, slots=True)
class SnapshotPosition:
    """A snapshot of one particular life of one particular database."""

    epoch: str
    snapshot: Snapshot

    def reflects(self, point: "SnapshotPosition | CommitPosition") -> bool:
        """Whether a view at this moment shows all that was true at `point`. Never so across epochs."""
        if self.epoch != point.epoch:
            return False
        if isinstance(point, CommitPosition):
            return self.snapshot.sees(point.xid)
        return self.snapshot.covers(point.snapshot)


def same_database(epoch: str, other: str) -> bool:
    """Whether two epochs are of one database, perhaps in different lives of it.

    The first two parts of an epoch, as `database_epoch()` makes it, name the cluster and the database.
    """
    return epoch.split("/")[:2] == other.split("/")[:2]
