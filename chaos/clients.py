"""Clients that write through several API processes and check that all of them show it."""

import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from leaderboard.config import Settings, load
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints
from tests.system import ApiProcess, eventually, sql


@dataclass
class Client:
    """Writes one user's rising score through one process, and reads all users through the same process."""

    api: ApiProcess
    user_id: int
    acknowledged: dict[int, int]
    """The last acknowledged score of each user id. All clients share it."""
    wrote_at: list[float] = field(default_factory=list)
    refused: int = 0
    reads: int = 0
    old: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        """Writes and reads until `stop` is set."""
        score = 0
        with httpx.Client(base_url=self.api.url, timeout=30) as client:
            while not stop.is_set():
                score += 1
                self._write(client, score)
                self._read(client)

    def _write(self, client: httpx.Client, score: int) -> None:
        answer = client.post(f"/users/{self.user_id}/score", json={"score": score})
        if answer.status_code == 200:
            self.acknowledged[self.user_id] = score
            self.wrote_at.append(time.monotonic())
        else:
            assert answer.status_code == 503, answer.text
            self.refused += 1
            time.sleep(0.02)

    def _read(self, client: httpx.Client) -> None:
        for user_id, least in list(self.acknowledged.items()):
            answer = client.get(f"/users/{user_id}")
            self.reads += 1
            if answer.status_code == 200 and "age" not in answer.headers and answer.json()["score"] < least:
                self.old.append(f"{self.api.url}: user {user_id} at {answer.json()['score']}, not {least}")

    def back_at(self, moved: float) -> float | None:
        """Returns the time of the first acknowledged write after `moved`, or None."""
        return next((at for at in self.wrote_at if at > moved), None)


def new_clients(apis: Sequence[ApiProcess]) -> list[Client]:
    """Returns one client per process, each with its own user, once all processes serve."""
    for api in apis:
        eventually(partial(_serves, api), what="the process serves")
    acknowledged: dict[int, int] = {}
    return [
        Client(api, int(api.create(f"user {secrets.token_hex(4)}").json()["userId"]), acknowledged) for api in apis
    ]


def _serves(api: ApiProcess) -> bool:
    return api.status() == "ok"


@contextmanager
def stores() -> Iterator[tuple[EmbeddedPostgres, Settings, Path]]:
    """Starts PostgreSQL and Valkey; yields the PostgreSQL, settings for a migrated database, a folder."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leaderboard-failover-")))
        folder.chmod(0o755)
        postgres = stack.enter_context(EmbeddedPostgres(folder, durable=False))
        postgres.create_database("leaderboard")
        valkey = stack.enter_context(EmbeddedValkey(folder))
        settings = load(env_file=None, stop_delay_ms=0, log_level="error", **vars(Endpoints.of(postgres, valkey)))
        ApiProcess(settings).run("migrate")
        yield postgres, settings, folder


@contextmanager
def at_work(clients: Sequence[Client]) -> Iterator[None]:
    """Runs the clients. Yields when each has written once."""
    stop = threading.Event()
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: all(client.wrote_at for client in clients), 30, "every process has written")
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def lost(clients: Sequence[Client], settings: Settings) -> list[str]:
    """Returns the acknowledged scores that PostgreSQL does not have."""
    rows = {row[0]: row[1] for row in sql(settings, "SELECT user_id, total_score FROM users")}
    return [
        f"user {user_id}: {rows.get(user_id)}, not {score}"
        for user_id, score in clients[0].acknowledged.items()
        if rows.get(user_id, -1) < score
    ]
