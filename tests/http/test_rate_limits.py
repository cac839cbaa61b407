"""The rate limiter, on a clock that the test moves, and the network of a client."""

import math
import tracemalloc
from collections import defaultdict
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.http.access import RateLimited
from leaderboard.http.limits import Limiter, LimiterMemory, client_network


class Clock:
    """A clock that the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from((0.0, 0.0, 0.0004, 0.001, 0.1, 0.25, 0.999, 1.0, 1.001))),
    max_size=120,
)


@given(STEPS, st.integers(1, 5), st.sampled_from((1, 2)), st.floats(0, 1e6))
def test_never_more_than_the_limit_within_any_window(
    steps: list[tuple[str, float]], amount: int, seconds: int, start: float
) -> None:
    clock = Clock(start)
    limiter = Limiter(amount, seconds, clock)
    admitted: dict[str, list[float]] = defaultdict(list)
    for caller, pause in steps:
        clock.now += pause
        within = [at for at in admitted[caller] if clock.now - at < seconds]
        wait = limiter.hit(caller)
        if wait == 0:
            admitted[caller].append(clock.now)
            assert len(within) < amount
        else:
            # A caller below its limit is not refused; times are whole milliseconds.
            assert len([at for at in admitted[caller] if clock.now - at < seconds + 0.002]) >= amount
            assert 0 < wait <= seconds * 1000 + 1


@given(STEPS, st.integers(1, 5))
def test_a_request_is_allowed_after_the_wait_and_not_before(steps: list[tuple[str, float]], amount: int) -> None:
    clock = Clock()
    limiter = Limiter(amount, 1, clock)
    for caller, pause in steps:
        clock.now += pause
        wait = limiter.hit(caller)
        if wait:
            asked = clock.now
            # Times are whole milliseconds, so one may be lost to rounding.
            clock.now = asked + max(0, wait - 2) / 1000
            assert limiter.hit(caller) > 0, "too early"
            clock.now = asked + (wait + 1) / 1000
            assert limiter.hit(caller) == 0, "after the wait"
        assert RateLimited("key", wait).retry_after_s == max(1, math.ceil(wait / 1000))


def test_a_refused_request_does_not_prolong_the_wait() -> None:
    clock = Clock()
    limiter = Limiter(2, 60, clock)
    assert [limiter.hit("a") for _ in range(2)] == [0, 0]
    for _ in range(59):
        clock.now += 1
        assert limiter.hit("a") > 0
    clock.now += 1.002
    assert limiter.hit("a") == 0


def test_no_double_burst_at_the_end_of_a_window() -> None:
    clock = Clock(0.99)
    limiter = Limiter(100, 1, clock)
    assert sum(limiter.hit("a") == 0 for _ in range(200)) == 100
    for now in (1.0, 1.5, 1.98):
        clock.now = now
        assert sum(limiter.hit("a") == 0 for _ in range(200)) == 0


def test_the_number_of_callers_kept_is_limited() -> None:
    clock = Clock()
    memory = LimiterMemory()
    limiter = Limiter(100, 3600, clock, memory)
    tracemalloc.start()
    try:
        for number in range(3 * memory.callers):
            clock.now += 0.001
            assert limiter.hit(ip_address(number).packed) == 0
        assert limiter.size() == (memory.callers, memory.callers)
        assert tracemalloc.get_traced_memory()[0] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_number_of_requests_kept_is_limited() -> None:
    """With a tenth of the real limit, which would take ten times as long."""
    memory = LimiterMemory(requests=LimiterMemory().requests // 10)
    limiter = Limiter(10_000, 3600, Clock(), memory)
    tracemalloc.start()
    try:
        for number in range(2 * memory.requests):
            assert limiter.hit(number % 50) == 0
        callers, requests = limiter.size()
        assert callers <= 50
        assert requests <= memory.requests
        assert tracemalloc.get_traced_memory()[0] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_caller_that_keeps_calling_is_not_forgotten_for_those_that_call_once() -> None:
    limiter = Limiter(1, 3600, Clock())
    assert limiter.hit("busy") == 0
    for number in range(3 * LimiterMemory().callers):
        limiter.hit(number)
        assert number % 100 or limiter.hit("busy") > 0


# The network of a client

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("client", "forwarded", "expected"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7 ,10.0.0.2,\t10.9.9.9", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "198.51.100.7, nonsense", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7,", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::"),
        ("fd00::1", "2001:db8:0:1:2:3:4:5", "2001:db8:0:1::"),
        ("2001:db8:0:1:ffff:3:4:5", "", "2001:db8:0:1::"),
        ("::ffff:192.0.2.1", "", "192.0.2.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("fe80::1%eth0", "", "fe80::"),
        ("10.0.0.1", ", ".join(["203.0.113.9", *["10.0.0.2"] * 5000]), "10.0.0.2"),
        ("10.0.0.1", "1" * 5000, "10.0.0.1"),
    ],
)
def test_the_nearest_hop_that_is_not_trusted_counts(client: str, forwarded: str, expected: str) -> None:
    values = [forwarded.encode()] if forwarded else []
    assert client_network(client, values, TRUSTED) == ip_address(expected).packed[:8]
    # Several headers are the same as one.
    lines = [line.encode() for line in forwarded.split(",")] if forwarded else []
    assert client_network(client, lines, TRUSTED) == ip_address(expected).packed[:8]


def test_without_trusted_proxies_forwarded_headers_are_ignored() -> None:
    assert client_network("10.0.0.1", [b"198.51.100.7"], ()) == ip_address("10.0.0.1").packed
    assert client_network("", [b"198.51.100.7"], ()) == b""


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_any_forwarded_header_gives_a_network(forwarded: list[bytes]) -> None:
    assert len(client_network("10.0.0.1", forwarded, TRUSTED)) in {4, 8}
