"""PostgreSQL behind PgBouncer in transaction mode."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from chaos import failover
from leaderboard.config import Settings
from leaderboard.dev import EmbeddedPostgres
from tests.deploy.pgbouncer import PROGRAM, PgBouncer
from tests.system import ApiProcess, eventually, sql

Serve = Callable[..., ApiProcess]

pytestmark = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="needs pgbouncer (apt install pgbouncer)")


@pytest.fixture
def empty(template: Settings) -> Iterator[Settings]:
    """A database without a schema."""
    admin = template.model_copy(update={"db_name": "postgres"})
    fresh = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {fresh.db_name}")
    yield fresh
    sql(admin, f"DROP DATABASE {fresh.db_name} WITH (FORCE)")


@pytest.fixture
def pooler(empty: Settings, postgres: EmbeddedPostgres, data_dir: Path) -> Iterator[PgBouncer]:
    with PgBouncer(data_dir, empty, postgres.account, default_pool_size=6) as started:
        yield started


@pytest.fixture
def api(pooler: PgBouncer) -> Iterator[ApiProcess]:
    process = ApiProcess(pooler.settings.model_copy(update={"stop_delay_ms": 0}))
    process.run("migrate")
    yield process.start()
    process.kill()
    process.client.close()


def test_every_call_works(api: ApiProcess, empty: Settings) -> None:
    ids = [api.create(f"user {n}", n).json()["userId"] for n in range(1, 41)]
    assert api.set(ids[0], 500).json()["previousScore"] == 1
    again = {"Idempotency-Key": "a-key"}
    for _ in range(2):
        answer = api.client.post(f"/users/{ids[1]}/score", json={"score": 400}, headers=again)
        assert answer.json()["previousScore"] == 2
    assert api.top(2) == [(1, ids[0], "user 1", 500), (2, ids[1], "user 2", 400)]
    context = api.client.get(f"/leaderboard/user/{ids[20]}/context").json()
    assert (context["user"]["rank"], len(context["above"]), len(context["below"]), context["total"]) == (
        22,
        5,
        5,
        40,
    )
    page = api.client.get("/leaderboard?limit=3&around_rank=20").json()
    assert [user["rank"] for user in page["users"]] == [19, 20, 21]
    assert api.create("user 1").status_code == 409
    assert api.client.get("/users/999999").status_code == 404
    eventually(lambda: sql(empty, "SELECT FROM rank_index"), 10, "there is a rank index")
    api.run("sync")
    api.run("verify")


def test_concurrent_writes_all_succeed(api: ApiProcess) -> None:
    ids = [api.create(f"user {n}").json()["userId"] for n in range(8)]

    def write(user_id: int) -> None:
        for score in range(1, 31):
            assert api.set(user_id, score).status_code == 200
            assert api.client.get(f"/users/{user_id}").json()["score"] == score

    with ThreadPoolExecutor(len(ids)) as pool:
        list(pool.map(write, ids))
    assert {score for _, _, _, score in api.top(8)} == {30}


def test_an_import_fails_with_an_error_that_names_the_session(
    api: ApiProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "board.csv"
    file.write_text("username,score,imageUrl\nada,1,\n")
    with pytest.raises(Exception, match="exit status 3"):
        api.run("import", str(file))
    assert "needs a session" in capfd.readouterr().err


@pytest.mark.parametrize("way", ["standby behind the address", "killed"])
def test_writes_succeed_again_after_the_pooler_has_switched_to_another_primary(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres, data_dir: Path, way: failover.Way
) -> None:
    there = {
        "db_port": own_postgres.port,
        "db_name": "leaderboard",
        "db_password": SecretStr(own_postgres.password),
        # A call on a connection that hangs ends after this time.
        "db_timeout_ms": 3000,
    }
    behind = settings.model_copy(update=there)
    ApiProcess(behind).run("migrate")
    # PgBouncer checks a server connection before each use, and reconnects soon.
    options = {"server_check_delay": 0, "server_login_retry": 0.1}
    with PgBouncer(data_dir / "pooler", behind, own_postgres.account, **options) as pooler:
        serve_behind = partial(serve, **{name: value for name, value in there.items() if name != "db_port"})
        with failover.prepared(own_postgres, behind, serve_behind, pooler) as prepared:
            seen = prepared.run(way)
    assert seen.lost == []
    assert seen.old == []
