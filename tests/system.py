"""The system from outside: API processes to start and kill, SQL and Redis to meddle with by hand."""

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
"""The program, which does not wait before it rebuilds a cache that is lost again and again."""
SMALL_BUCKETS = "tests.small_buckets"
"""The program, with a rank index that has many fences even on a small board."""


THOROUGH = int(os.environ.get("THOROUGH", "1"))
"""How many times as much to try where more finds more: requests at random, interleavings that come by chance."""

PATIENCE_S = 60.0
"""How long a test waits before it takes something for hung: far longer than any machine needs, however busy."""


def eventually(condition: Callable[[], T], seconds: float = PATIENCE_S, what: str = "") -> T:
    """The first truthy value of `condition`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}; last: {value!r}")
        time.sleep(0.01)


async def until(condition: Callable[[], Awaitable[T]], what: str = "") -> T:
    """As `eventually`, for a condition that is awaited."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_S:g} s: {what or condition}; last: {value!r}")
        await asyncio.sleep(0.005)


BY_HAND_S = 1.0
"""Who asks so long after a change by hand is shown it; who asks before that may be."""


def comes_to_show(shows: Callable[[], bool], what: str = "") -> None:
    """Ask until a change that has just been made by hand is shown; fail if one that had to show it does not."""
    made = time.monotonic()
    while True:
        asked = time.monotonic()
        if shows():
            return
        assert asked - made < BY_HAND_S, f"asked {asked - made:.3f} s after the change: not {what or shows}"
        time.sleep(0.005)


def own_ports() -> Sequence[int]:
    """Return the ports that only this process of the tests gives to its servers.

    A server that is stopped finds its port free when it starts again.
    """
    worker, count = (os.environ.get(f"PYTEST_XDIST_WORKER{suffix}", "") for suffix in ("", "_COUNT"))
    return PORTS[int(worker.removeprefix("gw")) :: int(count)] if worker else PORTS


_reserved: deque[socket.socket] = deque()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody else is given until the server that it is for listens there.

    A bound socket that does not listen keeps it from everybody but servers that share or reuse addresses, as all
    of ours do. Only the latest are kept: a server that listens keeps its port itself.
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
    """Return a setting's value as the environment has it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(getattr(value, "get_secret_value", lambda: value)())


def environment(settings: Settings) -> dict[str, str]:
    """The whole environment of a process that is to have these settings, and our code wherever ours is from."""
    values = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    for name in type(settings).model_fields:
        values[name.upper()] = setting_text(getattr(settings, name))
    return values


class ApiProcess:
    """`leaderboard serve` as a process of its own, with an HTTP client."""

    def __init__(
        self, settings: Settings, program: str = "leaderboard", *, open_files: int | None = None, **variables: str
    ) -> None:
        """`open_files` is the limit of the process's open files, `variables` are added to its environment."""
        self.program = program
        self.open_files = open_files
        self.variables = variables
        self.settings = settings.model_copy(update={"port": free_port(), "host": "127.0.0.1"})
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def run(self, *command: str) -> None:
        """Run another `leaderboard` command with the same settings."""
        subprocess.run(
            [sys.executable, "-m", "leaderboard", *command],
            env=environment(self.settings),
            check=True,
        )

    def start(self, wait_for: str = "ok") -> Self:
        """Start it and wait until its status is as expected."""
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
        """What `/readyz` says, "" while nobody answers."""
        assert self.process is not None
        assert self.process.poll() is None, "the API has ended"
        try:
            return str(self.client.get("/readyz").json()["status"])
        except httpx.TransportError:
            return ""

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all its processes, as a machine that loses power would."""
        self._end(signal.SIGKILL)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """As a machine that is starved of CPU: its connections stay open, and it goes on where it was."""
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

    # The calls

    def create(self, name: str, score: int = 0) -> httpx.Response:
        return self.client.post("/users", json={"username": name, "score": score})

    def set(self, user_id: int, score: int) -> httpx.Response:
        return self.client.post(f"/users/{user_id}/score", json={"score": score})

    def top(self, n: int) -> list[tuple[int, int, str, int]]:
        """Rank, id, name and score of the best n."""
        answer = self.client.get(f"/leaderboard/top/{n}")
        assert answer.status_code == 200, answer.text
        return [flat(user) for user in answer.json()["users"]]


Place = tuple[int, int, str, int]
"""Rank, id, name and score."""


def flat(standing: dict[str, Any]) -> Place:
    return standing["rank"], standing["userId"], standing["username"], standing["score"]


@dataclass(frozen=True)
class Cursor:
    """A page's `next`, and the place that it stands for: that of the page's last user."""

    score: int
    user_id: int
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class Shown:
    """What an answer says: users best first, how many there are in all, and whether and where a page goes on."""

    places: list[Place]
    total: int | None = None
    next: Cursor | None = None


@dataclass(frozen=True)
class Question:
    """A read: the best `number` ("top"), the user of that id, alone ("user") or among others ("context"), or up to
    `limit` users: after a cursor or from the first on ("page"), or around the rank `number` ("around")."""

    kind: Literal["top", "user", "context", "page", "around"]
    number: int = 0
    limit: int = 0
    after: Cursor | None = None

    @property
    def path(self) -> str:
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
        """What is answered; None if there is no such user."""
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
        """The users in the answer, best first; None if there is no such user."""
        shown = self.ask(client)
        return None if shown is None else shown.places


class SlowNetwork:
    """The way to a server on this machine, as over a far network: what the server says arrives `delay_s` late."""

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
            # Wakes the thread that waits for it, which close() does not.
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
    """A session of somebody with psql."""
    return await asyncpg.connect(
        host=settings.db_host,
        port=settings.db_port,
        user=settings.db_user,
        password=settings.db_password.get_secret_value(),
        database=settings.db_name,
    )


@contextmanager
def dev(folder: Path, **variables: str) -> Iterator[tuple[int, Path]]:
    """`leaderboard dev` on an empty board in a new folder: its port, and the file that has what it prints."""
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
    """Stands for the pool of connections: gives out this one, with whatever transaction is open on it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def pooled(self, _isolation: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        yield self._connection


def sql(settings: Settings, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run one statement by hand, as psql would."""

    async def run() -> list[asyncpg.Record]:
        connection = await connect(settings)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    return in_thread(run())


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, whether or not the caller is in an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def redis(settings: Settings) -> Redis:
    """A plain client of the cache's server."""
    return Redis.from_url(settings.redis_url.get_secret_value())
