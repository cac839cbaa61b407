"""The settings of the connections: the URLs of Redis and PostgreSQL, and files for TLS."""

from pathlib import Path

import pytest

from leaderboard import redis_url
from leaderboard.config import load
from tests.cli.settings import PASSWORD, error_for, value_of
from tests.deploy.certificates import Authority

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://[::1]:7000,h-2",
        "rediss://u:p@h:6380/1",
        "rediss+sentinel://a,b:26380/board",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_good_redis_urls(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert value_of(load(), "REDIS_URL") == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "localhost:6379",
        "http://{}@h",
        "//{}@h",
        "{}",
        "redis://:{}%@h",
        "redis://:{}@h/x",
        "redis://:{}@h/0?ssl_cert_reqs=none",
        "redis://:{}@h,",
        "redis+sentinel://:{}@h",
        "redis+sentinel://:{}@h/board/x",
        "redis+cluster://:{}@h",
        "unix:///{}?x=1",
        "unix://{}/redis.sock",
    ],
)
def test_a_bad_redis_url_is_rejected_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    line = error_for(monkeypatch, "REDIS_URL", url.format(PASSWORD))
    assert line == f"REDIS_URL=(hidden): must be {redis_url.ALLOWED}"


@pytest.mark.parametrize("url", ["redis://h:99999", "redis://h:port", "redis://u:{}@h:0x1"])
def test_a_redis_url_has_a_valid_port(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert "must be a URL" in error_for(monkeypatch, "REDIS_URL", url.format(PASSWORD))


@pytest.mark.parametrize(
    "url", ["redis://", "redis://:6379", "rediss://u:{}@:6379/0", "redis:///0", "unix://", "unix:"]
)
def test_a_redis_url_has_a_host_or_a_socket(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Where a template lacks the host, the client would connect to this machine."""
    assert "must be a URL" in error_for(monkeypatch, "REDIS_URL", url.format(PASSWORD))


def test_a_redis_url_with_an_open_bracket_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must be a URL" in error_for(monkeypatch, "REDIS_URL", f"redis://u:{PASSWORD}@[::1")


def test_tls_files_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    _, another_key = authority.issue("another")
    unreadable = "must be empty, or a file that can be read"
    assert unreadable in error_for(monkeypatch, "DB_SSLROOTCERT", "/nowhere")
    assert unreadable in error_for(monkeypatch, "DB_SSLROOTCERT", str(key))
    assert "unless DB_SSLMODE is" in error_for(monkeypatch, "DB_SSLROOTCERT", str(authority.file))
    monkeypatch.setenv("DB_SSLMODE", "verify-full")
    monkeypatch.setenv("DB_SSLROOTCERT", str(authority.file))
    assert unreadable in error_for(monkeypatch, "DB_SSLCERT", "/nowhere")
    monkeypatch.delenv("DB_SSLCERT")
    assert "set together with DB_SSLCERT" in error_for(monkeypatch, "DB_SSLKEY", str(key))
    monkeypatch.setenv("DB_SSLCERT", str(certificate))
    assert unreadable in error_for(monkeypatch, "DB_SSLKEY", str(another_key))
    monkeypatch.setenv("DB_SSLKEY", str(key))
    settings = load()
    assert [settings.db_sslrootcert, settings.db_sslcert, settings.db_sslkey] == [
        str(authority.file),
        str(certificate),
        str(key),
    ]


def test_tls_files_for_redis_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    needs_tls = "unless REDIS_URL begins with rediss"
    assert needs_tls in error_for(monkeypatch, "REDIS_SSLROOTCERT", str(authority.file))
    monkeypatch.setenv("REDIS_SSLCERT", str(certificate))
    monkeypatch.delenv("REDIS_SSLROOTCERT")
    assert needs_tls in error_for(monkeypatch, "REDIS_SSLKEY", str(key))
    monkeypatch.setenv("REDIS_URL", "rediss://h")
    assert load().redis_sslkey == str(key)
    monkeypatch.setenv("REDIS_SSLMODE", "require")
    assert "unless REDIS_SSLMODE is" in error_for(monkeypatch, "REDIS_SSLROOTCERT", str(authority.file))


def test_a_postgres_url_overrides_the_settings_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgres://b%40b:p%40ss%3A%23@db.example:5433/board?sslmode=require"  # pragma: allowlist secret
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DB_HOST", "elsewhere")
    settings = load()
    named = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSLMODE")
    values = ("db.example", 5433, "board", "b@b", "p@ss:#", "require")
    assert tuple(value_of(settings, name) for name in named) == values


def test_a_postgres_url_leaves_other_settings_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example")
    monkeypatch.setenv("DB_NAME", "board")
    settings = load()
    assert (settings.db_host, settings.db_port, settings.db_name) == ("db.example", 5432, "board")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://db.example/board",
        "db.example:5432/board",
        "postgresql://db.example:99999/board",
        "postgresql://one.example,two.example/board",
        "postgresql://db.example/board?options=-cjit%3Doff",
        "postgresql://db.example/board?sslmode=require&sslmode=disable",
        "postgresql://db.example/board#part",
        f"postgresql://me:{PASSWORD}@[db.example/board",
    ],
)
def test_bad_postgres_urls_are_rejected(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    line = error_for(monkeypatch, "DATABASE_URL", url)
    assert line.startswith("DATABASE_URL=(hidden): must be empty, or a URL like postgresql://")
    assert PASSWORD not in line


def test_the_parts_of_a_postgres_url_are_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    line = error_for(monkeypatch, "DATABASE_URL", "postgresql://db.example/board?sslmode=maybe")
    assert line.startswith("DB_SSLMODE='maybe': must be one of disable, ")
