"""Checks some answers during the load: their shape, and that a read shows the score just set."""

import itertools
import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from bench.hot.work import Work
from leaderboard.model import INT32_MAX, Standing, User

_PAUSE_S = 0.1
_SHARE = 0.1
"""The share of the time in which it has a request under way, so that it adds little load."""
_WITHIN_THE_CACHE = 20_000
"""A score within the best 10,000 of every measured board. Deeper reads would be a load themselves."""


class WrongAnswer(Exception):
    """An answer was wrong."""


class _Top(msgspec.Struct):
    users: list[Standing]


class _Context(msgspec.Struct):
    user: Standing
    above: list[Standing]
    below: list[Standing]


class Watcher(threading.Thread):
    """A thread that sends requests like those of the load, some times per second, and checks the answers.

    At the end it raises the first WrongAnswer. `own` is a user whose score only this thread sets. Without one, the
    answers are fixed, and only their shape is checked. `board` is the beginning of the paths of a board other than
    `default`.
    """

    def __init__(
        self, url: str, work: Work, ids: Sequence[int], own: User | None, name: str, board: str = ""
    ) -> None:
        super().__init__(name="watching", daemon=True)
        self.looks = 0
        self._pause_s = _PAUSE_S
        self._client = httpx.Client(base_url=url, timeout=60)
        self._work = work
        self._ids = ids
        self._own = own
        self._board = board
        self._names = (f"{name}-watched-{number}" for number in itertools.count())
        self._closing = threading.Event()
        self._found: Exception | None = None

    def __enter__(self) -> Self:
        try:
            self._look()
        except BaseException:
            self._client.close()
            raise
        self.start()
        return self

    def close(self) -> None:
        """Stops. An answer that is still on its way is not checked."""
        self._closing.set()

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self.close()
        self.join()
        self._client.close()
        if self._found is not None and kind is None:
            raise self._found

    def run(self) -> None:
        while not self._closing.wait(self._pause_s):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - raised where the thread is closed
                if not self._closing.is_set():
                    self._found = error
                return

    def _look(self) -> None:
        """Sends one request. Raises WrongAnswer."""
        started = time.monotonic()
        if self._work.writes < 1:
            self._read()
        if self._work.writes:
            self._write()
        self.looks += 1
        self._pause_s = max(_PAUSE_S, (time.monotonic() - started) / _SHARE)

    def _read(self) -> None:
        if n := self._work.top:
            self._check(self._get(f"{self._board}/leaderboard/top/{n}", _Top).users, first=1, length=n)
        else:
            self._context(random.choice(self._ids))

    def _write(self) -> None:
        score = random.randint(_WITHIN_THE_CACHE, INT32_MAX)
        if self._work.creates:
            user = self._post("/users", {"username": next(self._names), "score": score}, 201)
        else:
            user_id = 1 if self._own is None else self._own.user_id
            user = self._post(f"{self._board}/users/{user_id}/score", {"score": score}, 200)
        if self._own is None:
            return
        if user.total_score != score:
            raise WrongAnswer(f"{self._work.name}: score {user.total_score} instead of {score}")
        shown = self._context(user.user_id).total_score
        if shown != score:
            raise WrongAnswer(f"{self._work.name}: score {score} was set, and the next read shows {shown}")

    def _context(self, user_id: int) -> Standing:
        context: _Context = self._get(f"{self._board}/leaderboard/user/{user_id}/context", _Context)
        if self._own is not None and context.user.user_id != user_id:
            raise WrongAnswer(f"the context of user {user_id} is that of {context.user.user_id}")
        users = [*context.above, context.user, *context.below]
        self._check(users, first=max(1, context.user.rank - 5), length=len(users))
        return context.user

    def _check(self, users: Sequence[Standing], *, first: int, length: int) -> None:
        ranks = [user.rank for user in users]
        if not users or ranks != list(range(first, first + length)):
            raise WrongAnswer(f"{self._work.name}: the ranks {ranks} instead of {length} from {first} on")
        if any(upper.total_score < lower.total_score for upper, lower in itertools.pairwise(users)):
            raise WrongAnswer(f"{self._work.name}: {users} are not in order")

    def _get(self, path: str, shape: type[Any]) -> Any:
        return self._checked(self._client.get(path), 200, shape)

    def _post(self, path: str, body: dict[str, object], status: int) -> User:
        user: User = self._checked(self._client.post(path, json=body), status, User)
        return user

    def _checked(self, response: httpx.Response, status: int, shape: type[Any]) -> Any:
        if response.status_code != status:
            raise WrongAnswer(f"{response.url.path}: {response.status_code} {response.text[:200]}")
        try:
            return msgspec.json.decode(response.content, type=shape)
        except msgspec.DecodeError as error:
            raise WrongAnswer(f"{response.url.path}: {error}: {response.text[:200]}") from error
