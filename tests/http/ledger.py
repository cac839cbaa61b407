"""Records what was acknowledged, so that a test can check that nothing else was written."""

from typing import Any

from leaderboard.config import Settings
from leaderboard.rules import check_score, clean_image_url, clean_username
from tests.http.contract import Answer, Caller
from tests.system import sql

Row = tuple[str, str | None, int]


class Ledger:
    """Sends writes and records what was acknowledged: id → name, image, score."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.rows: dict[int, Row] = {}
        self.victim = self.note(caller.post("/users", {"username": "victim"})).json()["userId"]

    def post(self, path: str, body: Any) -> Answer:
        return self.note(self.caller.post(path, body))

    def create(self, body: Any) -> Answer:
        return self.post("/users", body)

    def set(self, body: Any) -> Answer:
        return self.post(f"/users/{self.victim}/score", body)

    def note(self, answer: Answer) -> Answer:
        assert answer.status < 500, answer
        if answer.status in (200, 201):
            user = answer.json()
            self.rows[user["userId"]] = (user["username"], user["imageUrl"], user["score"])
        return answer

    def check_rows(self, settings: Settings) -> None:
        """Fails unless the table has exactly the recorded rows, all of them valid."""
        assert valid_rows(settings) == self.rows

    def check_process(self) -> None:
        """Fails if the process has answered 5xx, has been restarted, or is not ok."""
        assert self.caller.api.status() == "ok"
        counts = [line for line in self.caller.get("/metrics").body.decode().splitlines() if 'status="5' in line]
        # While it started it was not ready.
        assert not [line for line in counts if "/readyz" not in line]
        counted = sum(
            float(line.rpartition(" ")[2])
            for line in self.caller.get("/metrics").body.decode().splitlines()
            if line.startswith("leaderboard_requests_total{")
        )
        assert counted > len(self.rows), "the process was restarted meanwhile"


def valid_rows(settings: Settings) -> dict[int, Row]:
    """Returns all rows of the table. Fails unless each of them is valid."""
    rows = sql(settings, "SELECT user_id, user_name, image_url, total_score FROM users")
    for _, name, url, score in rows:
        assert clean_username(name) == name
        assert url is None or clean_image_url(url) == url
        assert check_score(score) == score
    return {row["user_id"]: (row["user_name"], row["image_url"], row["total_score"]) for row in rows}


def refused(answer: Answer, code: str, *fields: str) -> None:
    """Fails unless the response is that problem, with exactly those fields if any are given."""
    assert answer.code == code, answer
    if fields:
        assert set(answer.fields) == set(fields), answer


def short(value: object) -> str:
    """Returns a short text for a value, for the name of a test."""
    return ascii(value)[:40]
