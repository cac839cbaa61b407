"""Rate limits: exact sliding windows, and the network of the client that a request came from.

The windows are pyrate-limiter's, one for each caller. This module bounds how many of them are kept, so that the
memory of a process is bounded: a client with more addresses than that evades a limit per address anyway.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import cast

from pyrate_limiter import Decision, InMemoryBucket, Rate, RateItem

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAX_HOPS = 20
"""How many entries of X-Forwarded-For are read, from the right."""


@dataclass(frozen=True, slots=True)
class LimiterMemory:
    """How much a limiter keeps: `requests`, of all callers together, take some 50 MB."""

    callers: int = 10_000
    requests: int = 250_000


class Limiter:
    """At most `amount` requests of one caller within any `seconds`."""

    def __init__(
        self,
        amount: int,
        seconds: int,
        clock: Callable[[], float] = time.monotonic,
        memory: LimiterMemory | None = None,
    ) -> None:
        self._rates = [Rate(amount, seconds * 1000)]
        self._clock = clock
        self._memory = memory or LimiterMemory()
        self._windows: OrderedDict[Hashable, InMemoryBucket] = OrderedDict()
        self._requests = 0

    def hit(self, caller: Hashable) -> int:
        """Counts a request. Returns 0 if it is allowed, else in how many milliseconds it would be."""
        window = self._windows.get(caller)
        if window is None:
            window = self._windows[caller] = InMemoryBucket(self._rates)
        self._windows.move_to_end(caller)
        now = self._now_ms()
        self._requests -= window.leak(now)
        decision = cast("Decision", window.put_decision(RateItem("", now)))
        if not decision.allowed:
            return decision.retry_after_ms or 1
        self._requests += 1
        self._evict()
        return 0

    def size(self) -> tuple[int, int]:
        """Returns how many callers and requests are kept."""
        return len(self._windows), self._requests

    def _evict(self) -> None:
        """Forgets the callers whose last request is oldest, until the rest fits."""
        while len(self._windows) > self._memory.callers or self._requests > self._memory.requests:
            _, window = self._windows.popitem(last=False)
            self._requests -= window.count()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def client_network(client: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> bytes:
    """Returns the network of a client: 4 bytes of IPv4, 8 bytes of an IPv6 /64, or none if unknown.

    `client` is the address of the connection, `forwarded` the values of `X-Forwarded-For`. The nearest hop that is
    not in `trusted` counts, as any client can write the entries to its left.
    """
    address = _address(client)
    if address is not None and trusted and forwarded:
        hops = b",".join(forwarded).rsplit(b",", _MAX_HOPS)[-_MAX_HOPS:]
        for hop in reversed(hops):
            if not _in_any(address, trusted):
                break
            previous = _address(hop.decode("latin-1").strip())
            if previous is None:
                break
            address = previous
    return b"" if address is None else address.packed[:8]


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    """Parses an address with or without a port. An IPv4-mapped IPv6 address becomes IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
