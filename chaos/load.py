"""The load: a separate process whose threads read and write through all API processes, and record the answers.

No user gets the same score twice, so a score identifies a write. Some writes have an idempotency key and are
repeated until there is an answer; together they are one operation.
"""

import http.client
import json
import math
import multiprocessing
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

from chaos.history import Kind, Operation, Outcome, Place

CLIENTS = 10
NEW_USERS = 40
"""How many users one load creates at most."""
_SCORES = 1_000_003
_STRIDE = 7919
_CREATED = -1
"""The key under which first scores are counted. They come from another part of the sequence."""
_UNKNOWN_CODES = {"outcome_unknown", "internal_error"}
_RETRY_S = 15.0
_PAUSE_S = (0.0, 0.006)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load does. `urls` are the ports by name of the process."""

    urls: dict[str, int]
    users: tuple[int, ...]
    top: int
    seed: int
    deadline_s: float


@dataclass
class Record:
    """What was seen. `late` are answers after the deadline, `odd` are statuses that are never allowed."""

    operations: list[Operation] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    refused_at: list[tuple[float, float, str]] = field(default_factory=list)
    """Start, end and description of each refused call."""
    slowest_s: float = 0.0


class Load:
    """Runs the clients in a process of its own. `stop` returns the record."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(plan, theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        if self._ours.recv() != "started":
            raise RuntimeError("the load did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def stop(self) -> Record:
        """Ends all clients and returns what they saw."""
        self._ours.send("stop")
        record: Record = self._ours.recv()
        self._process.join()
        return record


def _run(plan: Plan, pipe: Connection) -> None:
    ended = threading.Event()
    shared = _Shared(plan)
    clients = [_Client(plan, shared, number, ended) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    pipe.send("started")
    pipe.recv()
    ended.set()
    for thread in threads:
        thread.join()
    total = Record()
    for client in clients:
        record = client.record
        total.operations += record.operations
        total.late += record.late
        total.odd += record.odd
        total.refused += record.refused
        total.refused_at += record.refused_at
        total.slowest_s = max(total.slowest_s, record.slowest_s)
    pipe.send(total)


class _Shared:
    """What the clients share: the users, and how many scores each has had."""

    def __init__(self, plan: Plan) -> None:
        self._lock = threading.Lock()
        self._users = list(plan.users)
        self._given: Counter[int] = Counter()
        self._created = 0

    def user(self, chance: random.Random) -> int:
        with self._lock:
            # Some users are chosen often, so that requests for one user overlap.
            return self._users[min(int(chance.expovariate(4 / len(self._users))), len(self._users) - 1)]

    def score(self, user_id: int) -> int:
        """Returns a score that this user has not had. Other users may have had it."""
        with self._lock:
            self._given[user_id] += 1
            number = self._given[user_id] + (_SCORES // 2 if user_id == _CREATED else 0)
        return (number * _STRIDE) % _SCORES - _SCORES // 2

    def name(self, seed: int) -> str | None:
        with self._lock:
            if self._created >= NEW_USERS:
                return None
            self._created += 1
            return f"made {seed} {self._created}"

    def add(self, user_id: int) -> None:
        with self._lock:
            self._users.append(user_id)


class _Client:
    """One client, in a thread."""

    def __init__(self, plan: Plan, shared: _Shared, number: int, ended: threading.Event) -> None:
        self._plan = plan
        self._shared = shared
        self._chance = random.Random(f"{plan.seed} {number}")
        self._number = number
        self._keys = 0
        self._ended = ended
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._cursor: tuple[str, tuple[int, int]] | None = None
        self.record = Record()

    def run(self) -> None:
        while not self._ended.is_set():
            self._step()
            time.sleep(self._chance.uniform(*_PAUSE_S))
        for connection in self._connections.values():
            connection.close()

    def _step(self) -> None:
        what = self._chance.random()
        user_id = self._shared.user(self._chance)
        if what < 0.38:
            self._write("set", user_id, f"/users/{user_id}/score", {"score": self._shared.score(user_id)})
        elif what < 0.42:
            name = self._shared.name(self._plan.seed)
            if name is not None:
                self._write("create", 0, "/users", {"username": name, "score": self._shared.score(_CREATED)})
        elif what < 0.54:
            n = self._chance.choice([1, 3, self._plan.top // 2, self._plan.top, 3 * self._plan.top])
            self._read("top", n, f"/leaderboard/top/{n}")
        elif what < 0.7:
            self._read("context", user_id, f"/leaderboard/user/{user_id}/context")
        elif what < 0.84:
            self._read("user", user_id, f"/users/{user_id}")
        elif what < 0.92:
            self._read_page()
        else:
            limit, rank = self._limit(), self._chance.randint(1, len(self._plan.users) + NEW_USERS)
            self._read("around", rank, f"/leaderboard?limit={limit}&around_rank={rank}", limit)

    def _limit(self) -> int:
        return self._chance.choice([1, 4, 15, 40])

    def _read_page(self) -> None:
        """Reads the page after the last one, or the first."""
        limit = self._limit()
        text, after = self._cursor or ("", None)
        path = f"/leaderboard?limit={limit}{f'&after={text}' if text else ''}"
        answer = self._read("page", 0, path, limit, after)
        if answer is not None:
            last = answer["users"][-1] if answer["next"] else None
            self._cursor = None if last is None else (answer["next"], (last["score"], last["userId"]))

    def _write(self, kind: Kind, user_id: int, path: str, body: dict[str, Any]) -> None:
        start = time.monotonic()
        headers = {"content-type": "application/json"}
        keyed = self._chance.random() < 0.3
        if keyed:
            self._keys += 1
            headers["idempotency-key"] = f"{self._plan.seed}-{self._number}-{self._keys}-{start}"
        doubtful = False
        while True:
            by, status, _, answer = self._send("POST", path, json.dumps(body), headers)
            outcome = _outcome(status, answer)
            doubtful = doubtful or outcome == "unknown"
            again = keyed and (outcome == "unknown" or status == 409)
            if not again or time.monotonic() > start + _RETRY_S:
                break
            time.sleep(0.02)
        if doubtful and outcome == "refused":
            # This request was not done, but an earlier copy of it may have been.
            outcome = "unknown"
        self.record.operations.append(
            Operation(
                kind,
                user_id,
                start,
                math.inf if outcome == "unknown" else time.monotonic(),
                outcome,
                name=str(body.get("username", "")),
                score=body["score"],
                previous=answer.get("previousScore") if outcome == "ok" else None,
                user_id=answer.get("userId") if outcome == "ok" else None,
                by=by,
            )
        )
        if kind == "create" and outcome == "ok":
            self._shared.add(answer["userId"])

    def _read(
        self, kind: Kind, target: int, path: str, limit: int = 0, after: tuple[int, int] | None = None
    ) -> Any:
        """Returns the answer, or None if there is none or it is an error."""
        start = time.monotonic()
        by, status, aged, answer = self._send("GET", path)
        outcome = _outcome(status, answer)
        if outcome == "unknown":
            return None
        self.record.operations.append(
            Operation(
                kind,
                target,
                start,
                time.monotonic(),
                outcome,
                places=_places(kind, answer) if outcome == "ok" else (),
                limit=limit,
                after=after,
                total=answer.get("total") if outcome == "ok" else None,
                more=answer["next"] is not None if outcome == "ok" and limit else None,
                stale=aged,
                by=by,
            )
        )
        return answer if outcome == "ok" else None

    def _send(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[str, int, bool, Any]:
        """Returns the name of the process, the status (0: no answer), whether there is an `Age`, and the body."""
        by = self._chance.choice(list(self._plan.urls))
        connection = self._connections.get(by)
        if connection is None:
            port = self._plan.urls[by]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=self._plan.deadline_s + 2)
            self._connections[by] = connection
        start = time.monotonic()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
            status, aged, answer = response.status, response.headers.get("age") is not None, json.loads(text)
        except (OSError, http.client.HTTPException):
            self._connections.pop(by).close()
            status, aged, answer = 0, False, {}
            if (connection.sock is None) and time.monotonic() - start < 0.01:
                # The process is not running: pause instead of asking faster.
                time.sleep(0.02)
        took_s = time.monotonic() - start
        self.record.slowest_s = max(self.record.slowest_s, took_s)
        if took_s > self._plan.deadline_s:
            self.record.late.append(f"{method} {path} by {by} took {took_s:.2f} s: {status or 'no answer'}")
        if status >= 400 and status != 404:
            code = str(answer.get("code"))
            self.record.refused[code] += 1
            said = f"{method} {path} by {by} at {start:.3f}: {status} {code}"
            self.record.refused_at.append((start, start + took_s, said))
            if status not in {409, 503}:
                self.record.odd.append(f"{method} {path} by {by}: {status} {answer}")
        return by, status, aged, answer


def _outcome(status: int, answer: Any) -> Outcome:
    if status in {200, 201}:
        return "ok"
    if status == 404:
        return "missing"
    if status == 0 or answer.get("code") in _UNKNOWN_CODES:
        return "unknown"
    return "refused"


def _places(kind: Kind, answer: Any) -> tuple[Place, ...]:
    rows: list[Any]
    if kind in {"top", "page", "around"}:
        rows = answer["users"]
    elif kind == "context":
        rows = [*answer["above"], answer["user"], *answer["below"]]
    else:
        rows = [answer]
    return tuple(Place(row["rank"], row["userId"], row["username"], row["score"]) for row in rows)
