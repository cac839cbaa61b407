"""Settings: every one has its default, its bounds and a one-line refusal, and no secret is ever told."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import SecretStr

from leaderboard import config, credentials, redis_url
from leaderboard.config import BadSetting, Settings, allowed_values, load
from leaderboard.http.routes import ROUTES
from tests.deploy.certificates import Authority

DEFAULTS: dict[str, Any] = {
    "PORT": 3000,
    "DB_HOST": "postgres",
    "DB_PORT": 5432,
    "DB_NAME": "leaderboard",
    "DB_USER": "postgres",
    "DB_PASSWORD": "password",  # pragma: allowlist secret
    "DATABASE_URL": "",
    "DB_SSLMODE": "prefer",
    "DB_SSLROOTCERT": "",
    "DB_SSLCERT": "",
    "DB_SSLKEY": "",
    "REDIS_URL": "redis://redis:6379",
    "REDIS_PASSWORD": "",
    "REDIS_SENTINEL_PASSWORD": "",
    "REDIS_SSLMODE": "verify-full",
    "REDIS_SSLROOTCERT": "",
    "REDIS_SSLCERT": "",
    "REDIS_SSLKEY": "",
    "API_KEYS": "",
    "JWT_ALGORITHMS": "",
    "JWT_KEY": "",
    "JWT_AUDIENCE": "",
    "JWT_ISSUER": "",
    "READS": "open",
    "ALLOW_USER_WRITES": "off",
    "RATE_LIMIT_PER_KEY": "",
    "RATE_LIMIT_PER_ADDRESS": "",
    "TRUSTED_PROXIES": "",
    "ALLOWED_HOSTS": "",
    "ROOT_PATH": "",
    "HOST": "0.0.0.0",
    "WORKERS": 1,
    "CACHE_SIZE": 10_000,
    "MAX_TOP_N": 100_000,
    "SYNC_INTERVAL_MS": 300,
    "AUDIT_INTERVAL_S": 60,
    "STALE_READS": "on",
    "READY_WITHOUT_WRITES_S": 300,
    "DB_POOL_SIZE": 12,
    "DB_TIMEOUT_MS": 3000,
    "REDIS_TIMEOUT_MS": 200,
    "QUEUE_LIMIT": 10_000,
    "REQUEST_TIMEOUT_MS": 5000,
    "IDLE_TIMEOUT_MS": 30_000,
    "MAX_CONNECTIONS": 4096,
    "STOP_DELAY_MS": 3000,
    "IDEMPOTENCY_KEYS_PER_CALLER": 5_000_000,
    "IDEMPOTENCY_KEYS": 10_000_000,
    "PAGE_IMAGES": "",
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "json",
}
BOUNDS: dict[str, tuple[int, int]] = {
    "PORT": (1, 65_535),
    "DB_PORT": (1, 65_535),
    "WORKERS": (1, 64),
    "CACHE_SIZE": (10, 100_000),
    "MAX_TOP_N": (1, 100_000),
    "SYNC_INTERVAL_MS": (50, 400),
    "AUDIT_INTERVAL_S": (0, 86_400),
    "READY_WITHOUT_WRITES_S": (0, 86_400),
    "DB_POOL_SIZE": (10, 200),
    "DB_TIMEOUT_MS": (100, 60_000),
    "REDIS_TIMEOUT_MS": (10, 5000),
    "QUEUE_LIMIT": (1, 1_000_000),
    "REQUEST_TIMEOUT_MS": (100, 60_000),
    "IDLE_TIMEOUT_MS": (100, 60_000),
    "MAX_CONNECTIONS": (16, 100_000),
    "STOP_DELAY_MS": (0, 60_000),
    "IDEMPOTENCY_KEYS_PER_CALLER": (1, 100_000_000),
    "IDEMPOTENCY_KEYS": (1, 100_000_000),
}
CHOICES = {
    "DB_SSLMODE": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "REDIS_SSLMODE": ("require", "verify-ca", "verify-full"),
    "STALE_READS": ("on", "off"),
    "READS": ("open", "key"),
    "ALLOW_USER_WRITES": ("on", "off"),
    "LOG_LEVEL": ("debug", "info", "warning", "error"),
    "LOG_FORMAT": ("json", "text"),
}
NOT_EMPTY = ("DB_HOST", "DB_NAME", "DB_USER", "HOST")
SECRETS = (
    "DB_PASSWORD",
    "DATABASE_URL",
    "REDIS_URL",
    "REDIS_PASSWORD",
    "REDIS_SENTINEL_PASSWORD",
    "API_KEYS",
    "JWT_KEY",
)
PASSWORD = "correct-horse-battery"  # pragma: allowlist secret
FILES = (
    "DB_SSLROOTCERT",
    "DB_SSLCERT",
    "DB_SSLKEY",
    "REDIS_SSLROOTCERT",
    "REDIS_SSLCERT",
    "REDIS_SSLKEY",
)
"""Files of certificates: `test_tls_files_are_checked` has them."""
OTHERS = {
    "DATABASE_URL": "postgresql:///",
    "REDIS_URL": "rediss://:x@elsewhere:1/2",
    "PAGE_IMAGES": "https: http://a.example/",
    "API_KEYS": "reader:read:" + PASSWORD,  # pragma: allowlist secret
    "JWT_ALGORITHMS": "HS256 HS384",
    "JWT_KEY": "a secret of no fewer than forty-eight characters",
    "RATE_LIMIT_PER_KEY": "100/second",
    "RATE_LIMIT_PER_ADDRESS": "10000/hour",
    "TRUSTED_PROXIES": "10.0.0.0/8 fd00::1",
    "ALLOWED_HOSTS": "board.example [::1]",
    "ROOT_PATH": "/games/board",
}
"""Values that texts with a form of their own may have."""
NEEDED = {"JWT_ALGORITHMS": "JWT_KEY", "JWT_KEY": "JWT_ALGORITHMS", "READS": "API_KEYS"}
"""What must be set as well."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting in the environment, and no `.env`."""
    for name in list(os.environ):
        if name.upper() in DEFAULTS:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def value_of(settings: Settings, name: str) -> Any:
    value = getattr(settings, name.lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def refusal(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting) as caught:
        load()
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "the context would tell the value"
    return line


def test_the_defaults() -> None:
    settings = load()
    assert {name.upper(): value_of(settings, name) for name in Settings.model_fields} == DEFAULTS


def test_every_setting_has_limits_that_are_tested_here() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description
        if get_origin(field.annotation) is not None:
            assert get_args(field.annotation) == CHOICES[name.upper()]
        elif field.annotation in {int, float}:
            limits = {
                kind: getattr(limit, kind)
                for limit in field.metadata
                for kind in ("ge", "le")
                if hasattr(limit, kind)
            }
            assert (limits["ge"], limits["le"]) == BOUNDS[name.upper()]
        else:
            assert name.upper() in {*NOT_EMPTY, *SECRETS, *OTHERS, *FILES, "JWT_AUDIENCE", "JWT_ISSUER"}


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name not in FILES])
def test_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value: Any
    if name in BOUNDS:
        value = BOUNDS[name][0] + 1
    elif name in CHOICES:
        value = CHOICES[name][-1]
    else:
        value = OTHERS.get(name, "other")
    monkeypatch.setenv(name, str(value))
    if needed := NEEDED.get(name):
        monkeypatch.setenv(needed, OTHERS[needed])
    settings = load()
    assert value_of(settings, name) == value
    others = {other.upper(): value_of(settings, other) for other in Settings.model_fields}
    assert others | {each: DEFAULTS[each] for each in (name, needed) if each} == DEFAULTS


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_is_taken_from_its_least_to_its_greatest(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    least, greatest = BOUNDS[name]
    for value in (least, greatest):
        monkeypatch.setenv(name, str(value))
        assert value_of(load(), name) == value
    kind = "a number" if name == "AUDIT_INTERVAL_S" else "an integer"
    for bad in (str(least - 1), str(greatest + 1), "", "many", "1e99", "nan", "inf", "0x10", "1;2", "-5", "1,000"):
        assert refusal(monkeypatch, name, bad) == f"{name}='{bad}': must be {kind} from {least} to {greatest}"


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_those_it_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if needed := NEEDED.get(name):
        monkeypatch.setenv(needed, OTHERS[needed])
    for value in CHOICES[name]:
        monkeypatch.setenv(name, value)
        assert value_of(load(), name) == value
    for bad in ("", CHOICES[name][0].upper(), "true", "x\ny", " " + CHOICES[name][0]):
        assert refusal(monkeypatch, name, bad) == f"{name}={bad!r}: must be one of {', '.join(CHOICES[name])}"


@pytest.mark.parametrize("name", NOT_EMPTY)
def test_a_name_is_not_empty(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert refusal(monkeypatch, name, "") == f"{name}='': must be a text that is not blank"


BLANKS = (" ", "\n", "\t", "\r\n", " \n ", "\N{NO-BREAK SPACE}")
"""What a template or a mounted file leaves where the value was missing."""


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_a_value_that_is_blank_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, blank: str) -> None:
    """Taken for "not set", it would open what the setting was to close."""
    if needed := NEEDED.get(name):
        monkeypatch.setenv(needed, OTHERS[needed])
    line = refusal(monkeypatch, name, blank)
    assert line.startswith(f"{name}={'(hidden)' if name in SECRETS else repr(blank)}: must be ")


@pytest.mark.parametrize("name", ["JWT_ALGORITHMS", "JWT_KEY"])
def test_the_blank_half_of_a_pair_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert refusal(monkeypatch, name, " ").startswith(f"{name}=")


@pytest.mark.parametrize("separators", [",", ", ,", ",\n", "\n,,\n"], ids=ascii)
def test_keys_that_are_separators_alone_are_refused(monkeypatch: pytest.MonkeyPatch, separators: str) -> None:
    line = refusal(monkeypatch, "API_KEYS", separators)
    assert line == f"API_KEYS=(hidden): must be empty, or at least one entry: {credentials.ALLOWED}"
    monkeypatch.setenv("READS", "key")
    assert refusal(monkeypatch, "API_KEYS", separators) == line


def test_a_line_end_written_out_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "empty, or a secret or a public key" in refusal(monkeypatch, "JWT_KEY", "\\n")


def test_an_empty_value_is_a_value_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that list every variable, such as `.env.example`, have them empty."""
    empty = [name for name in DEFAULTS if DEFAULTS[name] == ""]
    for name in empty:
        monkeypatch.setenv(name, "")
    assert {name: value_of(load(), name) for name in empty} == dict.fromkeys(empty, "")


@pytest.mark.parametrize("bad", ["*", "https://x", "data:", "https:; script-src *", "'self'", "https://x/y/"])
def test_images_come_from_sources(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    line = refusal(monkeypatch, "PAGE_IMAGES", bad)
    assert line.startswith(f"PAGE_IMAGES={bad!r}: must be empty, or sources like https:")


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
def test_a_redis_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
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
def test_a_bad_redis_url_is_refused_but_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    line = refusal(monkeypatch, "REDIS_URL", url.format(PASSWORD))
    assert line == f"REDIS_URL=(hidden): must be {redis_url.ALLOWED}"


@pytest.mark.parametrize("url", ["redis://h:99999", "redis://h:port", "redis://u:{}@h:0x1"])
def test_a_redis_url_has_a_port_that_can_be(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert "must be a URL" in refusal(monkeypatch, "REDIS_URL", url.format(PASSWORD))


@pytest.mark.parametrize(
    "url", ["redis://", "redis://:6379", "rediss://u:{}@:6379/0", "redis:///0", "unix://", "unix:"]
)
def test_a_redis_url_says_where(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The client would go to this machine, where the host is missing from a template."""
    assert "must be a URL" in refusal(monkeypatch, "REDIS_URL", url.format(PASSWORD))


def test_a_redis_url_that_cannot_be_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must be a URL" in refusal(monkeypatch, "REDIS_URL", f"redis://u:{PASSWORD}@[::1")


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
def test_an_entry_of_the_keys_that_cannot_be_used_is_named_by_its_number_only(
    monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    first, second = "plain-" + PASSWORD, PASSWORD.replace("horse", "donkey")
    line = refusal(monkeypatch, "API_KEYS", entries.format(first, second))
    assert line == f"API_KEYS=(hidden), entry 2: must be {credentials.ALLOWED}"
    assert second not in line


def test_a_key_or_a_name_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    again = hashlib.sha256(PASSWORD.encode()).hexdigest()
    for entries in (
        f"{PASSWORD},b:read:{PASSWORD}",
        f"{PASSWORD},sha256:{again}",
        f"a:read:{PASSWORD},a:read:{again}",
    ):
        line = refusal(monkeypatch, "API_KEYS", entries)
        assert line == "API_KEYS=(hidden), entry 2: must be a key and a name that no entry before it has"


def test_users_tokens_need_a_key_and_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        refusal(monkeypatch, "JWT_KEY", PASSWORD)
        == "JWT_KEY=(hidden): must be set together with JWT_ALGORITHMS, or neither"
    )
    monkeypatch.delenv("JWT_KEY")
    assert refusal(monkeypatch, "JWT_ALGORITHMS", "ES256").startswith("JWT_KEY=(hidden): must be set together")
    for bad in ("none", "HS256,none", "HS256 none", "hs256", "ES256K", "RS257"):
        assert refusal(monkeypatch, "JWT_ALGORITHMS", bad).startswith(
            f"JWT_ALGORITHMS={bad!r}: must be empty, or some of"
        )


def test_reads_with_a_key_need_some_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(monkeypatch, "READS", "key")
    assert line == "READS='key': must be open unless API_KEYS or JWT_KEY is set, as nobody could read"
    # The first thing that is wrong is what is told.
    assert refusal(monkeypatch, "API_KEYS", "x").startswith("API_KEYS=(hidden), entry 1")


@pytest.mark.parametrize("name", ["RATE_LIMIT_PER_KEY", "RATE_LIMIT_PER_ADDRESS"])
def test_a_rate_limit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert [config.rate(text) for text in ("", "1/second", "90/minute", "10000/hour")] == [
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
        line = refusal(monkeypatch, name, bad)
        assert line.startswith(f"{name}={bad!r}: must be empty, or 1 to 10000 requests a second, minute or hour")


def test_trusted_proxies_are_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [str(network) for network in config.networks("10.0.0.0/8  ::1")] == ["10.0.0.0/8", "::1/128"]
    for bad in ("10.0.0.1/8", "proxy", "10.0.0.0/33", "10.0.0.0/8,::1", ",", ", ,"):
        line = refusal(monkeypatch, "TRUSTED_PROXIES", bad)
        assert line.startswith(f"TRUSTED_PROXIES={bad!r}: must be empty, or networks like 10.0.0.0/8")


def test_hosts_are_names_without_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.host_names(" Board.Example  127.0.0.1 [FD00::1] a_b ") == {
        *("board.example", "127.0.0.1", "[fd00::1]", "a_b"),
    }
    assert config.host_names("") == frozenset()
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
        line = refusal(monkeypatch, "ALLOWED_HOSTS", bad)
        assert line.startswith(f"ALLOWED_HOSTS={bad!r}: must be empty, or hosts without a port")


@pytest.mark.parametrize(
    "path", ["/lb", "/games/board", "/a.b_c~d-1", "/...", "/games/users", "/usersx", "/Users"]
)
def test_a_root_path(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
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
def test_a_root_path_is_refused_that_a_client_would_write_otherwise(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    line = refusal(monkeypatch, "ROOT_PATH", path)
    assert line.startswith(f"ROOT_PATH={path!r}: must be empty, or a path like /lb or /games/board")


@pytest.mark.parametrize("first", sorted({route.path.split("/")[1] for route in ROUTES} - {""}))
def test_a_root_path_does_not_begin_as_a_path_of_our_own(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """A proxy may remove the prefix: `/users/7` would then mean two things."""
    for path in (f"/{first}", f"/{first}/lb"):
        assert first in refusal(monkeypatch, "ROOT_PATH", path).partition("its first part none of ")[2].split(", ")


def test_secrets_are_not_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("REDIS_URL", f"redis://user:{PASSWORD}@h:1")
    monkeypatch.setenv("API_KEYS", f"reader:read:{PASSWORD}")
    monkeypatch.setenv("JWT_ALGORITHMS", "HS256")
    monkeypatch.setenv("JWT_KEY", PASSWORD * 2)
    settings = load()
    assert value_of(settings, "DB_PASSWORD") == PASSWORD
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("leaderboard").warning("%s %r %s", settings, settings, settings.model_dump())
    shown = (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(), caplog.text)
    assert not [text for text in shown if PASSWORD in text]
    # Nor beside a refusal of something else.
    assert PASSWORD not in refusal(monkeypatch, "PORT", "0")


def test_the_first_of_several_bad_values_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_SIZE", "9")
    assert refusal(monkeypatch, "WORKERS", "0").startswith("WORKERS='0'")


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1234")
    assert load(port=4321).port == 4321
    with pytest.raises(BadSetting, match="PORT=0: must be an integer from 1 to 65535"):
        load(port=0)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 5


def test_a_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# a comment\n\nPORT=4000\nDB_NAME='from the file'\nexport DB_USER=\"müller\"\nSOMEBODY_ELSES=1\n",
        "utf-8",
    )
    monkeypatch.setenv("PORT", "5000")
    settings = load()
    assert (settings.port, settings.db_name, settings.db_user) == (5000, "from the file", "müller")
    assert load(env_file=None).db_name == DEFAULTS["DB_NAME"]


def test_a_bad_value_in_the_file_is_refused_alike(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"REDIS_URL=http://u:{PASSWORD}@h\n")
    with pytest.raises(BadSetting, match=r"^REDIS_URL=\(hidden\): must be a URL"):
        load()
    (tmp_path / ".env").write_text("CACHE_SIZE=none\n")
    with pytest.raises(BadSetting, match=r"^CACHE_SIZE='none': must be an integer from 10 to 100000$"):
        load()


def test_a_file_that_is_not_utf8_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"DB_NAME=m\xfcller\n")
    with pytest.raises(BadSetting, match=r"\.env"):
        load()


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["sync"], ["verify"], ["import", "-"], ["dev"]])
def test_every_command_stops_with_that_line(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", *command],
        env={"PATH": os.environ["PATH"], "LOG_LEVEL": "loud", "DB_PASSWORD": PASSWORD},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "leaderboard: LOG_LEVEL='loud': must be one of debug, info, warning, error\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_process_does_not_start_with_keys_that_are_blank(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "serve"],
        env={"PATH": os.environ["PATH"], "API_KEYS": ", ,\n"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    line = f"leaderboard: API_KEYS=(hidden): must be empty, or at least one entry: {credentials.ALLOWED}\n"
    assert done.stderr == line


def test_the_command_that_makes_keys_prints_one_and_its_entry(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "leaderboard", "key", *options],
            env={"PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = run("--name", "game", "--scopes", "read+admin")
    assert (done.returncode, done.stderr) == (0, "")
    made, entry = (line.split()[1] for line in done.stdout.splitlines())
    assert entry.startswith("game:read+admin:sha256:")
    assert made not in entry
    found = credentials.KeyRing(credentials.parse_keys(entry)).find(made.encode())
    assert found is not None
    assert (found.name, sorted(found.scopes)) == ("game", ["admin", "read"])
    refused = run("--scopes", "all")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert "SCOPES are read, write and admin" in refused.stderr


def test_what_is_allowed_is_said_of_every_setting_that_can_be_bad() -> None:
    for name, (least, greatest) in BOUNDS.items():
        assert allowed_values(name.lower()).endswith(f"from {least} to {greatest}")
    for name, choices in CHOICES.items():
        assert allowed_values(name.lower()) == f"one of {', '.join(choices)}"


@pytest.mark.parametrize("source", ["*", "https://x/; script-src *", "https://x", "data:", "'unsafe-inline'"])
def test_an_image_source_cannot_widen_the_policy_of_the_page(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    assert "must be empty, or sources like https:" in refusal(monkeypatch, "PAGE_IMAGES", source)


# TLS and the URL of PostgreSQL


def test_tls_files_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    _, another_key = authority.issue("another")
    unreadable = "must be empty, or a file that can be read"
    assert unreadable in refusal(monkeypatch, "DB_SSLROOTCERT", "/nowhere")
    assert unreadable in refusal(monkeypatch, "DB_SSLROOTCERT", str(key))
    assert "unless DB_SSLMODE is" in refusal(monkeypatch, "DB_SSLROOTCERT", str(authority.file))
    monkeypatch.setenv("DB_SSLMODE", "verify-full")
    monkeypatch.setenv("DB_SSLROOTCERT", str(authority.file))
    assert unreadable in refusal(monkeypatch, "DB_SSLCERT", "/nowhere")
    monkeypatch.delenv("DB_SSLCERT")
    assert "set together with DB_SSLCERT" in refusal(monkeypatch, "DB_SSLKEY", str(key))
    monkeypatch.setenv("DB_SSLCERT", str(certificate))
    assert unreadable in refusal(monkeypatch, "DB_SSLKEY", str(another_key))
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
    assert needs_tls in refusal(monkeypatch, "REDIS_SSLROOTCERT", str(authority.file))
    monkeypatch.setenv("REDIS_SSLCERT", str(certificate))
    monkeypatch.delenv("REDIS_SSLROOTCERT")
    assert needs_tls in refusal(monkeypatch, "REDIS_SSLKEY", str(key))
    monkeypatch.setenv("REDIS_URL", "rediss://h")
    assert load().redis_sslkey == str(key)
    monkeypatch.setenv("REDIS_SSLMODE", "require")
    assert "unless REDIS_SSLMODE is" in refusal(monkeypatch, "REDIS_SSLROOTCERT", str(authority.file))


def test_a_url_stands_for_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgres://b%40b:p%40ss%3A%23@db.example:5433/board?sslmode=require"  # pragma: allowlist secret
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DB_HOST", "elsewhere")
    settings = load()
    named = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSLMODE")
    values = ("db.example", 5433, "board", "b@b", "p@ss:#", "require")
    assert tuple(value_of(settings, name) for name in named) == values


def test_what_a_url_does_not_say_stays(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_url_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    line = refusal(monkeypatch, "DATABASE_URL", url)
    assert line.startswith("DATABASE_URL=(hidden): must be empty, or a URL like postgresql://")
    assert PASSWORD not in line


def test_the_parts_of_a_url_are_checked_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(monkeypatch, "DATABASE_URL", "postgresql://db.example/board?sslmode=maybe")
    assert line.startswith("DB_SSLMODE='maybe': must be one of disable, ")
