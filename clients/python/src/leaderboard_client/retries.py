"""Decides whether and when a call is sent again.

There is no I/O here: the clients send, wait and report what happened.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx

from leaderboard_client.calls import Call
from leaderboard_client.errors import (
    ApiError,
    LeaderboardError,
    Request,
    refusal,
    transport_error,
    unexpected,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How a call is repeated that failed for now.

    Before the first repetition, a random time from 0 to `first_s` passes. Before each further one, the longest
    time is doubled, up to `most_s`. The random time is added to what the service asks for with Retry-After.

    Attributes:
        attempts: how often a request is sent, with the first time. 1: no repetition.
        total_s: within how many seconds the last attempt begins.
        first_s: the longest pause before the first repetition, in seconds.
        most_s: the longest pause, in seconds.
    """

    attempts: int = 8
    total_s: float = 20.0
    first_s: float = 0.1
    most_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, must be 1 or more")
        for name in ("total_s", "first_s", "most_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be 0 or more")


NO_RETRY = Retry(attempts=1)
"""Sends each request once."""


class Attempts(Generic[T]):
    """The attempts of one call.

    A client sends `call`, then reports with `answered` or `failed`. Both return how long to wait before the next
    attempt, in seconds, and raise the error if there is none. `answered` returns None once there is a `result`.
    """

    result: T

    def __init__(
        self,
        call: Call[T],
        url: str,
        retry: Retry,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`url` is that of the service. `jitter` returns a number from 0 to 1."""
        self.call = call
        self._url = url
        self._retry = retry
        self._clock = clock
        self._jitter = jitter
        self._made = 0
        self._ends = clock() + retry.total_s
        self._outcome_unknown = False
        """Whether an earlier attempt may have done the write."""

    def answered(self, response: httpx.Response) -> float | None:
        """Takes a response."""
        self._made += 1
        call = self.call
        if not response.is_success and response.status_code not in call.statuses:
            error = refusal(response, self._request)
            if self._is_done(error):
                # Only calls whose result is None have such codes.
                self.result = call.read(response)
                return None
            return self._pause_after(error)
        try:
            self.result = call.read(response)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            wrong = unexpected(response, self._request)
            wrong.__cause__ = error
            return self._pause_after(wrong)
        rest = call.rest(self.result)
        pause = None if rest is None else self._pause(0.0)
        if rest is None or pause is None:
            return None
        self.call = rest
        return pause

    def failed(self, error: httpx.RequestError) -> float:
        """Takes the error of a request without a response."""
        self._made += 1
        return self._pause_after(transport_error(error, self._request))

    @property
    def _request(self) -> Request:
        return Request(self.call.method, self._url + self.call.path, self.call.idempotency_key)

    def _is_done(self, error: LeaderboardError) -> bool:
        return self._outcome_unknown and isinstance(error, ApiError) and error.code in self.call.done_if

    def _pause_after(self, error: LeaderboardError) -> float:
        """Returns the pause before the next attempt. Raises the error if there is none."""
        self._outcome_unknown |= self.call.writes and error.outcome_unknown
        error.outcome_unknown = self._outcome_unknown
        error.attempts = self._made
        if error.temporary and (self.call.repeatable or not self._outcome_unknown):
            pause = self._pause(error.retry_after_s or 0.0)
            if pause is not None:
                return pause
        raise error

    def _pause(self, asked_s: float) -> float | None:
        """Returns the pause before the next attempt, at least `asked_s`; None if there is no attempt left."""
        if self._made >= self._retry.attempts:
            return None
        longest = min(self._retry.most_s, self._retry.first_s * 2.0 ** min(self._made - 1, 60))
        pause = asked_s + self._jitter() * longest
        return None if self._clock() + pause > self._ends else pause
