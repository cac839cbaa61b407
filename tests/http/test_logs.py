"""Logs: JSON lines, requests only at debug, one line for each change of state, and no secrets."""

import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.credentials import new_key
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey
from tests.system import ApiProcess, eventually, free_port, sql

Serve = Callable[..., ApiProcess]
PASSWORD = "correct-horse-battery"  # pragma: allowlist secret
OPEN = "API_KEYS is empty: anyone who can reach the port can write"
A_FEW_TURNS_S = 1.5
"""Several periods of every timer: a line logged in each of them would occur more than once."""


class Log:
    """What the processes started in a test have logged so far."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._text = ""

    def text(self) -> str:
        out, err = self._capfd.readouterr()
        assert out == "", "logs go to standard error"
        self._text += err
        return self._text

    def forget(self) -> None:
        self._capfd.readouterr()
        self._text = ""

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def events(self) -> Counter[str]:
        return Counter(line["event"] for line in self.lines())

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == "request" and line["path"] != "/readyz"]


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Log:
    return Log(capfd)


def some_calls(api: ApiProcess) -> None:
    """Sends valid and invalid requests."""
    assert api.create("ada", 5).status_code == 201
    assert api.set(1, 6).status_code == 200
    assert api.create("ada").status_code == 409
    assert api.create("\0").status_code == 422
    assert api.client.get("/users/2").status_code == 404
    assert api.client.get("/leaderboard/top/0").status_code == 422
    api.top(3)


def test_lines_are_json_and_requests_are_not_logged(log: Log, serve: Serve) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    api = serve()
    some_calls(api)
    eventually(lambda: log.events()["rank index built"])
    api.stop()
    lines = log.lines()
    for line in lines:
        assert isinstance(line["event"], str)
        assert line["level"] in {"debug", "info", "warning", "error", "critical"}
        assert before < datetime.fromisoformat(line["timestamp"]) < datetime.now(UTC) + timedelta(seconds=1)
    assert {line["event"]: line["level"] for line in lines} == {
        OPEN: "warning",
        "ready to serve": "info",
        "stopping": "info",
        "cache rebuilt": "info",
        "rank index built": "info",
        "connections to PostgreSQL": "info",
    }
    assert len(lines) == 6


def test_at_debug_each_request_is_one_line(log: Log, serve: Serve) -> None:
    api = serve(log_level="debug")
    some_calls(api)
    strange = "/users/%0A%22%7B%ED%A0%80%E2%80%AE%1B[2J"
    assert api.client.get(strange).status_code == 422
    api.stop()
    requests = log.requests()
    assert [(line["method"], line["path"], line["status"]) for line in requests[:-1]] == [
        ("POST", "/users", 201),
        ("POST", "/users/1/score", 200),
        ("POST", "/users", 409),
        ("POST", "/users", 422),
        ("GET", "/users/2", 404),
        ("GET", "/leaderboard/top/0", 422),
        ("GET", "/leaderboard/top/3", 200),
    ]
    assert requests[-1]["path"].startswith('/users/\n"{')
    assert {line["level"] for line in requests} == {"debug"}
    assert all(0 <= line["ms"] < 30_000 for line in requests)
    assert log.text().isascii(), "text of a client is escaped"


def test_at_debug_a_request_without_a_route_is_one_line(log: Log, serve: Serve) -> None:
    api = serve(log_level="debug")
    assert api.client.get("/nowhere").status_code == 404
    assert api.client.delete("/users").status_code == 405
    api.stop()
    assert [(line["path"], line["status"]) for line in log.requests()] == [("/nowhere", 404), ("/users", 405)]


def test_an_event_is_one_text_line(log: Log, serve: Serve) -> None:
    api = serve(log_level="debug", log_format="text")
    assert api.client.get("/users/%0A%1B[2J").status_code == 422
    api.stop()
    lines = [line for line in log.text().splitlines() if "2J" in line]
    assert len(lines) == 1
    assert "status=422" in lines[0]
    assert "\x1b[2J" not in lines[0]


@pytest.mark.parametrize("escaped", ["%1B[2J", "%C2%9B2J", "%7F%E2%80%AE2J", "%E2%80%A82J"])
def test_text_lines_escape_paths(log: Log, serve: Serve, escaped: str) -> None:
    api = serve(log_level="debug", log_format="text")
    assert api.client.get(f"/users/{escaped}").status_code == 422
    api.stop()
    (line,) = [line for line in log.text().split("\n") if "2J" in line]
    assert line.isprintable()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_unexpected_error_is_logged_without_the_request(
    log: Log, settings: Settings, serve: Serve, log_format: str
) -> None:
    forged = "2026-01-01T00:00:00.000000Z [info     ] all is well"
    api = serve(log_format=log_format)
    sql(
        settings,
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION E'the cause\n{forged}\r\x1b[2J\u202e'; END $$",
    )
    sql(settings, "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON users EXECUTE FUNCTION fail()")
    eventually(lambda: "rank index built" in log.text() and "cache rebuilt" in log.text())
    log.forget()
    headers = {"Idempotency-Key": "the-key-of-a-request", "X-Header": "what-a-header-says"}
    body = {"username": "the-name-of-a-user", "score": 1815}
    assert api.client.post("/users", json=body, headers=headers).status_code == 500
    eventually(lambda: "the cause" in log.text())
    api.stop()
    text = log.text()
    assert "Traceback" in text
    for said in ("the-key-of-a-request", "what-a-header-says", "the-name-of-a-user"):
        assert said not in text
    lines = text.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert forged not in lines
    if log_format == "json":
        assert [json.loads(line)["event"] for line in lines] == ["a request failed", "stopping"]
    else:
        events = [line.split("] ")[1].split("  ")[0] for line in lines if not line.startswith("  | ")]
        assert events == ["a request failed", "stopping"]


def test_a_start_without_postgresql_is_logged(log: Log, serve: Serve) -> None:
    serve(db_port=free_port(), wait_for="unavailable").stop()
    (line,) = [line for line in log.lines() if line["event"] == "starting without PostgreSQL"]
    assert line["level"] == "warning"
    assert "PostgreSQL" in line["error"]


def test_at_error_normal_operation_logs_nothing(log: Log, serve: Serve) -> None:
    api = serve(log_level="error")
    some_calls(api)
    api.stop()
    assert log.text() == ""


def test_secrets_are_not_logged_when_stores_are_unreachable(log: Log, settings: Settings, serve: Serve) -> None:
    api = serve(log_level="debug")
    some_calls(api)
    api.stop()
    nowhere = serve(
        log_level="debug",
        db_password=SecretStr(PASSWORD),
        redis_url=SecretStr(f"redis://user:{PASSWORD}@127.0.0.1:{free_port()}"),
        wait_for="unavailable",
    )
    assert nowhere.client.get("/leaderboard/top/3").status_code == 503
    assert nowhere.create("ada").status_code == 503
    nowhere.stop()
    text = log.text()
    assert "PostgreSQL" in text
    assert "Redis cannot be used" in text
    for secret in (settings.db_password, settings.redis_url):
        assert secret.get_secret_value() not in text
    assert (settings.redis_url.get_secret_value().split(":")[2]).split("@")[0] not in text
    assert PASSWORD not in text


def test_the_warning_about_open_writes_is_logged_once(log: Log, serve: Serve) -> None:
    serve(workers=2, wait_for="ok").stop()
    assert log.events()[OPEN] == 1


def test_keys_and_tokens_are_not_logged(log: Log, serve: Serve) -> None:
    secret = "what-users-tokens-are-signed-with"  # pragma: allowlist secret
    good, hashed = new_key()
    plain, _ = new_key()
    claims = {"sub": "1", "exp": int(time.time()) + 60}
    tokens = [jwt.encode(claims, secret, "HS256"), jwt.encode(claims | {"sub": "ada"}, secret, "HS256")]
    api = serve(
        log_level="debug",
        api_keys=SecretStr(f"{plain},game:read+write:{hashed}"),
        jwt_algorithms="HS256",
        jwt_key=SecretStr(secret),
        reads="key",
        rate_limit_per_address="9/hour",
        rate_limit_per_key="9/hour",
    )
    credentials = [good, plain, *tokens, "a-key-that-does-not-exist", good[:-1]]
    statuses = set()
    for credential in credentials * 4:
        headers = {"Authorization": f"Bearer {credential}"}
        for method, path in (("GET", "/users/1"), ("POST", "/users"), ("GET", "/metrics"), ("GET", "/nowhere")):
            answer = api.client.request(method, path, headers=headers)
            statuses.add(answer.status_code)
            assert not [each for each in credentials if each in answer.text]
    api.stop()
    assert statuses >= {401, 403, 404, 415, 429}
    text = log.text()
    assert text.count('"request"') > 50
    assert OPEN not in text
    for each in (*credentials, secret, hashed, hashed.removeprefix("sha256:")):
        assert each not in text


def test_a_wrong_redis_password_is_not_logged(log: Log, serve: Serve, own_valkey: EmbeddedValkey) -> None:
    api = serve(
        log_level="debug",
        redis_url=SecretStr(f"redis://:{PASSWORD}@127.0.0.1:{own_valkey.port}"),
        wait_for="degraded",
    )
    some_calls(api)
    api.stop()
    assert log.events()["Redis cannot be used, reads go to PostgreSQL"] == 1
    assert PASSWORD not in log.text()


def after_the_start(log: Log, api: ApiProcess) -> Counter[str]:
    """Waits for what is logged once at the start; creates the user that `load` writes."""
    api.create("ada")
    eventually(lambda: {"cache rebuilt", "rank index built"} <= set(log.events()))
    return log.events()


def load(api: ApiProcess, seconds: float) -> None:
    """Reads and writes, one after the other, and ignores the responses."""
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline:
        number += 1
        api.set(1, number)
        api.client.get("/leaderboard/top/3")


def test_losing_and_finding_redis_is_one_line_each(log: Log, serve: Serve, own_valkey: EmbeddedValkey) -> None:
    api = serve(redis_url=SecretStr(own_valkey.url))
    before = after_the_start(log, api)
    own_valkey.stop()
    eventually(lambda: log.events() - before)
    load(api, A_FEW_TURNS_S)
    assert log.events() - before == {"Redis cannot be used, reads go to PostgreSQL": 1}

    own_valkey.start()
    eventually(lambda: api.status() == "ok", what="Redis is back")
    eventually(lambda: (log.events() - before)["cache rebuilt"])
    load(api, A_FEW_TURNS_S)
    api.stop()
    new = log.events() - before
    assert new == {
        "Redis cannot be used, reads go to PostgreSQL": 1,
        "Redis can be used again": 1,
        "cache rebuilt": 1,
        "stopping": 1,
    }
    (lost,) = [line for line in log.lines() if line["event"].startswith("Redis cannot be used")]
    assert lost["level"] == "warning"
    assert "Redis" in lost["error"]


def test_losing_and_finding_postgres_is_one_line_each(
    log: Log, settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres
) -> None:
    own = {"db_port": own_postgres.port, "db_name": "leaderboard", "db_password": SecretStr(own_postgres.password)}
    ApiProcess(settings.model_copy(update=own)).run("migrate")
    log.forget()
    api = serve(**own)
    before = after_the_start(log, api)
    own_postgres.stop()
    eventually(lambda: log.events() - before)
    load(api, A_FEW_TURNS_S)
    assert log.events() - before == {"PostgreSQL cannot be used": 1}

    own_postgres.start()
    eventually(lambda: api.status() == "ok", what="PostgreSQL is back")
    eventually(lambda: (log.events() - before)["cache rebuilt"])
    load(api, A_FEW_TURNS_S)
    api.stop()
    new = log.events() - before
    # The database was restarted, so its epoch is new and the cache is rebuilt.
    assert new == {
        "PostgreSQL cannot be used": 1,
        "PostgreSQL can be used again": 1,
        "cache rebuilt": 1,
        "stopping": 1,
    }
    (lost,) = [line for line in log.lines() if line["event"] == "PostgreSQL cannot be used"]
    assert lost["level"] == "error"
    assert "PostgreSQL" in lost["error"]
