"""Two API processes on one board: whoever was answered by one of them is not contradicted by the other.

Every check here is of real time: what an answer said before a request was sent binds the answer to it.
"""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.model import INT32_MAX, INT32_MIN
from tests.system import (
    PATIENCE_S,
    THOROUGH,
    ApiProcess,
    Place,
    Question,
    SlowNetwork,
    environment,
    eventually,
    sql,
)

SIZE = 50
USERS = 300
EVERYONE = Question("top", 2000)
WRITERS = 8

Processes = tuple[ApiProcess, ApiProcess]


OVERRIDES = {"cache_size": SIZE, "audit_interval_s": 0, "log_level": "warning", "redis_timeout_ms": 200}
"""Among them the ordinary deadline of a call to Redis: a call may be late, no answer may be wrong for it."""


@pytest.fixture(scope="module")
def both(module_settings: Settings) -> Iterator[Processes]:
    one, other = (ApiProcess(module_settings.model_copy(update=OVERRIDES)) for _ in range(2))
    try:
        yield one.start(), other.start()
    finally:
        for process in (one, other):
            process.kill()
            process.client.close()


@pytest.fixture
def processes(both: Processes) -> Processes:
    """Two processes on a board far larger than its cache, both of which show it as it is now."""
    settings = both[0].settings
    sql(settings, "TRUNCATE users RESTART IDENTITY")
    sql(
        settings,
        "INSERT INTO users (user_name, total_score) SELECT 'user ' || n, n % 100 FROM generate_series(1, $1) AS n",
        USERS,
    )
    for process in both:
        eventually(lambda process=process: process.top(EVERYONE.number) == true_board(settings))  # type: ignore[misc]
    return both


def true_board(settings: Settings) -> list[Place]:
    rows = sql(settings, "SELECT user_id, user_name, total_score FROM users ORDER BY total_score DESC, user_id")
    return [(rank, row[0], row[1], row[2]) for rank, row in enumerate(rows, 1)]


class Clients:
    """One thread's connections to both processes."""

    def __init__(self, processes: Processes, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clients = [httpx.Client(base_url=process.url, timeout=PATIENCE_S) for process in processes]

    def one_and_other(self) -> tuple[httpx.Client, httpx.Client]:
        one, other = self.chance.sample(self.clients, 2)
        return one, other

    def close(self) -> None:
        for client in self.clients:
            client.close()


def in_threads(processes: Processes, count: int, work: Callable[[int, Clients], None]) -> None:
    """Have `count` threads do `work`, and raise what the first of them raised."""

    def run(number: int) -> None:
        clients = Clients(processes, number)
        try:
            work(number, clients)
        finally:
            clients.close()

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, number) for number in range(count)]:
            done.result()


def post(client: httpx.Client, path: str, body: dict[str, object]) -> httpx.Response:
    """Send it until it is not refused for what the other process holds for longer than one waits for it."""
    while True:
        response = client.post(path, json=body)
        if response.status_code != 503 or response.json()["code"] != "overloaded":
            return response


def set_score(client: httpx.Client, user_id: int, score: int) -> int:
    """Set it and return the previous score."""
    response = post(client, f"/users/{user_id}/score", {"score": score})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["userId"], answer["score"]) == (user_id, score)
    return int(answer["previousScore"])


def assert_in_order(places: list[Place]) -> None:
    """What must hold of a part of any board, however it changes."""
    for above, below in pairwise(places):
        assert above[0] + 1 == below[0], places
        assert (-above[3], above[1]) < (-below[3], below[1]), places


def assert_same_board(processes: Processes) -> None:
    """Now that nothing changes any more, both processes, the cache and PostgreSQL show one board."""
    true = true_board(processes[0].settings)
    for process in processes:
        for n in (10, SIZE, EVERYONE.number):
            assert process.top(n) == true[:n]
    assert verify(processes[0].settings) == 0


def verify(settings: Settings) -> int:
    patient = settings.model_copy(update={"redis_timeout_ms": 5000})
    command = [sys.executable, "-m", "leaderboard", "verify"]
    return subprocess.run(command, env=environment(patient), check=False).returncode


class Write(NamedTuple):
    """One acknowledged write, and when it was asked for and answered."""

    previous: int
    score: int
    asked: float
    answered: float


