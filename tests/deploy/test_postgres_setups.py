"""PostgreSQL set-ups: TLS, a connection URL, a role with least privilege, few connections."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from leaderboard.config import Settings
from leaderboard.dev import HOST, EmbeddedPostgres
from tests.deploy.certificates import Authority
from tests.system import ROOT, ApiProcess, environment, eventually, sql

Serve = Callable[..., ApiProcess]
WITH_TLS = Path("/usr/lib/postgresql/15/bin")


def on(server: EmbeddedPostgres, **more: object) -> dict[str, object]:
    """Returns the settings for the database `leaderboard` on this server."""
    there = {"db_port": server.port, "db_name": "leaderboard", "db_password": SecretStr(server.password)}
    return {**there, **more}


def the_calls_work(api: ApiProcess) -> None:
    user_id = api.create("ada", 5).json()["userId"]
    assert api.set(user_id, 7).json()["previousScore"] == 5
    assert api.top(1) == [(1, user_id, "ada", 7)]
    assert api.client.get(f"/leaderboard/user/{user_id}/context").json()["total"] == 1
    eventually(
        lambda: 'source="cache"' in api.client.get("/metrics").text or not api.top(1),
        10,
        "the read is answered from the cache",
    )
    api.run("verify")


# TLS


@pytest.fixture(scope="module")
def authority(module_folder: Path) -> Authority:
    return Authority(module_folder / "authority")


@pytest.fixture
def with_tls(data_dir: Path, authority: Authority) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that accepts only TLS, and the role `by_certificate` only with a certificate."""
    if not (WITH_TLS / "postgres").exists():
        pytest.skip(f"there is no PostgreSQL with TLS in {WITH_TLS} (apt install postgresql)")
    certificate, key = authority.issue("server", HOST)
    settings = {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "ssl_ca_file": authority.file}
    names = {name: str(value) for name, value in settings.items()}
    # First without TLS, to give the key to the server's account, which must be able to read it.
    with EmbeddedPostgres(data_dir, bin_dir=WITH_TLS, durable=False) as server:
        server.create_database("leaderboard")
        if server.account is not None:
            os.chown(key, *server.account)
        hba = server.cluster / "pg_hba.conf"
        hba.write_text(f"hostssl all by_certificate {HOST}/32 cert\nhostssl all all {HOST}/32 scram-sha-256\n")
    with EmbeddedPostgres(data_dir, bin_dir=WITH_TLS, durable=False, settings=names) as server:
        yield server


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_tls_is_used_and_the_certificate_verified(
    settings: Settings, serve: Serve, with_tls: EmbeddedPostgres, authority: Authority, mode: str
) -> None:
    there = on(with_tls, db_sslmode=mode, db_sslrootcert=str(authority.file))
    ApiProcess(settings.model_copy(update=there)).run("migrate")
    the_calls_work(serve(**there))


def test_a_certificate_of_another_authority_is_refused(
    settings: Settings, with_tls: EmbeddedPostgres, tmp_path: Path
) -> None:
    there = on(with_tls, db_sslmode="verify-full", db_sslrootcert=str(Authority(tmp_path).file))
    assert "certificate verify failed" in failure(settings.model_copy(update=there))


def test_a_certificate_for_another_host_is_refused(
    settings: Settings, with_tls: EmbeddedPostgres, authority: Authority
) -> None:
    there = on(with_tls, db_host="localhost", db_sslrootcert=str(authority.file))
    assert "certificate verify failed" in failure(
        settings.model_copy(update={**there, "db_sslmode": "verify-full"})
    )
    assert failure(settings.model_copy(update={**there, "db_sslmode": "verify-ca"})) == ""


def test_a_client_authenticates_by_its_certificate(
    settings: Settings, serve: Serve, with_tls: EmbeddedPostgres, authority: Authority
) -> None:
    tls = {"db_sslmode": "verify-full", "db_sslrootcert": str(authority.file)}
    there = on(with_tls, **tls)
    ApiProcess(settings.model_copy(update=there)).run("migrate")
    admin = f"postgresql://postgres:{quote(with_tls.password)}@{HOST}:{with_tls.port}/leaderboard?sslmode=require"
    with_psql(with_tls, admin, "CREATE ROLE by_certificate LOGIN SUPERUSER")
    certificate, key = authority.issue("by_certificate")
    mine = {**there, "db_user": "by_certificate", "db_password": SecretStr("not needed")}
    the_calls_work(serve(**mine, db_sslcert=str(certificate), db_sslkey=str(key)))


