"""After a failover of PostgreSQL every process writes again, and nothing acknowledged is missing."""

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from chaos import failover
from leaderboard.config import Settings
from leaderboard.dev import EmbeddedPostgres
from tests.system import ApiProcess

Serve = Callable[..., ApiProcess]


@pytest.mark.parametrize("way", failover.WAYS)
def test_writes_come_back_on_every_process(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres, way: failover.Way
) -> None:
    there = {
        "db_port": own_postgres.port,
        "db_name": "leaderboard",
        "db_password": SecretStr(own_postgres.password),
        # This deadline ends a call on a connection that hangs.
        "db_timeout_ms": 3000,
    }
    on_primary = settings.model_copy(update=there)
    ApiProcess(on_primary).run("migrate")
    with failover.prepared(own_postgres, on_primary, lambda **more: serve(**{**there, **more})) as prepared:
        seen = prepared.run(way)
    assert seen.lost == []
    assert seen.old == []