def test_8_writers_on_the_same_users_leave_one_history(processes: Processes) -> None:
    users, writes_each = [1, 2, 3, 4, 5], 250 * THOROUGH
    histories: dict[int, list[Write]] = {user_id: [] for user_id in users}
    start = {row[0]: row[1] for row in sql(processes[0].settings, "SELECT user_id, total_score FROM users")}

    def write(number: int, clients: Clients) -> None:
        for i in range(writes_each):
            client, _ = clients.one_and_other()
            user_id = clients.chance.choice(users)
            # Committed once only, so that it names the write. Half of them are below all others.
            score = (1000 + i * WRITERS + number) * clients.chance.choice([1, -1])
            asked = time.monotonic()
            previous = set_score(client, user_id, score)
            histories[user_id].append(Write(previous, score, asked, time.monotonic()))

    in_threads(processes, WRITERS, write)

    end = {row[0]: row[1] for row in sql(processes[0].settings, "SELECT user_id, total_score FROM users")}
    for user_id, writes in histories.items():
        after = {written.previous: written for written in writes}
        assert len(after) == len(writes), "two writes replaced the same score"
        score, latest_asked = start[user_id], 0.0
        for _ in writes:
            assert score in after, "a write replaced a score that nobody set"
            this = after[score]
            assert this.answered > latest_asked, "a write came before one that had been acknowledged"
            score, latest_asked = this.score, max(latest_asked, this.asked)
        assert score == end[user_id]
    assert_same_board(processes)


def write_and_read_elsewhere(pairs: int) -> Callable[[int, Clients], None]:
    """Work for a thread: write on one process and, as soon as that is acknowledged, read on the other."""

    def work(number: int, clients: Clients) -> None:
        chance = clients.chance
        mine = range(1 + number, USERS + 1, WRITERS)
        for _ in range(pairs):
            writer, reader = clients.one_and_other()
            user_id = chance.choice(mine)
            # Mostly around the last cached place, some far below, with ties.
            score = chance.choice([chance.randint(85, 95), chance.randint(85, 95), chance.randint(-100, 100)])
            set_score(writer, user_id, score)
            kind = chance.choice(["user", "user", "context", "context", "top", "top", "everyone"])
            match kind:
                case "user" | "context":
                    question = Question(kind, user_id)
                case "top":
                    question = Question("top", chance.choice([10, SIZE]))
                case _:
                    question = EVERYONE
            assert_shows(question, question.places(reader), user_id, score)

    return work


def assert_shows(question: Question, places: list[Place] | None, user_id: int, score: int) -> None:
    """A user whom nobody else changes has this score."""
    assert places is not None, f"{question}: no such user"
    assert_in_order(places)
    shown = {place[1]: place[3] for place in places}
    if user_id in shown or question.kind != "top" or len(places) < question.number:
        assert shown.get(user_id) == score, f"{question}: the user {user_id} has {score}, and was shown {places}"
    else:
        last = places[-1]
        assert (-last[3], last[1]) < (-score, user_id), f"{question}: the user {user_id} with {score} is missing"


def test_a_write_is_seen_by_a_read_on_the_other_process(processes: Processes) -> None:
    in_threads(processes, WRITERS, write_and_read_elsewhere(250 * THOROUGH))
    assert_same_board(processes)


def test_a_process_that_was_stopped_turns_nothing_back_when_it_goes_on(processes: Processes) -> None:
    """Stopped between looking at the cache and moving it, while the other process moves it on."""
    stopped, other = processes
    chance = random.Random(1)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=stopped.url, timeout=PATIENCE_S) as client:
        for version in range(100, 100 + 100 * THOROUGH):
            begun = pool.submit(set_score, client, 2, version)
            time.sleep(chance.uniform(0.001, 0.012))
            with stopped.paused():
                set_score(other.client, 1, version)
            # What it had begun is applied, if at all, within this time, and repaired a moment later.
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                places = Question("top", 10).places(other.client)
                assert_shows(Question("top", 10), places, 1, version)
            begun.result()
    assert_same_board(processes)


def test_a_process_that_stood_still_acknowledges_nothing_unseen(
    processes: Processes,
) -> None:
    """Longer than its own deadline for Redis, so that it takes Redis for hung and gives up waiting for it."""
    stalling, other = processes
    chance = random.Random(60)
    stall_s = 1.5 * stalling.settings.redis_timeout_ms / 1000
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=stalling.url, timeout=PATIENCE_S) as writer,
        httpx.Client(base_url=other.url, timeout=PATIENCE_S) as reader,
    ):
        for score in range(1000, 1000 + 25 * THOROUGH):
            set_score(writer, 7, score - 500)
            write = pool.submit(set_score, writer, 7, score)
            # Not for a condition: to stop it at a moment of the write that is another each time.
            time.sleep(chance.uniform(0.001, 0.006))
            with stalling.paused():
                time.sleep(stall_s)
            write.result()
            places = Question("user", 7).places(reader)
            assert places is not None
            assert places[0][3] == score


