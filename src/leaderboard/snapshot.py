"""Snapshots of PostgreSQL, positions in its history, and how they compare.

Every view of the users (the cache, the rank index) remembers the snapshot that it shows. Every promise about
freshness is a comparison made here.
"""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A `pg_snapshot`: transactions below `xmax` had ended, except those in `xip`, which were running."""

    xmin: int
    xmax: int
    xip: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's notation, such as `10:20:12,15`. Raises ValueError for anything else."""
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in xip.split(",") if xid))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(str(xid) for xid in sorted(self.xip))}"

    def sees(self, xid: int) -> bool:
        """Return whether the transaction `xid`, if it committed at all, had committed."""
        return xid < self.xmax and xid not in self.xip

    def covers(self, other: "Snapshot") -> bool:
        """Return whether this snapshot sees everything that `other` sees. As `snapshot_covers` in SQL."""
        return self.xmax >= other.xmax and not any(other.sees(xid) for xid in self.xip)


@dataclass(frozen=True, slots=True)
class CommitPosition:
    """The position of one committed transaction. Its id means something only within `epoch`."""

    epoch: str
    xid: int


@dataclass(frozen=True, slots=True)
class SnapshotPosition:
    """The position of a snapshot. Its transaction ids mean something only within `epoch`."""

    epoch: str
    snapshot: Snapshot

    def reflects(self, position: "Position") -> bool:
        """Return whether a view at this snapshot shows everything up to `position`; never across epochs."""
        if self.epoch != position.epoch:
            return False
        if isinstance(position, CommitPosition):
            return self.snapshot.sees(position.xid)
        return self.snapshot.covers(position.snapshot)


Position = SnapshotPosition | CommitPosition


def same_database(epoch: str, other: str) -> bool:
    """Return whether two epochs are of one database, before and after a restart perhaps.

    The first two parts of an epoch, as `database_epoch()` makes it, name the cluster and the database.
    """
    return epoch.split("/")[:2] == other.split("/")[:2]
