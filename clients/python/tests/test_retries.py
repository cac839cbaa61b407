"""When a call is sent again: the pauses, the bounds, and what is safe to repeat. Without a network and a clock."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from leaderboard_client import ConnectFailed, ConnectionLost, LeaderboardError, Retry, TimedOut, UnexpectedAnswer
from leaderboard_client.calls import Call
from leaderboard_client.errors import CODES
from leaderboard_client.retries import Attempts

READ: Call[Any] = Call(method="GET", path="/x", read=lambda response: response.json())
WRITE: Call[Any] = replace(READ, method="POST", idempotency_key="key")
UNSAFE: Call[Any] = replace(READ, method="DELETE", repeatable=False)


class Clock:
    """A clock that only moves when a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(call: Call[Any], retry: Retry | None = None, jitter: float = 1.0) -> tuple[Attempts[Any], Clock]:
    clock = Clock()
    return Attempts(call, "http://host", retry or Retry(), clock=clock, jitter=lambda: jitter), clock


def problem(code: str, status: int = 503, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    members = {"code": code, "title": "", "detail": "", "status": status, "type": ""}
    return httpx.Response(status, json=members, headers=headers)


def test_the_pauses_are_random_and_grow_up_to_a_bound() -> None:
    for jitter in (0.0, 0.5, 1.0):
        tried, _ = attempts(READ, Retry(attempts=6, first_s=1, most_s=5, total_s=100), jitter)
        pauses = [tried.answered(problem("overloaded")) for _ in range(5)]
        assert pauses == [jitter * longest for longest in (1, 2, 4, 5, 5)]


def test_the_service_says_how_long_to_wait_at_least() -> None:
    tried, _ = attempts(READ, Retry(first_s=1), jitter=0.5)
    assert tried.answered(problem("rate_limited", 429, "7")) == 7.5
    # From proxies: a date, which is over. What is neither is ignored.
    assert tried.answered(problem("rate_limited", 429, "Wed, 21 Oct 2015 07:28:00 GMT")) == 1.0
    assert tried.answered(problem("rate_limited", 429, "soon")) == 2.0


def test_a_result_after_failures() -> None:
    tried, _ = attempts(WRITE)
    assert tried.failed(httpx.ReadError("reset")) > 0
    assert tried.answered(problem("idempotency_key_in_use", 409))
    assert tried.answered(httpx.Response(200, json={"a": 1})) is None
    assert tried.result == {"a": 1}


def test_the_number_of_attempts_is_bounded() -> None:
    tried, _ = attempts(READ, Retry(attempts=3))
    for _ in range(2):
        tried.answered(problem("overloaded"))
    with pytest.raises(LeaderboardError) as last:
        tried.answered(problem("overloaded"))
    assert last.value.attempts == 3


def test_no_attempt_begins_after_the_total_time() -> None:
    tried, clock = attempts(READ, Retry(attempts=100, total_s=20, first_s=1, most_s=1))
    clock.now += 18.9
    assert tried.answered(problem("overloaded")) == 1
    clock.now += 1
    with pytest.raises(LeaderboardError):
        tried.answered(problem("overloaded"))
    # At once if the service asks for more than is left.
    tried, _ = attempts(READ, Retry(total_s=20))
    with pytest.raises(LeaderboardError) as asked:
        tried.answered(problem("idempotency_keys_full", 503, "60"))
    assert (asked.value.attempts, asked.value.retry_after_s) == (1, 60)


REPEATED = {
    *("client_gone", "request_timeout", "rate_limited", "too_many_idempotency_keys", "idempotency_keys_full"),
    *("idempotency_key_in_use", "overloaded", "outcome_unknown", "unavailable"),
}
MAY_BE_DONE = {"outcome_unknown", "idempotency_key_in_use", "internal_error"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", [READ, WRITE, UNSAFE], ids=["read", "write", "unsafe"])
def test_only_what_is_safe_is_repeated(code: str, call: Call[Any]) -> None:
    tried, _ = attempts(call)
    if code in REPEATED and (call is not UNSAFE or code not in MAY_BE_DONE):
        assert tried.answered(problem(code))
        return
    with pytest.raises(CODES[code]) as error:
        tried.answered(problem(code))
    assert error.value.outcome_unknown == (call is not READ and code in MAY_BE_DONE)


@pytest.mark.parametrize(
    ("failure", "class_", "may_be_done"),
    [
        (httpx.ConnectError(""), ConnectFailed, False),
        (httpx.ConnectTimeout(""), ConnectFailed, False),
        (httpx.PoolTimeout(""), ConnectFailed, False),
        (httpx.ProxyError(""), ConnectFailed, False),
        (httpx.ReadTimeout(""), TimedOut, True),
        (httpx.WriteTimeout(""), TimedOut, True),
        (httpx.ReadError(""), ConnectionLost, True),
        (httpx.WriteError(""), ConnectionLost, True),
        (httpx.RemoteProtocolError("closed"), ConnectionLost, True),
    ],
)
def test_a_lost_answer_is_no_reason_to_repeat_what_is_unsafe(
    failure: httpx.RequestError, class_: type[LeaderboardError], may_be_done: bool
) -> None:
    for call in (READ, WRITE):
        assert attempts(call)[0].failed(failure)
    tried, _ = attempts(UNSAFE, Retry(attempts=2))
    if not may_be_done:
        assert tried.failed(failure)
    with pytest.raises(class_) as error:
        tried.failed(failure)
    assert error.value.outcome_unknown == may_be_done
    assert error.value.__cause__ is failure


def test_what_cannot_be_sent_is_not_sent_again() -> None:
    for failure in (httpx.UnsupportedProtocol(""), httpx.LocalProtocolError("")):
        with pytest.raises(ConnectFailed):
            attempts(READ)[0].failed(failure)


def test_an_unknown_outcome_is_remembered() -> None:
    tried, _ = attempts(WRITE, Retry(attempts=2))
    tried.answered(problem("outcome_unknown"))
    with pytest.raises(LeaderboardError) as refused:
        tried.answered(problem("overloaded"))
    assert refused.value.outcome_unknown


@pytest.mark.parametrize(
    ("status", "repeated", "may_be_done"),
    [
        *((200, False, True), (302, False, False), (401, False, False), (404, False, False), (429, True, False)),
        *((500, False, True), (502, True, True), (503, True, True), (504, True, True)),
    ],
)
def test_the_page_of_a_proxy_is_an_unexpected_answer(status: int, repeated: bool, may_be_done: bool) -> None:
    page = httpx.Response(status, html="<html>", headers={"Location": "https://elsewhere"})
    if repeated:
        assert attempts(WRITE)[0].answered(page)
    tried, _ = attempts(replace(UNSAFE, read=lambda response: response.json()), Retry(attempts=1))
    with pytest.raises(UnexpectedAnswer) as error:
        tried.answered(page)
    assert (error.value.status, error.value.outcome_unknown) == (status, may_be_done)


def test_codes_of_newer_services_are_judged_by_their_status() -> None:
    assert attempts(READ)[0].answered(problem("new", 503))
    assert attempts(UNSAFE)[0].answered(problem("new", 429))
    for status in (409, 500, 503):
        with pytest.raises(LeaderboardError) as error:
            attempts(UNSAFE)[0].answered(problem("new", status))
        assert error.value.outcome_unknown == (status >= 500)


def test_a_thing_that_is_gone_is_done_only_after_a_lost_answer() -> None:
    erase: Call[Any] = replace(READ, method="DELETE", read=lambda _: None, done_if=frozenset({"user_not_found"}))
    for unknown, done in ((True, True), (False, False)):
        tried, _ = attempts(erase)
        if unknown:
            tried.failed(httpx.ReadError(""))
        else:
            tried.answered(problem("overloaded"))
        if done:
            assert tried.answered(problem("user_not_found", 404)) is None
            assert tried.result is None
        else:
            with pytest.raises(CODES["user_not_found"]):
                tried.answered(problem("user_not_found", 404))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="attempts is 0, must be 1 or more"):
        Retry(attempts=0)
    with pytest.raises(ValueError, match="total_s is -1, must be 0 or more"):
        Retry(total_s=-1)
