"""The permissions in Valkey that `deploy/aws` gives to the service are enough, and few."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import NoPermissionError

from leaderboard.config import Settings
from leaderboard.dev import EmbeddedValkey
from tests.system import ApiProcess, eventually, sql

ACCESS = Path(__file__).parents[2] / "deploy" / "aws" / "valkey-access.txt"


@pytest.fixture
def narrow(settings: Settings, own_valkey: EmbeddedValkey) -> Settings:
    """The settings with a Valkey user that has these permissions."""
    password = own_valkey.password
    with Redis.from_url(own_valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", "leaderboard", f">{password}", *ACCESS.read_text().split())
    url = f"redis://leaderboard:{password}@127.0.0.1:{own_valkey.port}"
    return settings.model_copy(update={"redis_url": SecretStr(url)})


def test_the_permissions_are_enough_for_the_service(
    narrow: Settings, own_valkey: EmbeddedValkey, serve: Callable[..., ApiProcess]
) -> None:
    api = serve(redis_url=narrow.redis_url, cache_size=20, audit_interval_s=0.1)
    sql(
        narrow,
        "INSERT INTO users (user_name, total_score) SELECT 'user ' || n, n FROM generate_series(1, 200) AS n",
    )
    created = api.create("first", 1000).json()["userId"]
    assert api.set(created, 2000).status_code == 200
    assert api.top(1) == [(1, created, "first", 2000)]
    assert api.client.get(f"/leaderboard/user/{created}/context").status_code == 200
    api.run("sync", "--rebuild")
    api.run("verify")

    def seen(line: str) -> float:
        lines = api.client.get("/metrics").text.splitlines()
        return sum(float(found.split()[-1]) for found in lines if found.startswith(line))

    before = seen('leaderboard_answers_total{source="cache"}')
    api.top(10)
    assert seen('leaderboard_answers_total{source="cache"}') > before
    # A user is removed from the cache, and the cache is rebuilt, while the service runs.
    with Redis.from_url(own_valkey.url) as admin:
        admin.flushall()
        rebuilt = seen("leaderboard_rebuilds_total")
        eventually(lambda: seen("leaderboard_rebuilds_total") > rebuilt, what="the cache was rebuilt")
        sql(narrow, "DELETE FROM users WHERE user_id = $1", created)
        eventually(lambda: api.top(1)[0][2] == "user 200", what="the deleted user is gone")
        assert [refusal["object"] for refusal in admin.acl_log()] == []


@pytest.mark.parametrize(
    "command",
    [("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST"), ("SHUTDOWN",), ("GET", "another")],
)
def test_other_commands_and_keys_are_forbidden(narrow: Settings, command: tuple[str, ...]) -> None:
    with Redis.from_url(narrow.redis_url.get_secret_value()) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command)
