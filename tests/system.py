"""The system from outside: API processes to start and kill, SQL and Redis to meddle with by hand."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import asyncpg
import httpx
from redis import Redis

from leaderboard.config import Settings

T = TypeVar("T")


def eventually(condition: Callable[[], T], seconds: float = 10, what: str = "") -> T:
    """The first truthy value of `condition`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last: {value!r}")
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def environment(settings: Settings) -> dict[str, str]:
    """What to set for a process to have these settings."""
    values = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        values[name.upper()] = str(getattr(value, "get_secret_value", lambda value=value: value)())
    return values


class ApiProcess:
    """`leaderboard serve` as a process of its own, with an HTTP client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update={"port": free_port(), "host": "127.0.0.1"})
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def run(self, *command: str) -> None:
        """Run another `leaderboard` command with the same settings."""
        subprocess.run(
            [sys.executable, "-m", "leaderboard", *command],
            env={"PATH": os.environ["PATH"], **environment(self.settings)},
            check=True,
        )

    def start(self, wait_for: str = "ok") -> Self:
        """Start it and wait until its status is as expected."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leaderboard", "serve"],
            env={"PATH": os.environ["PATH"], **environment(self.settings)},
            start_new_session=True,
        )
        eventually(lambda: self.status() == wait_for, 20, f"the API is {wait_for}")
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

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
            self.process.wait(10)
            self.process = None
        self.client.close()
        self.client = httpx.Client(base_url=self.url, timeout=30)

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


def flat(standing: dict[str, Any]) -> tuple[int, int, str, int]:
    return standing["rank"], standing["userId"], standing["username"], standing["score"]


def sql(settings: Settings, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run one statement by hand, as psql would."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(
            host=settings.db_host,
            port=settings.db_port,
            user=settings.db_user,
            password=settings.db_password.get_secret_value(),
            database=settings.db_name,
        )
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    return in_thread(run())


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, whether or not the caller is in an event loop."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def redis(settings: Settings) -> "Redis[bytes]":
    """A plain client of the cache's server."""
    return Redis.from_url(settings.redis_url.get_secret_value())
