"""Every state that PostgreSQL can have been in, from what its transactions saw, and the board in any one of
them.

A state is the set of transactions that have committed, held as the bits of an int. Snapshots are taken and
transactions end one at a time, so of any two snapshots one sees all that the other sees, and a state that really
was is comparable with every one of them: it has all that the snapshot sees, or nothing else. Sorted, the
snapshots are therefore *cuts* through the history of which we know that they were, in this order. Between two
cuts lies a *bucket*, mostly of one transaction. A state is a cut and some of the bucket above it; which of them
came first, nobody saw. Only who overwrote the other's version of a row came after it, and brings it along.

Such states are closed under union and intersection, so with any set of transactions comes a least state that has
them: the union of their closures.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from chaos.history import Change, Transaction

Key = tuple[int, int]
"""Where a user stands: (score negated, id), the best first."""


class Version(NamedTuple):
    """What a user is after `transaction` (an index; -1: from the beginning). Absent if score and name are None."""

    transaction: int
    score: int | None
    name: str | None


ABSENT = (None, None)


def bits(mask: int) -> Iterator[int]:
    """The places of the ones, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


class Committed:
    """The transactions in an order in which they can have committed, and how much of it is certain.

    Raises ValueError for a record that no PostgreSQL can have made.
    """

    def __init__(self, initial: Mapping[int, tuple[str, int]], transactions: Sequence[Transaction]) -> None:
        order, sizes = _in_buckets(transactions)
        self.transactions = order
        self.versions: dict[int, list[Version]] = {
            user_id: [Version(-1, score, name)] for user_id, (name, score) in initial.items()
        }
        self.first: dict[tuple[int, int | None, str | None], int] = {
            (user_id, score, name): -1 for user_id, (name, score) in initial.items()
        }
        """By user, score and name: the transaction of the first such version."""
        self.closures: list[int] = []
        """By transaction: the least state that has it."""
        self._buckets: list[int] = []
        """By transaction: all that lies in its bucket."""
        for size in sizes:
            start = len(self.closures)
            for index in range(start, start + size):
                self._buckets.append((1 << start + size) - (1 << start))
                self.closures.append((1 << start) - 1 | 1 << index)
                for change in order[index].changes:
                    self._add(index, change)
        self.all = (1 << len(order)) - 1

    def _add(self, index: int, change: Change) -> None:
        if change.user_id not in self.versions:
            self.versions[change.user_id] = [Version(-1, None, None)]
            self.first[change.user_id, None, None] = -1
        versions = self.versions[change.user_id]
        before = versions[-1]
        if before.score != change.old:
            raise ValueError(f"user {change.user_id} was {before.score}, but {change} says otherwise")
        if before.transaction >= 0:
            self.closures[index] |= self.closures[before.transaction]
        if before.transaction == index:
            versions.pop()
        versions.append(Version(index, change.new, change.name))
        self.first.setdefault((change.user_id, change.new, change.name), index)

    def concurrent(self, state: int) -> Iterator[int]:
        """The transactions of which any one can have been the next after `state`, or come along with it."""
        missing = self.all & ~state
        if missing:
            first = (missing & -missing).bit_length() - 1
            yield from bits(self._buckets[first] & missing)


def _in_buckets(transactions: Sequence[Transaction]) -> tuple[list[Transaction], list[int]]:
    """The transactions in the order of their buckets, within one in that of their rows; the buckets' sizes."""
    by_xid = sorted(transactions, key=lambda transaction: transaction.xid)
    xids = [transaction.xid for transaction in by_xid]
    place = {xid: number for number, xid in enumerate(xids)}
    if len(place) < len(xids):
        raise ValueError("two transactions have the same id")
    cuts = {0, (1 << len(xids)) - 1}
    for number, transaction in enumerate(by_xid):
        unseen = 1 << number  # a snapshot says nothing about the transaction that takes it: it is in progress
        for xid in transaction.seen.xip:
            if xid in place:
                unseen |= 1 << place[xid]
        cuts.add((1 << bisect_left(xids, transaction.seen.xmax)) - 1 & ~unseen)
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


class Board:
    """The standings in one state, which can be moved to any other; the nearer, the cheaper."""

    def __init__(self, committed: Committed) -> None:
        self._committed = committed
        self._state = 0
        self._at: dict[int, int] = dict.fromkeys(committed.versions, 0)
        """By user: which of its versions is current."""
        self.keys: list[Key] = sorted(
            (-versions[0].score, user_id)
            for user_id, versions in committed.versions.items()
            if versions[0].score is not None
        )

    def move(self, state: int) -> None:
        """Show the standings in `state`."""
        moved = {
            change.user_id
            for index in bits(state ^ self._state)
            for change in self._committed.transactions[index].changes
        }
        self._state = state
        for user_id in moved:
            versions, at = self._committed.versions[user_id], self._at[user_id]
            before = versions[at].score
            while at + 1 < len(versions) and state >> versions[at + 1].transaction & 1:
                at += 1
            while at and not state >> versions[at].transaction & 1:
                at -= 1
            self._at[user_id] = at
            after = versions[at].score
            if before != after:
                if before is not None:
                    del self.keys[bisect_left(self.keys, (-before, user_id))]
                if after is not None:
                    insort(self.keys, (-after, user_id))

    def current(self, user_id: int) -> Version:
        """The user's version now; absent for one that nobody knows."""
        at = self._at.get(user_id)
        return Version(-1, None, None) if at is None else self._committed.versions[user_id][at]

    def following(self, user_id: int) -> Version | None:
        """The user's version after the current one."""
        versions = self._committed.versions.get(user_id, [])
        at = self._at.get(user_id, 0) + 1
        return versions[at] if at < len(versions) else None

    def rows(self, start: int, count: int) -> list[tuple[int, int, str | None, int]]:
        """(rank, id, name, score) of `count` users from the place `start`, counted from 0."""
        return [
            (rank, user_id, self.current(user_id).name, -negated)
            for rank, (negated, user_id) in enumerate(self.keys[start : start + count], start + 1)
        ]
