"""All states that PostgreSQL can have been in, by the snapshots of its transactions, and the boards in each state.

A state is the set of committed transactions, as the bits of an int. Snapshots are taken and transactions end one
at a time. So of any two snapshots one sees all that the other sees, and each real state contains, or is contained
in, what a snapshot sees. Sorted, the snapshots are *cuts* through the history, in a known order. Between two cuts
is a *bucket*, mostly of one transaction. A state is a cut and a part of the next bucket. The order within a bucket
is unknown, except that a transaction which overwrites another one's version of a row comes after it.

The union and the intersection of two states are states. So any set of transactions has a least state that contains
them: the union of their closures.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from chaos.history import Change, Entry, Season, Transaction, Users, current_season

Key = tuple[int, int]
"""The place of an entry: (negated score, user id). The best is first."""


class Version(NamedTuple):
    """An entry after `transaction` (an index; -1: the initial state). Score and name are None if it is absent."""

    transaction: int
    score: int | None
    name: str | None


ABSENT = (None, None)


def bits(mask: int) -> Iterator[int]:
    """Yields the positions of the one bits, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


class Committed:
    """The transactions in a possible order of their commits, and how much of the order is certain.

    Raises ValueError for a history that is impossible in PostgreSQL.
    """

    def __init__(self, initial: Mapping[Season, Users], transactions: Sequence[Transaction]) -> None:
        """`initial` has all seasons that there were, also those without entries."""
        order, sizes = _in_buckets(transactions)
        self.transactions = order
        self.seasons = set(initial)
        self.versions: dict[Entry, list[Version]] = {
            (season, user_id): [Version(-1, score, name)]
            for season, users in initial.items()
            for user_id, (name, score) in users.items()
        }
        self.first: dict[tuple[Entry, int | None, str | None], int] = {
            (entry, version.score, version.name): -1 for entry, (version,) in self.versions.items()
        }
        """By entry, score and name: the transaction of the first such version."""
        self.closures: list[int] = []
        """By transaction: the least state that contains it."""
        self._buckets: list[int] = []
        """By transaction: all transactions of its bucket."""
        for size in sizes:
            start = len(self.closures)
            for index in range(start, start + size):
                self._buckets.append((1 << start + size) - (1 << start))
                self.closures.append((1 << start) - 1 | 1 << index)
                for change in order[index].changes:
                    self._add(index, change)
        self.all = (1 << len(order)) - 1

    def _add(self, index: int, change: Change) -> None:
        entry = change.entry
        if entry not in self.versions:
            self.versions[entry] = [Version(-1, None, None)]
            self.first[entry, None, None] = -1
        versions = self.versions[entry]
        before = versions[-1]
        if before.score != change.old:
            raise ValueError(f"user {change.user_id} was {before.score}, but {change} says otherwise")
        if before.transaction >= 0:
            self.closures[index] |= self.closures[before.transaction]
        if before.transaction == index:
            versions.pop()
        versions.append(Version(index, change.new, change.name))
        self.first.setdefault((entry, change.new, change.name), index)

    def numbers(self, board: str) -> list[int]:
        """Returns the numbers of the seasons that were current at some time, ascending."""
        versions = self.versions.get(current_season(board), ())
        return [version.score for version in versions if version.score is not None] or [1]

    def concurrent(self, state: int) -> Iterator[int]:
        """Yields the transactions that can have committed next after `state`, or at the same time."""
        missing = self.all & ~state
        if missing:
            first = (missing & -missing).bit_length() - 1
            yield from bits(self._buckets[first] & missing)


def _in_buckets(transactions: Sequence[Transaction]) -> tuple[list[Transaction], list[int]]:
    """Returns the transactions, by bucket and then by their rows, and the sizes of the buckets."""
    by_xid = sorted(transactions, key=lambda transaction: transaction.xid)
    xids = [transaction.xid for transaction in by_xid]
    place = {xid: number for number, xid in enumerate(xids)}
    if len(place) < len(xids):
        raise ValueError("two transactions have the same id")
    cuts = {0, (1 << len(xids)) - 1}
    for number, transaction in enumerate(by_xid):
        not_visible = 1 << number  # the transaction that takes a snapshot is in progress
        for xid in transaction.seen.xip:
            if xid in place:
                not_visible |= 1 << place[xid]
        cuts.add((1 << bisect_left(xids, transaction.seen.xmax)) - 1 & ~not_visible)
    order: list[Transaction] = []
    sizes: list[int] = []
    for lower, upper in pairwise(sorted(cuts, key=int.bit_count)):
        if lower & ~upper:
            raise ValueError("of two snapshots neither sees all that the other sees")
        bucket = [by_xid[number] for number in bits(upper & ~lower)]
        order += sorted(
            bucket, key=lambda transaction: max((change.seq for change in transaction.changes), default=0)
        )
        sizes.append(len(bucket))
    return order, sizes


class Boards:
    """The standings of all seasons in one state. Changing to a near state is cheap."""

    def __init__(self, committed: Committed) -> None:
        self._committed = committed
        self._state = 0
        self._at: dict[Entry, int] = dict.fromkeys(committed.versions, 0)
        """By entry: which of its versions is current."""
        self.keys: dict[Season, list[Key]] = defaultdict(list)
        """By season: the places of its entries, in order."""
        for (season, user_id), versions in committed.versions.items():
            if versions[0].score is not None:
                insort(self.keys[season], (-versions[0].score, user_id))

    def move(self, state: int) -> None:
        """Changes the standings to those in `state`."""
        changed = {
            change.entry
            for index in bits(state ^ self._state)
            for change in self._committed.transactions[index].changes
        }
        self._state = state
        for entry in changed:
            versions, at = self._committed.versions[entry], self._at[entry]
            before = versions[at].score
            while at + 1 < len(versions) and state >> versions[at + 1].transaction & 1:
                at += 1
            while at and not state >> versions[at].transaction & 1:
                at -= 1
            self._at[entry] = at
            after = versions[at].score
            if before != after:
                season, user_id = entry
                keys = self.keys[season]
                if before is not None:
                    del keys[bisect_left(keys, (-before, user_id))]
                if after is not None:
                    insort(keys, (-after, user_id))

    def current(self, entry: Entry) -> Version:
        """Returns the current version of the entry. It is absent for an unknown one."""
        at = self._at.get(entry)
        return Version(-1, None, None) if at is None else self._committed.versions[entry][at]

    def following(self, entry: Entry) -> Version | None:
        """Returns the version of the entry after the current one, or None."""
        versions = self._committed.versions.get(entry, [])
        at = self._at.get(entry, 0) + 1
        return versions[at] if at < len(versions) else None

    def rows(self, season: Season, start: int, count: int) -> list[tuple[int, int, str | None, int]]:
        """Returns (rank, id, name, score) of `count` users from the index `start`."""
        return [
            (rank, user_id, self.current((season, user_id)).name, -negated)
            for rank, (negated, user_id) in enumerate(self.keys[season][start : start + count], start + 1)
        ]
