"""How often a caller may call: exact sliding windows, and the address that a request came from.

The windows are pyrate-limiter's, one for each caller. Ours is that only so many are remembered, the memory of a
process being bounded (P7): whoever has more addresses than that gets past any limit by address anyway.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import cast

from pyrate_limiter import Decision, InMemoryBucket, Rate, RateItem

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

CALLERS_REMEMBERED = 10_000
REQUESTS_REMEMBERED = 250_000
"""Of all callers together; some 50 MB."""

_HOPS_READ = 20


class Limiter:
    """At most `amount` requests of one caller within any `seconds`."""

    def __init__(self, amount: int, seconds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = [Rate(amount, seconds * 1000)]
        self._clock = clock
        self._windows: OrderedDict[Hashable, InMemoryBucket] = OrderedDict()
        self._requests = 0

    def hit(self, caller: Hashable) -> int:
        """Count a request: 0 if it may be answered, else how many milliseconds later it could be."""
        window = self._windows.get(caller)
        if window is None:
            window = self._windows[caller] = InMemoryBucket(self._rates)
        self._windows.move_to_end(caller)
        now = self._now()
        self._requests -= window.leak(now)
        verdict = cast("Decision", window.put_decision(RateItem("", now)))
        if not verdict.allowed:
            return verdict.retry_after_ms or 1
        self._requests += 1
        self._forget()
        return 0

    def remembered(self) -> tuple[int, int]:
        """How many callers and requests are remembered."""
        return len(self._windows), self._requests

    def _forget(self) -> None:
        """Let go of those who have been silent the longest."""
        while len(self._windows) > CALLERS_REMEMBERED or self._requests > REQUESTS_REMEMBERED:
            _, window = self._windows.popitem(last=False)
            self._requests -= window.count()

    def _now(self) -> int:
        return int(self._clock() * 1000)


def origin(client: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> bytes:
    """What stands for the address a request came from: four bytes of IPv4, or the eight of an IPv6 /64.

    `client` is who opened the connection, `forwarded` the values of `X-Forwarded-For`. The nearest hop that is
    not in `trusted` counts: any caller can write what stands to its left. Empty for a client without an address.
    """
    believed = _address(client)
    if believed is not None and trusted and forwarded:
        hops = b",".join(forwarded).rsplit(b",", _HOPS_READ)[-_HOPS_READ:]
        for hop in reversed(hops):
            if not _among(believed, trusted):
                break
            named = _address(hop.decode("latin-1").strip())
            if named is None:
                break
            believed = named
    return b"" if believed is None else believed.packed[:8]


def _among(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    """An address, with or without a port; IPv4 written as IPv6 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
