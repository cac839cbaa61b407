"""The load: a separate process whose threads read and write through all API processes, and record the answers.

No user gets the same score of a board twice, and no increment, so these identify a write. Some writes have an
idempotency key and are repeated until there is an answer; together they are one operation.
"""

import http.client
import json
import math
import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any, Literal, Self

from chaos.history import DEFAULT, Kind, Operation, Outcome, Place

CLIENTS = 10
NEW_USERS = 40
"""How many users one load creates at most."""
_SCORES = 1_000_003
_STRIDE = 7919
_CREATED = -1
"""The key under which first scores are counted. They come from another part of the sequence."""
_INCREMENTS = 52
"""Each increment of a user is another power of two, so that a sum tells which ones are in it."""
_UNKNOWN_CODES = {"outcome_unknown", "internal_error"}
_MISSING: dict[str, Outcome] = {
    "user_not_found": "missing",
    "not_on_board": "missing",
    "season_not_found": "no season",
}
_RETRY_S = 15.0
_PAUSE_S = (0.0, 0.006)


@dataclass(frozen=True)
class BoardPlan:
    """A board of the load, and its rules as clients send them."""

    name: str
    rules: Mapping[str, str] = field(default_factory=dict)
    ends: bool = False
    """Whether clients end its seasons."""
    share: float = 0.15
    """The part of the requests that are about it."""

    @property
    def path(self) -> str:
        return "" if self.name == DEFAULT.board else f"/boards/{self.name}"

    @property
    def writes(self) -> Literal["set", "best", "add"]:
        """The kind of its writes."""
        keeps: dict[str, Literal["best", "add"]] = {"best": "best", "sum": "add"}
        return keeps.get(self.rules.get("keeps", ""), "set")

    def better(self, score: int) -> int:
        """Returns a score as a number of which more is better, or such a number as a score."""
        return -score if self.rules.get("better") == "lower" else score


