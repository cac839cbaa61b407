"""Idempotency keys over HTTP: headers, limits, and a process that is killed."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest
from pydantic import SecretStr

from tests.system import ApiProcess, eventually, sql
from tests.writes.idempotency import Serve


@pytest.mark.parametrize(
    ("bound", "status", "code"),
    [
        ("idempotency_keys_per_caller", 429, "too_many_idempotency_keys"),
        ("idempotency_keys", 503, "idempotency_keys_full"),
    ],
)
def test_a_limit_has_an_http_status_and_an_error_code(serve: Serve, bound: str, status: int, code: str) -> None:
    key = "a-key-of-more-than-16-characters"
    api = serve(api_keys=SecretStr(f"game:write:{key}"), **{bound: 1})
    numbers = count()

    def create(number: int) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": f"key {number}".replace(" ", "-")}
        return api.client.post("/users", json={"username": f"user {number}"}, headers=headers)

    def refused() -> httpx.Response | None:
        response = create(next(numbers))
        return None if response.status_code == 201 else response

    first = create(next(numbers))
    # The service counts the keys once a second, or less often if counting takes long.
    response = eventually(refused, 60)
    assert response is not None
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert int(response.headers["retry-after"]) >= 1
    again = create(0)
    assert (again.status_code, again.content) == (201, first.content)


@pytest.mark.slow
def test_a_write_repeated_after_its_process_was_killed_is_done_once(serve: Serve) -> None:
    """The process is killed at different moments, also after the commit. A retry gets the first result."""
    steady, victim = serve(), serve()
    user_id = steady.create("ada").json()["userId"]
    for score, delay_ms in enumerate((0, 1, 2, 3, 4, 6, 8, 12), 1):
        before = sql(steady.settings, "SELECT count(*) FROM changes")[0][0]
        key = {"Idempotency-Key": f"key-{score}"}

        def send(process: ApiProcess, key: dict[str, str] = key, score: int = score) -> httpx.Response | None:
            try:
                return httpx.post(f"{process.url}/users/{user_id}/score", json={"score": score}, headers=key)
            except httpx.TransportError:
                return None

        with ThreadPoolExecutor(1) as pool:
            lost = pool.submit(send, victim)
            # Not for a condition: the process is killed at another moment each time.
            time.sleep(delay_ms / 1000)
            victim.kill()
            lost.result()

        def ok(send: Callable[[ApiProcess], httpx.Response | None] = send) -> httpx.Response | None:
            response = send(steady)
            assert response is not None
            assert response.status_code in (200, 409), response.text
            return response if response.status_code == 200 else None

        answer = eventually(ok)
        assert answer is not None
        assert answer.json()["previousScore"] == score - 1
        assert sql(steady.settings, "SELECT count(*) FROM changes")[0][0] == before + 1
        victim.start()


@pytest.mark.parametrize("key", ["", "with a blank", "ü", "x" * 256], ids=["empty", "blank", "not ascii", "long"])
def test_a_malformed_key_is_rejected(serve: Serve, key: str) -> None:
    api = serve()
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    response = api.client.post("/users", json={"username": "ada"}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert api.client.post("/users", json={"username": "ada"}, headers=twice).status_code == 422
    assert api.top(10) == []


def test_a_repeated_request_gets_the_first_response(serve: Serve) -> None:
    api = serve()
    headers = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    body = {"username": "ada", "score": 5}
    first, again = (api.client.post("/users", json=body, headers=headers) for _ in range(2))
    assert (again.status_code, again.content, again.headers["location"]) == (
        first.status_code,
        first.content,
        first.headers["location"],
    )
    assert first.status_code == 201
    reused = api.client.post("/users", json={"username": "bob"}, headers=headers)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")


def test_two_callers_with_the_same_key_do_not_share_it(serve: Serve) -> None:
    keys = {name: f"{name}-key-of-more-than-16-characters" for name in ("one", "other")}
    api = serve(api_keys=SecretStr(",".join(f"{name}:read+write:{key}" for name, key in keys.items())))
    made = {}
    for name, key in keys.items():
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "same"}
        made[name] = [
            api.client.post("/users", json={"username": f"by {name}"}, headers=headers).json()["userId"]
            for _ in range(2)
        ]
    assert made == {"one": [1, 1], "other": [2, 2]}
