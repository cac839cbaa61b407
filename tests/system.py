"""Starts and kills API processes, reads from them, and changes PostgreSQL and Redis directly."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import asyncpg
import httpx
from redis import Redis

from leaderboard.config import Settings
from leaderboard.dev import PORTS

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
QUICK_REBUILDS = "tests.quick_rebuilds"
"""The module that runs the program without a pause between two rebuilds of the cache."""
SMALL_BUCKETS = "tests.small_buckets"
"""The module that runs the program with many checkpoints even on a small board."""

THOROUGH = int(os.environ.get("THOROUGH", "1"))
"""The factor for the number of random requests and random interleavings in tests."""

PATIENCE_S = 60.0
"""A test fails after waiting this long. It is far longer than a busy machine needs."""


def eventually(condition: Callable[[], T], seconds: float = PATIENCE_S, what: str = "") -> T:
    """Polls `condition` and returns its first truthy value. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}; last: {value!r}")
        time.sleep(0.01)


async def until(condition: Callable[[], Awaitable[T]], what: str = "") -> T:
    """Polls an async `condition` as `eventually` does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_S:g} s: {what or condition}; last: {value!r}")
        await asyncio.sleep(0.005)


BY_HAND_S = 1.0
"""A read that starts this long after a change by SQL must show it. An earlier read may."""


def comes_to_show(shows: Callable[[], bool], what: str = "") -> None:
    """Reads until a change that was just made by SQL is shown.

    Raises AssertionError if a read that started `BY_HAND_S` after the change does not show it.
    """
    made = time.monotonic()
    while True:
        started = time.monotonic()
        if shows():
            return
        assert started - made < BY_HAND_S, f"a read {started - made:.3f} s after the change: not {what or shows}"
        time.sleep(0.005)


def own_ports() -> Sequence[int]:
    """Returns the ports that only this test process uses for its servers.

    So the port of a stopped server is still free when the server starts again.
    """
    worker, count = (os.environ.get(f"PYTEST_XDIST_WORKER{suffix}", "") for suffix in ("", "_COUNT"))
    return PORTS[int(worker.removeprefix("gw")) :: int(count)] if worker else PORTS


_reserved: deque[socket.socket] = deque()


def free_port() -> int:
    """Returns a free port of 127.0.0.1 and reserves it until a server listens there.

    A bound socket that does not listen reserves it. Our servers can bind it all the same, because they set
    SO_REUSEADDR or SO_REUSEPORT. Only the latest 64 are reserved.
    """
    keeper = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        keeper.setsockopt(socket.SOL_SOCKET, option, 1)
    keeper.bind(("127.0.0.1", 0))
    _reserved.append(keeper)
    if len(_reserved) > 64:
        _reserved.popleft().close()
    return int(keeper.getsockname()[1])


def setting_text(value: object) -> str:
    """Returns the value of a setting as a text for an environment variable."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(getattr(value, "get_secret_value", lambda: value)())


def environment(settings: Settings) -> dict[str, str]:
    """Returns the environment of a process with these settings and the same source code as this one."""
    values = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    for name in type(settings).model_fields:
        values[name.upper()] = setting_text(getattr(settings, name))
    return values


class ApiProcess:
    """A process that runs `leaderboard serve`, and an HTTP client for it."""

    def __init__(
        self, settings: Settings, program: str = "leaderboard", *, open_files: int | None = None, **variables: str
    ) -> None:
        """`open_files` limits how many files it may have open; `variables` are added to its environment."""
        self.program = program
        self.open_files = open_files
        self.variables = variables
        self.settings = settings.model_copy(update={"port": free_port(), "host": "127.0.0.1"})
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def run(self, *command: str) -> None:
        """Runs another `leaderboard` command with the same settings."""
        subprocess.run(
            [sys.executable, "-m", "leaderboard", *command],
            env=environment(self.settings),
            check=True,
        )

    def start(self, wait_for: str = "ok") -> Self:
        """Starts the process and waits until its status is `wait_for`."""
        command = [sys.executable, "-m", self.program, "serve"]
        if self.open_files is not None:
            command = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(self.open_files), *command]
        self.process = subprocess.Popen(
            command,
            env={**environment(self.settings), **self.variables},
            cwd=ROOT,
            start_new_session=True,
        )
        eventually(lambda: self.status() == wait_for, what=f"the API is {wait_for}")
        return self

    def status(self) -> str:
        """Returns the status from `/readyz`, or "" while the process does not answer."""
        assert self.process is not None
        assert self.process.poll() is None, "the API has ended"
        try:
            return str(self.client.get("/readyz").json()["status"])
        except httpx.TransportError:
            return ""

    def stop(self) -> None:
        """Sends SIGTERM and waits for the end of the process."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills all its processes with SIGKILL, as a power failure does."""
        self._end(signal.SIGKILL)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the process with SIGSTOP and continues it at the end. Its connections stay open."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
            self.process.wait(PATIENCE_S)
            self.process = None
        self.client.close()
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    # Calls of the HTTP API

    def create(self, name: str, score: int = 0) -> httpx.Response:
        return self.client.post("/users", json={"username": name, "score": score})

    def set(self, user_id: int, score: int) -> httpx.Response:
        return self.client.post(f"/users/{user_id}/score", json={"score": score})

    def top(self, n: int) -> list[tuple[int, int, str, int]]:
        """Returns rank, id, name and score of the best n."""
        answer = self.client.get(f"/leaderboard/top/{n}")
        assert answer.status_code == 200, answer.text
        return [flat(user) for user in answer.json()["users"]]


