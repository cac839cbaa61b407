"""Reads and writes a board until SIGTERM, and reports lost scores and stale reads.

`python deploy/check/traffic.py http://127.0.0.1:3000 FIRST_USER` uses eight users, from that id on. No other
program may change their scores meanwhile. It needs only Python. The exit status is 1 if a score was lost or a read
was stale.

Each user has one writer, and each score is higher than the one before. So a read is stale if its score is lower
than one that was acknowledged before the read began. A write without an answer may have been done or not. Every
other writer sends an Idempotency-Key with each score, so that a proxy may repeat it.
"""

import http.client
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_USERS = 8
_READERS = 4
_PAUSE_S = 0.01
_TIMEOUT_S = 10.0
_MOST_S = 300.0
"""It stops after this time without SIGTERM, too."""
_FIRST_SCORE = 2_000_000_000
"""High enough that these users are in the cache."""


@dataclass
class _User:
    """The scores of one user that were sent and acknowledged."""

    user_id: int
    sent: int = _FIRST_SCORE
    acknowledged: int = 0
    since: dict[int, float] = field(default_factory=dict)
    """The time at which each score was acknowledged."""

    def age(self, score: int, began: float) -> float:
        """Returns how many seconds before `began` a score higher than this one was first acknowledged."""
        return began - min(at for higher, at in list(self.since.items()) if score < higher)


class Traffic:
    """Threads that read and write, and their results."""

    def __init__(self, url: str, first_user: int) -> None:
        self._host = urlsplit(url).netloc
        self.users = [_User(first_user + number) for number in range(_USERS)]
        self.stop = threading.Event()
        self.reads: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.keyed: Counter[str] = Counter()
        self.broken: list[str] = []
        self.old = 0
        self.longest_gap_s = 0.0
        self._last_read = time.monotonic()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Reads and writes until `stop`, then reads all users once more."""
        client = _Client(self._host)
        for user in self.users:
            status, answer = client.request("GET", f"/users/{user.user_id}")
            if status != "200":
                raise SystemExit(f"user {user.user_id} cannot be read: {status}")
            user.acknowledged = answer["score"]
            user.sent = max(_FIRST_SCORE, user.acknowledged)
        threads = [threading.Thread(target=self._write, args=(user,)) for user in self.users]
        threads += [threading.Thread(target=self._read) for _ in range(_READERS)]
        for thread in threads:
            thread.start()
        self.stop.wait(_MOST_S)
        self.stop.set()
        for thread in threads:
            thread.join()
        for user in self.users:
            status, answer = client.request("GET", f"/users/{user.user_id}")
            if status != "200" or not user.acknowledged <= answer["score"] <= user.sent:
                self.broken.append(f"{status}, {answer}: {user.acknowledged} was acknowledged and is lost")

    def _write(self, user: _User) -> None:
        client = _Client(self._host)
        while not self.stop.is_set():
            user.sent += 1
            key = f"{user.user_id}-{user.sent}" if user.user_id % 2 else ""
            status, _ = client.request("POST", f"/users/{user.user_id}/score", {"score": user.sent}, key)
            with self._lock:
                (self.keyed if key else self.writes)[status] += 1
                if status == "200":
                    user.acknowledged = user.sent
                    user.since[user.sent] = time.monotonic()
            time.sleep(_PAUSE_S)

    def _read(self) -> None:
        client = _Client(self._host)
        while not self.stop.is_set():
            user = random.choice(self.users)
            path = random.choice(["/users/{}", "/leaderboard/user/{}/context"])
            began, acknowledged = time.monotonic(), user.acknowledged
            status, answer = client.request("GET", path.format(user.user_id))
            now = time.monotonic()
            with self._lock:
                self.reads[status] += 1
                if status == "200":
                    self.longest_gap_s = max(self.longest_gap_s, now - self._last_read)
                    self._last_read = now
                    self._check(user, answer.get("user", answer)["score"], began, acknowledged)
            time.sleep(_PAUSE_S)

    def _check(self, user: _User, score: int, began: float, acknowledged: int) -> None:
        if score > user.sent:
            self.broken.append(f"user {user.user_id} has {score}, but the highest score sent was {user.sent}")
        if score < acknowledged:
            age_s = user.age(score, began)
            self.old += 1
            self.broken.append(f"user {user.user_id}: {score} was read, {age_s:.3f} s too old")


class _Client:
    """An HTTP client with one connection, which is reopened after an error."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: object = None, key: str = "") -> tuple[str, Any]:
        """Returns status and answer; without an answer, the status is the error's name."""
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
            headers = {"content-type": "application/json"} if body else {}
            headers |= {"idempotency-key": key} if key else {}
            self._connection.request(method, path, json.dumps(body) if body else None, headers)
            response = self._connection.getresponse()
            text = response.read()
            return str(response.status), json.loads(text) if response.status == 200 else text
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return type(error).__name__, None


def main() -> int:
    """Runs, prints the results, and returns the exit status."""
    traffic = Traffic(sys.argv[1], int(sys.argv[2]))
    signal.signal(signal.SIGTERM, lambda *_: traffic.stop.set())
    traffic.run()
    print(f"reads   {_format(traffic.reads)}; {traffic.longest_gap_s:.2f} s at most without a read")
    print(f"writes  {_format(traffic.writes)}")
    print(f"keyed   {_format(traffic.keyed)}")
    print(f"old     {traffic.old} reads")
    for line in traffic.broken[:10]:
        print(f"broken  {line}")
    return 1 if traffic.broken else 0


def _format(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} of {status}" for status, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
