"""Settings that are texts with a format: keys, lists, rates and paths."""

import hashlib

import pytest

from leaderboard import credentials, setting_formats
from leaderboard.config import load
from leaderboard.http.routes import ROUTES
from tests.cli.settings import PASSWORD, error_for

pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.mark.parametrize("separators", [",", ", ,", ",\n", "\n,,\n"], ids=ascii)
def test_api_keys_of_separators_alone_are_rejected(monkeypatch: pytest.MonkeyPatch, separators: str) -> None:
    line = error_for(monkeypatch, "API_KEYS", separators)
    assert line == f"API_KEYS=(hidden): must be empty, or at least one entry: {credentials.ALLOWED}"
    monkeypatch.setenv("READS", "key")
    assert error_for(monkeypatch, "API_KEYS", separators) == line


def test_an_escaped_line_end_is_no_jwt_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "empty, or a secret or a public key" in error_for(monkeypatch, "JWT_KEY", "\\n")


@pytest.mark.parametrize("bad", ["*", "https://x", "data:", "https:; script-src *", "'self'", "https://x/y/"])
def test_bad_image_sources_are_rejected(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    line = error_for(monkeypatch, "PAGE_IMAGES", bad)
    assert line.startswith(f"PAGE_IMAGES={bad!r}: must be empty, or sources like https:")


@pytest.mark.parametrize(
    "entries",
    [
        "{0}, short",
        "{0} a:b:c:{1}",
        "{0},name:{1}",
        "{0},{1}:name:read",
        "{0},reader:read+:{1}",
        "{0},reader:all:{1}",
        "{0},reader:read+read:{1}",
        "{0},Reader:read:{1}",
        "{0},reader::{1}",
        "{0},sha256:{1}",
        "{0},reader:read:sha256:" + "F" * 64,
        "{0},{1};{1}",
    ],
)
def test_a_bad_entry_of_api_keys_is_named_by_its_number_only(
    monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    first, second = "plain-" + PASSWORD, PASSWORD.replace("horse", "donkey")
    line = error_for(monkeypatch, "API_KEYS", entries.format(first, second))
    assert line == f"API_KEYS=(hidden), entry 2: must be {credentials.ALLOWED}"
    assert second not in line


def test_a_key_or_a_name_that_occurs_twice_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    again = hashlib.sha256(PASSWORD.encode()).hexdigest()
    for entries in (
        f"{PASSWORD},b:read:{PASSWORD}",
        f"{PASSWORD},sha256:{again}",
        f"a:read:{PASSWORD},a:read:{again}",
    ):
        line = error_for(monkeypatch, "API_KEYS", entries)
        assert line == "API_KEYS=(hidden), entry 2: must be a key and a name that no entry before it has"


def test_users_tokens_need_a_key_and_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        error_for(monkeypatch, "JWT_KEY", PASSWORD)
        == "JWT_KEY=(hidden): must be set together with JWT_ALGORITHMS, or neither"
    )
    monkeypatch.delenv("JWT_KEY")
    assert error_for(monkeypatch, "JWT_ALGORITHMS", "ES256").startswith("JWT_KEY=(hidden): must be set together")
    for bad in ("none", "HS256,none", "HS256 none", "hs256", "ES256K", "RS257"):
        assert error_for(monkeypatch, "JWT_ALGORITHMS", bad).startswith(
            f"JWT_ALGORITHMS={bad!r}: must be empty, or some of"
        )


def test_reads_by_key_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    line = error_for(monkeypatch, "READS", "key")
    assert line.startswith("READS='key': must be open unless API_KEYS or JWT_KEY is set")
    # The first error is reported.
    assert error_for(monkeypatch, "API_KEYS", "x").startswith("API_KEYS=(hidden), entry 1")


@pytest.mark.parametrize("name", ["RATE_LIMIT_PER_KEY", "RATE_LIMIT_PER_ADDRESS"])
def test_rate_limits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert [setting_formats.rate(text) for text in ("", "1/second", "90/minute", "10000/hour")] == [
        None,
        (1, 1),
        (90, 60),
        (10_000, 3600),
    ]
    for bad in (
        "0/second",
        "10001/second",
        "5",
        "5/day",
        "5 / second",
        "-1/second",
        "1e2/second",
        "٣/second",
        "5/second\n",
    ):
        line = error_for(monkeypatch, name, bad)
        assert line.startswith(f"{name}={bad!r}: must be empty, or 1 to 10000 requests a second, minute or hour")


def test_trusted_proxies_are_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [str(network) for network in setting_formats.networks("10.0.0.0/8  ::1")] == ["10.0.0.0/8", "::1/128"]
    for bad in ("10.0.0.1/8", "proxy", "10.0.0.0/33", "10.0.0.0/8,::1", ",", ", ,"):
        line = error_for(monkeypatch, "TRUSTED_PROXIES", bad)
        assert line.startswith(f"TRUSTED_PROXIES={bad!r}: must be empty, or networks like 10.0.0.0/8")


def test_hosts_are_names_without_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting_formats.host_names(" Board.Example  127.0.0.1 [FD00::1] a_b ") == {
        *("board.example", "127.0.0.1", "[fd00::1]", "a_b"),
    }
    assert setting_formats.host_names("") == frozenset()
    for bad in (
        "*",
        "*.example",
        "a:80",
        "[::1]:80",
        "::1",
        "a,b",
        "http://a",
        "a/",
        "\u00fc.example",
        ",",
        "a b:1",
    ):
        line = error_for(monkeypatch, "ALLOWED_HOSTS", bad)
        assert line.startswith(f"ALLOWED_HOSTS={bad!r}: must be empty, or hosts without a port")


def test_origins_are_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " HTTPS://Game.Example:443  http://localhost:8080 http://[0:0::1] capacitor://localhost https://a:80 "
    assert setting_formats.origins(text) == {
        *(
            "https://game.example",
            "http://localhost:8080",
            "http://[::1]",
            "capacitor://localhost",
            "https://a:80",
        ),
    }
    assert setting_formats.origins("") == frozenset()
    assert setting_formats.origins(" * ") == {"*"}
    monkeypatch.setenv("CORS_ORIGINS", text)
    assert load().cors_origins == text


@pytest.mark.parametrize(
    "bad",
    [
        *("https://a.example/", "https://a.example/path", "https://a.example?x", "https://a.example#x"),
        *(
            "a.example",
            "a.example:80",
            "//a.example",
            "://a",
            "https://",
            "https:a.example",
            "null",
            "file://",
            "data:",
        ),
        *("https://*.example", "*.example", "https://*", "* https://a.example", "https://a.example *", "* *"),
        *("https://a:0", "https://a:65536", "https://a:080", "https://a:", "https://a:x", "https://::1"),
        *("https://[1]", "https://[::1", "https://u@a.example", "https://u:p@a.example", "https://\u00fc.example"),
        *("https://a.example,https://b.example", "https://a.example;", ",", ", ,", '"https://a.example"', "on"),
    ],
)
def test_what_is_no_origin_is_rejected(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    line = error_for(monkeypatch, "CORS_ORIGINS", bad)
    assert line.startswith(f"CORS_ORIGINS={bad!r}: must be empty, * alone, or origins like https://game.example")


@pytest.mark.parametrize(
    "path", ["/lb", "/games/board", "/a.b_c~d-1", "/...", "/games/users", "/usersx", "/Users"]
)
def test_good_root_paths(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("ROOT_PATH", path)
    assert load().root_path == path


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "lb",
            "lb/",
            "/lb/",
            "//lb",
            "/games//board",
            "/lb?x",
            "/lb#x",
            "/l b",
            "/lb%20",
            "/l\u00e4b",
            "/lb\n",
        ),
        *("/.", "/..", "/lb/../x", "/lb/.", "http://board.example/lb", "/lb,", "/lb;x", "/<lb>", "/$lb", '/"lb'),
    ],
)
def test_a_root_path_that_clients_would_change_is_rejected(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    line = error_for(monkeypatch, "ROOT_PATH", path)
    assert line.startswith(f"ROOT_PATH={path!r}: must be empty, or a path like /lb or /games/board")


@pytest.mark.parametrize("first", sorted({call.path.split("/")[1] for call in ROUTES} - {""}))
def test_a_root_path_does_not_begin_like_our_paths(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Behind a proxy that removes the prefix, `/users/7` would have two meanings."""
    for path in (f"/{first}", f"/{first}/lb"):
        excluded = error_for(monkeypatch, "ROOT_PATH", path).partition("its first part none of ")[2]
        assert first in excluded.split(", ")


@pytest.mark.parametrize("source", ["*", "https://x/; script-src *", "https://x", "data:", "'unsafe-inline'"])
def test_an_image_source_cannot_weaken_the_policy(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    assert "must be empty, or sources like https:" in error_for(monkeypatch, "PAGE_IMAGES", source)