Place = tuple[int, int, str, int]
"""Rank, id, name and score."""


def flat(standing: dict[str, Any]) -> Place:
    return standing["rank"], standing["userId"], standing["username"], standing["score"]


@dataclass(frozen=True)
class Cursor:
    """The `next` of a page, with the score and id of the page's last user, which it encodes."""

    score: int
    user_id: int
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class Shown:
    """The content of a response: users, best first, the total and the cursor of the next page."""

    places: list[Place]
    total: int | None = None
    next: Cursor | None = None


@dataclass(frozen=True)
class Question:
    """One read.

    "top": the best `number`. "user" and "context": the user whose id is `number`. "page": up to `limit` users
    after the cursor `after`, or from the first. "around": up to `limit` users around the rank `number`. `board` is
    "" for the paths without a board, `season` is "" for the current season.
    """

    kind: Literal["top", "user", "context", "page", "around"]
    number: int = 0
    limit: int = 0
    after: Cursor | None = None
    board: str = ""
    season: str = ""

    @property
    def path(self) -> str:
        path = self._path
        if self.board:
            path = f"/boards/{self.board}{path}"
        return f"{path}{'&' if '?' in path else '?'}season={self.season}" if self.season else path

    @property
    def _path(self) -> str:
        match self.kind:
            case "top":
                return f"/leaderboard/top/{self.number}"
            case "user":
                return f"/users/{self.number}"
            case "context":
                return f"/leaderboard/user/{self.number}/context"
            case "around":
                return f"/leaderboard?limit={self.limit}&around_rank={self.number}"
            case "page":
                return f"/leaderboard?limit={self.limit}{f'&after={self.after.text}' if self.after else ''}"

    def ask(self, client: httpx.Client) -> Shown | None:
        """Returns the content of the response, or None if the user does not exist."""
        response = client.get(self.path)
        if response.status_code == 404 and self.kind in {"user", "context"}:
            return None
        assert response.status_code == 200, f"{self}: {response.status_code} {response.text}"
        answer = response.json()
        match self.kind:
            case "top":
                return Shown([flat(user) for user in answer["users"]])
            case "user":
                return Shown([flat(answer)])
            case "context":
                assert answer["user"]["userId"] == self.number
                assert len(answer["above"]) <= 5
                assert len(answer["below"]) <= 5
                users = (*answer["above"], answer["user"], *answer["below"])
                return Shown([flat(user) for user in users], answer["total"])
            case _:
                places = [flat(user) for user in answer["users"]]
                next_ = answer["next"]
                cursor = None if next_ is None else Cursor(places[-1][3], places[-1][1], next_)
                return Shown(places, answer["total"], cursor)

    def places(self, client: httpx.Client) -> list[Place] | None:
        """Returns the users of the response, best first, or None if the user does not exist."""
        shown = self.ask(client)
        return None if shown is None else shown.places


class SlowNetwork:
    """A proxy to a server on this machine that delays what the server sends by `delay_s`."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._to = port
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._open:
            # shutdown() wakes the thread that reads from it, and close() does not.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                for source, target, delay_s in ((client, server, 0.0), (server, client, self._delay_s)):
                    thread = threading.Thread(target=self._carry, args=(source, target, delay_s))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay_s)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


async def connect(settings: Settings) -> asyncpg.Connection:
    """Connects to the PostgreSQL database of these settings."""
    return await asyncpg.connect(
        host=settings.db_host,
        port=settings.db_port,
        user=settings.db_user,
        password=settings.db_password.get_secret_value(),
        database=settings.db_name,
    )


@contextmanager
def dev(folder: Path, **variables: str) -> Iterator[tuple[int, Path]]:
    """Runs `leaderboard dev` on an empty board; yields its port and the file with its output."""
    port = free_port()
    printed = folder.with_name(f"{folder.name}.txt")
    with (
        printed.open("wb") as output,
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "leaderboard",
                "dev",
                "--empty",
                "--port",
                str(port),
                "--data-dir",
                str(folder),
            ],
            env={name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | variables,
            cwd=folder.parent,
            stdout=output,
            start_new_session=True,
        ) as process,
    ):

        def ready() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            return False

        try:
            eventually(lambda: process.poll() is not None or ready(), 60)
            yield port, printed
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


class OneConnection:
    """A pool with a single connection, which keeps its open transaction."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def acquire(self, _isolation: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        yield self._connection


def sql(settings: Settings, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Runs one statement, as psql would."""

    async def run() -> list[asyncpg.Record]:
        connection = await connect(settings)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    return in_thread(run())


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end. The caller may be in an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def redis(settings: Settings) -> Redis:
    """Returns a client of the Redis database that holds the cache."""
    return Redis.from_url(settings.redis_url.get_secret_value())