def with_psql(server: EmbeddedPostgres, url: str, statement: str) -> None:
    subprocess.run([str(server.programs / "psql"), "-qc", statement, url], check=True)


def failure(settings: Settings) -> str:
    """Returns the standard error of `leaderboard migrate`; it is empty if the migration succeeded."""
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "migrate"],
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.count("\n") <= 1, "the error is one line"
    return done.stderr


# A URL


def test_a_url_is_enough(settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres) -> None:
    sql(
        settings.model_copy(update=on(own_postgres)),
        """CREATE ROLE "b@b" LOGIN SUPERUSER PASSWORD 'p@ss:w/o?#,$%'""",
    )
    user, password = quote("b@b", safe=""), quote("p@ss:w/o?#,$%", safe="")
    url = f"postgresql://{user}:{password}@{HOST}:{own_postgres.port}/leaderboard?sslmode=disable"
    there = {"database_url": SecretStr(url), "db_host": "nowhere", "db_password": SecretStr("another")}
    ApiProcess(settings.model_copy(update=there)).run("migrate")
    the_calls_work(serve(**there))


# A role with least privilege


def test_the_documented_privileges_are_enough_for_a_role_that_owns_no_tables(
    settings: Settings, serve: Serve, own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    owner = settings.model_copy(update=on(own_postgres))
    ApiProcess(owner).run("migrate")
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    found = re.search(r"```sql\n(CREATE ROLE leaderboard_api .*?)```", text, re.DOTALL)
    assert found is not None
    for statement in filter(None, map(str.strip, found[1].split(";"))):
        sql(owner, statement)
    mine = on(own_postgres, db_user="leaderboard_api", db_password=SecretStr("<password>"))
    api = serve(**mine)
    the_calls_work(api)
    again = {"Idempotency-Key": "a key of mine".replace(" ", "-")}
    for _ in range(2):
        answer = api.client.post("/users", json={"username": "bob"}, headers=again)
        assert answer.status_code == 201, answer.text
    eventually(lambda: sql(owner, "SELECT FROM rank_index"), 10, "there is a rank index")
    api.run("sync", "--rebuild")
    path = tmp_path / "in.csv"
    path.write_text("username,score,imageUrl\nzoe,1,\n")
    for board in ("laps", "default"):
        if board == "laps":
            api.run("boards", "create", board)
        for mode in ("skip", "update"):
            api.run("import", str(path), "--board", board, "--on-conflict", mode)
        api.run("export", "--board", board)
    api.run("boards", "end", "laps")
    api.run("boards", "list")
    api.run("boards", "delete", "laps", "--yes")


# Few connections


def test_with_too_few_connections_calls_wait_or_get_503(
    settings: Settings, data_dir: Path, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    few = {"max_connections": "14", "superuser_reserved_connections": "2", "max_wal_senders": "0"}
    with EmbeddedPostgres(data_dir, durable=False, settings=few) as server:
        server.create_database("leaderboard")
        ApiProcess(settings.model_copy(update=on(server))).run("migrate")
        owner = on(server)
        processes = [serve(**owner), serve(**owner)]
        logged = capfd.readouterr().err
        assert "most" in logged
        assert "allowed" in logged
        ids = [processes[0].create(f"user {n}").json()["userId"] for n in range(30)]

        def write(number: int) -> set[int]:
            api = processes[number % 2]
            return {api.set(ids[number], score).status_code for score in range(20)}

        with ThreadPoolExecutor(30) as pool:
            statuses = set[int]().union(*pool.map(write, range(30)))
        assert statuses <= {200, 503}
        assert 200 in statuses
        for api in processes:
            eventually(lambda api=api: api.set(ids[0], 99).status_code == 200, 10, "a write succeeds")  # type: ignore[misc]
