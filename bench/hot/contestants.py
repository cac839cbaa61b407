"""The contestants: processes that are measured, each with its own databases."""

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.hot import null
from bench.hot.result import NULL, OURS, PLAIN, TWO
from leaderboard.config import Settings
from leaderboard.model import User
from tests.system import ApiProcess, sql

_HOSTNAME = "127.0.0.1"
_OWN_SCORE = 1_000_000
_DROPPED = {"date", "content-length"}
"""Headers that the server adds."""


class PortTaken(Exception):
    """Another process listens on the port of a contestant."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One contestant. `own` is a user whose score only the benchmark's watcher sets."""

    name: str
    api: ApiProcess
    own: User | None

    @property
    def pid(self) -> int:
        assert self.api.process is not None
        return self.api.process.pid


def boards(settings: Settings, names: Sequence[str]) -> dict[str, Settings]:
    """Copies the board for each contestant but null, which has none, and ours, which has the original."""
    found = {}
    for number, name in enumerate(names):
        if name in {NULL, OURS}:
            found[name] = settings
            continue
        database = f"{settings.db_name}_{number}"
        sql(
            settings.model_copy(update={"db_name": "postgres"}),
            f"CREATE DATABASE {database} TEMPLATE {settings.db_name}",
        )
        redis_url = settings.redis_url.get_secret_value().rpartition("/")[0] + f"/{number}"
        found[name] = settings.model_copy(
            update={
                "db_name": database,
                "redis_url": type(settings.redis_url)(redis_url),
                "workers": 2 if name == TWO else 1,
            }
        )
        if name == PLAIN:
            # It uses no change log, so it should not pay for one.
            sql(found[name], "ALTER TABLE users DISABLE TRIGGER USER")
    return found


@contextmanager
def contestants(boards: dict[str, Settings]) -> Iterator[list[Contestant]]:
    """Starts all contestants, and ends all their processes at the end."""
    with ExitStack() as stack:
        answers = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "answers.json"
        found = {}
        for name, settings in boards.items():
            if name == NULL:
                continue
            program = "bench.hot.plain" if name == PLAIN else "leaderboard"
            api = stack.enter_context(running(ApiProcess(settings, program)))
            own = msgspec.json.decode(api.create("watched", _OWN_SCORE).content, type=User)
            found[name] = Contestant(name, api, own)
        if NULL in boards:
            answers.write_bytes(msgspec.json.encode(record(found[OURS])))
            api = ApiProcess(boards[NULL], "bench.hot.null", BENCH_ANSWERS=str(answers))
            found[NULL] = Contestant(NULL, stack.enter_context(running(api)), None)
        yield [found[name] for name in boards]


@contextmanager
def running(api: ApiProcess) -> Iterator[ApiProcess]:
    """Starts the process. Raises PortTaken first, because our servers would share the port silently."""
    with socket.socket() as probe:
        if probe.connect_ex((_HOSTNAME, api.settings.port)) == 0:
            raise PortTaken(f"another process listens on port {api.settings.port}")
    try:
        yield api.start()
    finally:
        api.kill()
        api.client.close()


def record(contestant: Contestant) -> null.Answers:
    """Returns the contestant's answers, which null repeats."""
    assert contestant.own is not None
    client, user_id = contestant.api.client, contestant.own.user_id

    def answer(method: str, path: str, body: object = None) -> null.Answer:
        response = client.request(method, path, json=body)
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _DROPPED]
        return null.Answer(response.status_code, headers, response.text)

    gets = ("/leaderboard/top/100", "/leaderboard/top/10", "/readyz")  # the longer first: they are prefixes
    return null.Answers(
        gets={
            "/leaderboard/user/": answer("GET", f"/leaderboard/user/{user_id}/context"),
            **{path: answer("GET", path) for path in gets},
        },
        posts={
            "/users/": answer("POST", f"/users/{user_id}/score", {"score": _OWN_SCORE + 1}),
            "/users": answer("POST", "/users", {"username": "recorded", "score": 100}),
        },
    )