def test_a_read_is_not_answered_by_one_that_began_before_it(processes: Processes) -> None:
    """The answers to one process take long to arrive: long enough for a write on the other in the meantime."""
    near, delay_s = processes[0], 0.08
    cache = urlsplit(near.settings.redis_url.get_secret_value())
    assert cache.port is not None
    with SlowNetwork(near.settings.db_port, delay_s) as to_truth, SlowNetwork(cache.port, delay_s) as to_cache:
        url = cache._replace(netloc=cache.netloc.replace(str(cache.port), str(to_cache.port))).geturl()
        slow = {"db_port": to_truth.port, "redis_url": SecretStr(url), "redis_timeout_ms": 5000}
        far = ApiProcess(near.settings.model_copy(update=slow)).start()
        chance = random.Random(1)
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=far.url, timeout=PATIENCE_S) as client:
            for version in range(100, 100 + 25 * THOROUGH):
                question = chance.choice(
                    [Question("top", 10), Question("user", 1), Question("context", 1), EVERYONE]
                )
                begun = pool.submit(question.places, client)
                time.sleep(chance.uniform(0, delay_s))
                set_score(near.client, 1, version)
                assert_shows(question, question.places(far.client), 1, version)
                begun.result()
        far.stop()
        far.client.close()


class Known:
    """The newest version of each user that anybody has been told of. A version is the score, which only grows."""

    def __init__(self, versions: dict[int, int]) -> None:
        self._versions = versions
        self._lock = threading.Lock()

    def now(self) -> dict[int, int]:
        with self._lock:
            return dict(self._versions)

    def learn(self, shown: dict[int, int]) -> None:
        with self._lock:
            for user_id in self._versions:
                if user_id in shown:
                    self._versions[user_id] = max(self._versions[user_id], shown[user_id])


def test_what_a_read_has_shown_no_later_read_on_the_other_process_takes_back(processes: Processes) -> None:
    best, cached, deep = 1, 2, 3
    versions = {best: INT32_MAX - 1_000_000, cached: INT32_MAX - 2_000_000, deep: INT32_MIN}
    for user_id, score in versions.items():
        assert processes[0].set(user_id, score).status_code == 200
    known = Known(versions)
    questions = [
        EVERYONE,
        EVERYONE,
        Question("top", 2),
        Question("context", best),
        Question("user", cached),
        Question("context", deep),
        Question("user", deep),
    ]
    ended = threading.Event()

    def write(user_id: int, clients: Clients) -> None:
        score = known.now()[user_id]
        while not ended.is_set():
            score += 1
            set_score(clients.one_and_other()[0], user_id, score)
            known.learn({user_id: score})

    def read(_number: int, clients: Clients) -> None:
        for _ in range(250 * THOROUGH):
            for client in clients.one_and_other():
                question = clients.chance.choice(questions)
                least = known.now()
                places = question.places(client)
                assert places is not None
                assert_in_order(places)
                shown = {place[1]: place[3] for place in places}
                for user_id in shown.keys() & least.keys():
                    assert shown[user_id] >= least[user_id], f"{question} shows an older {user_id}"
                known.learn(shown)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(in_threads, processes, 3, lambda number, clients: write(number + 1, clients))
        try:
            in_threads(processes, 6, read)
        finally:
            ended.set()
        writing.result()
    assert_same_board(processes)


def test_a_name_that_both_create_at_once_is_one_users(processes: Processes) -> None:
    rounds, asking = 60 * THOROUGH, 4
    # Two groups, so that one batch has names that are taken beside names that are not.
    barriers = [threading.Barrier(asking, timeout=PATIENCE_S) for _ in range(2)]
    statuses: dict[str, list[int]] = {}
    missing: list[str] = []

    def create(number: int, clients: Clients) -> None:
        group = number % 2
        process, other = clients.clients if number % 4 < 2 else clients.clients[::-1]
        for i in range(rounds):
            name, score = f"new {group} {i}", 1000 + i
            barriers[group].wait()
            response = post(process, "/users", {"username": name, "score": score})
            statuses.setdefault(name, []).append(response.status_code)
            question = clients.chance.choice([Question("top", SIZE), EVERYONE])
            places = question.places(other)
            assert places is not None
            assert_in_order(places)
            better = len(places) == question.number and places[-1][3] >= score
            if name not in {place[2] for place in places} and not better:
                # Not raised here, where the others would wait for this thread.
                missing.append(f"{response.status_code} for {name}, and then {question} lacked it")

    in_threads(processes, 2 * asking, create)
    assert not missing
    assert len(statuses) == 2 * rounds
    assert all(sorted(answers) == [201, 409, 409, 409] for answers in statuses.values()), statuses
    assert_same_board(processes)
