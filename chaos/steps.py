"""Recognises on the proxies what an API process is doing, and kills it at a given step.

The steps of a write are: the statement in PostgreSQL, the poll of the cache's state, the query of the change
log, the script that applies the changes; then the client gets its answer. They are recognised by the names of
prepared statements and by the digests of the scripts.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from chaos.proxy import Proxy
from leaderboard.cache.scripts import Script

_PREPARED = re.compile(rb"(__asyncpg_stmt_[0-9a-f]+__)\0([^\0]*)\0")
_USED = re.compile(rb"__asyncpg_stmt_[0-9a-f]+__")
_STATEMENTS = {
    b"FOR NO KEY UPDATE": "write",
    b"INSERT INTO users": "write",
    b"FROM changes\n": "changes",
}
_SCRIPTS = {Script.load(name).sha.encode(): name for name in ("poll", "apply")}


class When(Enum):
    """The four moments of a request to a server."""

    SENT = "was sent"
    ARRIVED = "arrived"
    ANSWERED = "was answered"
    ANSWER_ARRIVED = "its answer arrived"


class Step(NamedTuple):
    """A moment of a write, or of the catch-up that belongs to it."""

    what: str
    when: When

    def __str__(self) -> str:
        return f"{self.what} {self.when.value}"


STEPS = tuple(Step(what, when) for what in ("write", "poll", "changes", "apply") for when in When)


class Steps:
    """Watches the proxies of one API process."""

    def __init__(self, to_postgres: Proxy, to_cache: Proxy) -> None:
        self._statements: dict[bytes, str] = {}
        self._doing: dict[tuple[str, int], str] = {}
        self._armed: tuple[Step, Callable[[], None]] | None = None
        to_postgres.watch(lambda *seen: self._see("postgres", *seen))
        to_cache.watch(lambda *seen: self._see("cache", *seen))

    def arm(self, step: Step, act: Callable[[], None]) -> None:
        """Calls `act` once, the next time the process is at `step`."""
        self._armed = step, act

    @property
    def armed(self) -> bool:
        return self._armed is not None

    def _see(
        self, server: str, data: bytes, from_api: bool, connection: int
    ) -> tuple[bool, Callable[[], None] | None]:
        if from_api:
            doing = self._statement(data) if server == "postgres" else self._script(data)
            self._doing[server, connection] = doing
            before, after = Step(doing, When.SENT), Step(doing, When.ARRIVED)
        else:
            doing = self._doing.get((server, connection), "")
            before, after = Step(doing, When.ANSWERED), Step(doing, When.ANSWER_ARRIVED)
        if self._armed is None:
            return True, None
        step, act = self._armed
        if step == before:
            self._armed = None
            act()
            return False, None
        if step == after:
            self._armed = None
            return True, act
        return True, None

    def _statement(self, data: bytes) -> str:
        for name, text in _PREPARED.findall(data):
            for mark, what in _STATEMENTS.items():
                if mark in text:
                    self._statements[name] = what
                    return ""
        used = _USED.search(data)
        return "" if used is None else self._statements.get(used[0], "")

    def _script(self, data: bytes) -> str:
        return next((name for sha, name in _SCRIPTS.items() if sha in data), "")
