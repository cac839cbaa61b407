"""Epochs: restarts, crashes, other databases, and a standby."""

import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from leaderboard.app import database_from
from leaderboard.config import Settings
from leaderboard.database.database import Database
from leaderboard.database.scores import NewScore
from leaderboard.dev import HOST, EmbeddedPostgres
from leaderboard.dev.process import popen_options, run
from leaderboard.errors import DatabaseReadOnly, DatabaseUnavailable
from leaderboard.queries import ContextQuery, PageQuery
from leaderboard.snapshot import Snapshot, same_database
from tests.change_log.views import PLENTY
from tests.system import PATIENCE_S, connect, free_port, own_ports, sql, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own_postgres(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that a test may stop if it starts it again."""
    folder = session_folder / uuid.uuid4().hex
    binaries = request.config.getoption("--postgres-bin")
    with EmbeddedPostgres(folder, bin_dir=binaries, durable=False, ports=own_ports()) as server:
        yield server


@pytest.fixture
async def own_settings(template: Settings, own_postgres: EmbeddedPostgres) -> Settings:
    """The settings for a migrated database on the server that the test may stop."""
    own_postgres.create_database("leaderboard")
    settings = template.model_copy(
        update={
            "db_port": own_postgres.port,
            "db_name": "leaderboard",
            "db_password": SecretStr(own_postgres.password),
        }
    )
    await database_from(settings).migrate(lambda _line: None)
    return settings


@pytest.fixture
async def own_database(own_settings: Settings) -> AsyncIterator[Database]:
    opened = database_from(own_settings)
    await opened.open()
    yield opened
    await opened.close()


async def next_epoch(database: Database, previous: str) -> str:
    """Waits until the server answers with an epoch other than `previous`, and returns it."""
    found = previous

    async def is_new() -> bool:
        nonlocal found
        try:
            found = (await database.now()).epoch
        except DatabaseUnavailable:
            return False
        return found != previous

    await until(is_new, "another epoch")
    return found


async def test_an_epoch_ends_with_each_restart_and_each_crash_only(
    own_postgres: EmbeddedPostgres, own_settings: Settings, own_database: Database
) -> None:
    first = (await own_database.now()).epoch
    db = await connect(own_settings)
    await db.execute("CHECKPOINT; SELECT pg_switch_wal(); SELECT pg_stat_reset(); SELECT pg_reload_conf()")
    await db.execute("INSERT INTO users VALUES (1, 'a')")
    started = await db.fetchval("SELECT pg_postmaster_start_time()")
    identifier = await db.fetchval("SELECT system_identifier FROM pg_control_system()")
    assert (await own_database.now()).epoch == first
    assert (await own_database.change_log.changes_since(Snapshot(3, 3), None, 10)).position.epoch == first

    # After the crash of one backend the server recovers. Its start time and identifier stay.
    os.kill(db.get_server_pid(), signal.SIGKILL)
    second = await next_epoch(own_database, previous=first)
    assert second != first
    db.terminate()
    db = await connect(own_settings)
    assert await db.fetchval("SELECT pg_postmaster_start_time()") == started
    assert await db.fetchval("SELECT system_identifier FROM pg_control_system()") == identifier
    assert (await own_database.now()).epoch == second
    await db.close()

    own_postgres.stop()
    own_postgres.start()
    third = await next_epoch(own_database, previous=second)
    assert len({first, second, third}) == 3
    own_postgres.kill()
    own_postgres.start()
    fourth = await next_epoch(own_database, previous=third)
    assert len({first, second, third, fourth}) == 4


async def test_databases_of_one_server_have_different_epochs(settings: Settings, database: Database) -> None:
    admin = settings.model_copy(update={"db_name": "postgres"})
    other = settings.model_copy(update={"db_name": f"{settings.db_name}_2"})
    before = await database.now()
    await database.close()
    sql(admin, f"CREATE DATABASE {other.db_name} TEMPLATE {settings.db_name}")
    other_database = database_from(other)
    await other_database.open()
    try:
        assert (await other_database.now()).epoch != before.epoch
        assert (
            await other_database.change_log.changes_since((await other_database.now()).snapshot, None, PLENTY)
        ).reaches
    finally:
        await other_database.close()
        sql(admin, f"DROP DATABASE {other.db_name} WITH (FORCE)")


async def test_databases_of_two_servers_differ_even_if_their_numbers_are_equal(
    settings: Settings, own_settings: Settings
) -> None:
    """PostgreSQL numbers the databases of each server from 16384 up, so that numbers repeat."""
    epochs = []
    for server in (settings, own_settings):
        admin = server.model_copy(update={"db_name": "postgres"})
        name = f"numbered_{uuid.uuid4().hex[:12]}"
        sql(admin, f"CREATE DATABASE {name} TEMPLATE {server.db_name} OID = 4000000")
        numbered = database_from(server.model_copy(update={"db_name": name}))
        await numbered.open()
        try:
            epochs.append((await numbered.now()).epoch)
        finally:
            await numbered.close()
            sql(admin, f"DROP DATABASE {name} WITH (FORCE)")
    assert epochs[0].split("/")[1] == epochs[1].split("/")[1] == "4000000"
    assert not same_database(*epochs)


@pytest.fixture
def standby(own_postgres: EmbeddedPostgres, own_settings: Settings) -> Iterator[Settings]:
    """The settings for a streaming standby of the server that the test may stop."""
    server = own_postgres
    folder = server.home / "standby"
    folder.mkdir(mode=0o700)
    if server.account is not None:
        os.chown(folder, *server.account)
    source = f"host={HOST} port={server.port} user={server.user} password={server.password}"
    command = [str(server.programs / "pg_basebackup"), "-D", str(folder)]
    done = run([*command, "-R", "-X", "stream", "-c", "fast", "-N", "-d", source], server.account)
    assert done.returncode == 0, done.stderr
    port = free_port()
    options = {"port": port, "listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off"}
    with (server.folder / "standby.log").open("wb") as log:
        process = subprocess.Popen(
            [str(server.programs / "postgres"), "-D", str(folder)]
            + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
            stdout=log,
            stderr=log,
            start_new_session=True,
            **popen_options(server.account),
        )
    try:
        yield own_settings.model_copy(update={"db_port": port})
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


async def test_a_standby_is_rejected_until_it_is_promoted(own_database: Database, standby: Settings) -> None:
    on_standby = database_from(standby)
    await on_standby.open()
    try:
        message = ""

        async def reports_a_standby() -> bool:
            nonlocal message
            try:
                await on_standby.now()
            except DatabaseUnavailable as error:
                message = str(error)
            else:
                pytest.fail("a standby has answered")
            return "standby" in message

        await until(reports_a_standby, "the standby is up")
        snapshot = (await own_database.now()).snapshot
        for call in (
            on_standby.now(),
            on_standby.users.top(1),
            on_standby.rank_index.standings([ContextQuery(1)], count=True),
            on_standby.rank_index.page(PageQuery(10)),
            on_standby.change_log.changes_since(snapshot, None, 10),
            on_standby.scores.set([NewScore(1, 1)]),
            on_standby.check_schema(),
        ):
            with pytest.raises(DatabaseReadOnly):
                await call

        connection = await connect(standby)
        assert await connection.fetchval("SELECT database_epoch()") is None
        await connection.execute("SELECT pg_promote()")
        await connection.close()
        assert (await on_standby.now()).epoch != (await own_database.now()).epoch
    finally:
        await on_standby.close()