BOARDS = (
    BoardPlan(DEFAULT.board, share=0.4),
    BoardPlan("last", {"keeps": "last"}),
    BoardPlan("times", {"keeps": "best", "better": "lower"}),
    BoardPlan("sums", {"keeps": "sum"}),
    BoardPlan("rounds", {"keeps": "last"}, ends=True),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load does. `urls` are the ports by name of the process, `seasons` the current seasons by board."""

    urls: dict[str, int]
    seasons: dict[str, int]
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
    """What the clients share: the users, how many scores each has had, and the current seasons."""

    def __init__(self, plan: Plan) -> None:
        self._lock = threading.Lock()
        self._users = list(plan.users)
        self._given: Counter[tuple[str, int]] = Counter()
        self._first = plan.seasons
        self._seasons = dict(plan.seasons)
        self._created = 0

    def user(self, chance: random.Random) -> int:
        with self._lock:
            # Some users are chosen often, so that requests for one user overlap.
            return self._users[min(int(chance.expovariate(4 / len(self._users))), len(self._users) - 1)]

    def score(self, board: BoardPlan, user_id: int, chance: random.Random) -> int | None:
        """Returns a score, or an increment, that this user has not had on this board; None if there are no more.

        Other users may have had it.
        """
        with self._lock:
            self._given[board.name, user_id] += 1
            number = self._given[board.name, user_id] + (_SCORES // 2 if user_id == _CREATED else 0)
        match board.writes:
            case "add":
                return 1 << number - 1 if number <= _INCREMENTS else None
            case "best":
                # Most are better than those before.
                return board.better((number + chance.randint(-3, 3)) * 64 + number % 64)
            case "set":
                return (number * _STRIDE) % _SCORES - _SCORES // 2

    def season(self, board: str) -> int:
        """Returns the latest known season of a board."""
        with self._lock:
            return self._seasons[board]

    def past_season(self, board: str, chance: random.Random) -> int:
        """Returns any known season of a board, perhaps the current one."""
        with self._lock:
            return chance.randint(self._first[board], self._seasons[board])

    def note_season(self, board: str, number: int, *, gone: bool = False) -> None:
        """Notes that there is such a season, or with `gone`, that there is no such season and no later one."""
        with self._lock:
            if gone:
                self._seasons[board] = max(self._first[board], min(self._seasons[board], number - 1))
            else:
                self._seasons[board] = max(self._seasons[board], number)

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
        self._cursors: dict[str, tuple[str, tuple[int, int]]] = {}
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
        (board,) = self._chance.choices(BOARDS, [board.share for board in BOARDS])
        path = board.path
        if what < 0.38:
            self._write_score(board, user_id)
        elif what < 0.42:
            self._write_rarely(board, user_id)
        elif what < 0.54:
            n = self._chance.choice([1, 3, self._plan.top // 2, self._plan.top, 3 * self._plan.top])
            self._read(board, "top", n, f"{path}/leaderboard/top/{n}")
        elif what < 0.7:
            self._read(board, "context", user_id, f"{path}/leaderboard/user/{user_id}/context")
        elif what < 0.84:
            self._read(board, "user", user_id, f"{path}/users/{user_id}")
        elif what < 0.92:
            self._read_page(board)
        else:
            limit, rank = self._limit(), self._chance.randint(1, len(self._plan.users) + NEW_USERS)
            self._read(board, "around", rank, f"{path}/leaderboard?limit={limit}&around_rank={rank}", limit)

    def _write_score(self, board: BoardPlan, user_id: int) -> None:
        score = self._shared.score(board, user_id, self._chance)
        if score is not None:
            body = {"increment" if board.writes == "add" else "score": score}
            self._write(board, board.writes, user_id, "POST", f"{board.path}/users/{user_id}/score", body)

    def _write_rarely(self, board: BoardPlan, user_id: int) -> None:
        """Creates a user, ends a season, or removes an entry."""
        if board.name == DEFAULT.board:
            name = self._shared.name(self._plan.seed)
            if name is not None:
                score = self._shared.score(board, _CREATED, self._chance)
                self._write(board, "create", 0, "POST", "/users", {"username": name, "score": score})
        elif not board.ends:
            self._write(board, "remove", user_id, "DELETE", f"{board.path}/users/{user_id}")
        elif self._chance.random() < 0.15:
            season = self._shared.season(board.name)
            self._write(board, "end", 0, "POST", f"{board.path}/seasons", {"season": season}, season)

    def _limit(self) -> int:
        return self._chance.choice([1, 4, 15, 40])

    def _read_page(self, board: BoardPlan) -> None:
        """Reads the page after the last one, or the first."""
        limit = self._limit()
        text, after = self._cursors.pop(board.name, ("", None))
        path = f"{board.path}/leaderboard?limit={limit}{f'&after={text}' if text else ''}"
        answer = self._read(board, "page", 0, path, limit, after)
        if answer is not None and answer["next"]:
            last = answer["users"][-1]
            self._cursors[board.name] = answer["next"], (board.better(last["score"]), last["userId"])

    def _write(
        self,
        board: BoardPlan,
        kind: Kind,
        user_id: int,
        method: str,
        path: str,
        body: Mapping[str, Any] = MappingProxyType({}),
        season: int | None = None,
    ) -> None:
        """Writes, and records it. `season` is the one to end."""
        start = time.monotonic()
        headers = {"content-type": "application/json"} if body else {}
        keyed = kind not in {"remove", "end"} and self._chance.random() < 0.3
        if keyed:
            self._keys += 1
            headers["idempotency-key"] = f"{self._plan.seed}-{self._number}-{self._keys}-{start}"
        doubtful = False
        while True:
            by, status, _, answer = self._send(method, path, json.dumps(body) if body else None, headers)
            outcome = _outcome(status, answer)
            doubtful = doubtful or outcome == "unknown"
            again = keyed and (outcome == "unknown" or status == 409)
            if not again or time.monotonic() > start + _RETRY_S:
                break
            time.sleep(0.02)
        if doubtful and outcome != "ok":
            # This request was not done, but an earlier copy of it may have been.
            outcome = "unknown"

        def better(score: int | None) -> int | None:
            return None if score is None else board.better(score)

        done = outcome == "ok"
        self.record.operations.append(
            Operation(
                kind,
                user_id,
                start,
                math.inf if outcome == "unknown" else time.monotonic(),
                outcome,
                name=str(body.get("username", "")),
                score=better(body.get("score", body.get("increment"))),
                previous=better(answer.get("previousScore")) if done else None,
                result=better(answer.get("score")) if done and kind in {"add", "best"} else None,
                user_id=answer.get("userId") if done and kind == "create" else None,
                by=by,
                board=board.name,
                season=answer.get("season") if done and kind != "end" else season,
            )
        )
        if kind == "create" and done:
            self._shared.add(answer["userId"])
        elif kind == "end" and season is not None and outcome in {"ok", "no season"}:
            self._shared.note_season(board.name, season + 1 if done else season, gone=not done)
        elif board.ends and done:
            self._shared.note_season(board.name, answer["season"])

    def _read(
        self,
        board: BoardPlan,
        kind: Kind,
        target: int,
        path: str,
        limit: int = 0,
        after: tuple[int, int] | None = None,
    ) -> Any:
        """Returns the answer, or None if there is none or it is an error."""
        season = None
        if board.ends and self._chance.random() < 0.25:
            season = self._chance.choice([0, self._shared.past_season(board.name, self._chance)])
            path += f"{'&' if '?' in path else '?'}season={season or 'previous'}"
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
                places=_places(board, kind, answer) if outcome == "ok" else (),
                limit=limit,
                after=after,
                total=answer.get("total") if outcome == "ok" else None,
                more=answer["next"] is not None if outcome == "ok" and limit else None,
                stale=aged,
                by=by,
                board=board.name,
                season=season,
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
            status, aged = response.status, response.headers.get("age") is not None
            answer = json.loads(text) if text else {}
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
        code = str(answer.get("code"))
        if status >= 400 and code not in _MISSING:
            self.record.refused[code] += 1
            said = f"{method} {path} by {by} at {start:.3f}: {status} {code}"
            self.record.refused_at.append((start, start + took_s, said))
            if status not in {409, 503}:
                self.record.odd.append(f"{method} {path} by {by}: {status} {answer}")
        return by, status, aged, answer


def _outcome(status: int, answer: Any) -> Outcome:
    if status in {200, 201, 204}:
        return "ok"
    code = answer.get("code")
    if status == 0 or code in _UNKNOWN_CODES:
        return "unknown"
    return _MISSING.get(code, "refused")


def _places(board: BoardPlan, kind: Kind, answer: Any) -> tuple[Place, ...]:
    rows: list[Any]
    if kind in {"top", "page", "around"}:
        rows = answer["users"]
    elif kind == "context":
        rows = [*answer["above"], answer["user"], *answer["below"]]
    else:
        rows = [answer]
    return tuple(Place(row["rank"], row["userId"], row["username"], board.better(row["score"])) for row in rows)
