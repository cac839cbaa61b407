"""Keys: with `API_KEYS` a write needs one of them, and reads need none."""

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from tests.system import ApiProcess

KEYS = "first-key, second-key"


@pytest.mark.parametrize(
    "credential",
    [None, "", "Bearer", "Bearer wrong", "first-key", "Basic first-key", "Bearer first-key,second-key"],
)
def test_a_write_without_a_key_is_refused(serve: Callable[..., ApiProcess], credential: str | None) -> None:
    api = serve(api_keys=SecretStr(KEYS))
    headers = {} if credential is None else {"Authorization": credential}
    for path, body in (("/users", {"username": "ada"}), ("/users/1/score", {"score": 5})):
        refused = api.client.post(path, json=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert api.top(10) == []


def test_a_write_with_any_of_the_keys_is_done_and_reads_need_none(serve: Callable[..., ApiProcess]) -> None:
    api = serve(api_keys=SecretStr(KEYS))
    first, second = (
        {"Authorization": f"{scheme} {key}"} for scheme, key in (("Bearer", "first-key"), ("bearer", "second-key"))
    )
    assert api.client.post("/users", json={"username": "ada"}, headers=first).status_code == 201
    assert api.client.post("/users/1/score", json={"score": 5}, headers=second).status_code == 200
    assert api.top(10) == [(1, 1, "ada", 5)]
