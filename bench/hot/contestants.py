"""The contestants: processes that are measured, each with its own databases."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.hot import null
from bench.hot.result import NULL, OURS, PLAIN, TWO
from bench.service import beside, pid, running
from leaderboard.config import Settings
from leaderboard.model import User
from tests.system import ApiProcess, sql

_OWN_SCORE = 1_000_000
_DROPPED = {"date", "content-length"}
"""Headers that the server adds."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One contestant. `own` is a user whose score only the benchmark's watcher sets."""

    name: str
    api: ApiProcess
    own: User | None

    @property
    def pid(self) -> int:
        return pid(self.api)


def boards(settings: Settings, names: Sequence[str]) -> dict[str, Settings]:
    """Copies the board for each contestant but null, which has none, and ours, which has the original."""
    found = {}
    for number, name in enumerate(names):
        if name in {NULL, OURS}:
            found[name] = settings
            continue
        other = beside(settings, number)
        sql(
            settings.model_copy(update={"db_name": "postgres"}),
            f"CREATE DATABASE {other.db_name} TEMPLATE {settings.db_name}",
        )
        found[name] = other.model_copy(update={"workers": 2 if name == TWO else 1})
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
