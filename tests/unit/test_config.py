"""Settings: every one has its default, its bounds and a one-line refusal, and no secret is ever told."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import SecretStr

from leaderboard.config import BadSetting, Settings, allowed_values, load

DEFAULTS: dict[str, Any] = {
    "PORT": 3000,
    "DB_HOST": "postgres",
    "DB_PORT": 5432,
    "DB_NAME": "leaderboard",
    "DB_USER": "postgres",
    "DB_PASSWORD": "password",
    "REDIS_URL": "redis://redis:6379",
    "API_KEYS": "",
    "HOST": "0.0.0.0",
    "WORKERS": 1,
    "CACHE_SIZE": 10_000,
    "MAX_TOP_N": 100_000,
    "SYNC_INTERVAL_MS": 300,
    "AUDIT_INTERVAL_S": 60,
    "STALE_READS": "on",
    "DB_POOL_SIZE": 10,
    "DB_TIMEOUT_MS": 3000,
    "REDIS_TIMEOUT_MS": 200,
    "QUEUE_LIMIT": 10_000,
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
    "DB_POOL_SIZE": (5, 200),
    "DB_TIMEOUT_MS": (100, 60_000),
    "REDIS_TIMEOUT_MS": (10, 5000),
    "QUEUE_LIMIT": (1, 1_000_000),
}
CHOICES = {
    "STALE_READS": ("on", "off"),
    "LOG_LEVEL": ("debug", "info", "warning", "error"),
    "LOG_FORMAT": ("json", "text"),
}
NOT_EMPTY = ("DB_HOST", "DB_NAME", "DB_USER", "HOST")
SECRETS = ("DB_PASSWORD", "REDIS_URL", "API_KEYS")
PASSWORD = "correct-horse-battery"


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
            assert name.upper() in {*NOT_EMPTY, *SECRETS, "PAGE_IMAGES"}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value: Any
    if name in BOUNDS:
        value = BOUNDS[name][0] + 1
    elif name in CHOICES:
        value = CHOICES[name][-1]
    else:
        value = {"REDIS_URL": "rediss://:x@elsewhere:1/2", "PAGE_IMAGES": "https: http://a.example/"}.get(
            name, "other"
        )
    monkeypatch.setenv(name, str(value))
    settings = load()
    assert value_of(settings, name) == value
    others = {other.upper(): value_of(settings, other) for other in Settings.model_fields} | {name: DEFAULTS[name]}
    assert others == DEFAULTS


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
    for value in CHOICES[name]:
        monkeypatch.setenv(name, value)
        assert value_of(load(), name) == value
    for bad in ("", CHOICES[name][0].upper(), "true", "x\ny", " " + CHOICES[name][0]):
        assert refusal(monkeypatch, name, bad) == f"{name}={bad!r}: must be one of {', '.join(CHOICES[name])}"


@pytest.mark.parametrize("name", NOT_EMPTY)
def test_a_name_is_not_empty(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert refusal(monkeypatch, name, "") == f"{name}='': must be a text that is not empty"


@pytest.mark.parametrize("bad", ["*", "https://x", "data:", "https:; script-src *", "'self'", "https://x/y/"])
def test_images_come_from_sources(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    line = refusal(monkeypatch, "PAGE_IMAGES", bad)
    assert line.startswith(f"PAGE_IMAGES={bad!r}: must be empty, or sources like https:")


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:6380/1", "unix:///run/redis.sock?db=1"])
def test_a_redis_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert value_of(load(), "REDIS_URL") == url


@pytest.mark.parametrize("url", ["", "redis", "localhost:6379", "http://{}@h", "//{}@h", "{}"])
def test_a_bad_redis_url_is_refused_but_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    line = refusal(monkeypatch, "REDIS_URL", url.format(PASSWORD))
    allowed = "a URL such as redis://host:6379, rediss://… or unix://…, its port from 1 to 65535"
    assert line == f"REDIS_URL=(hidden): must be {allowed}"


@pytest.mark.parametrize("url", ["redis://h:99999", "redis://h:port", "redis://u:{}@h:0x1"])
def test_a_redis_url_has_a_port_that_can_be(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert "must be a URL" in refusal(monkeypatch, "REDIS_URL", url.format(PASSWORD))


def test_a_redis_url_that_cannot_be_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must be a URL" in refusal(monkeypatch, "REDIS_URL", f"redis://u:{PASSWORD}@[::1")


def test_secrets_are_not_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("REDIS_URL", f"redis://user:{PASSWORD}@h:1")
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


def test_what_is_allowed_is_said_of_every_setting_that_can_be_bad() -> None:
    for name, (least, greatest) in BOUNDS.items():
        assert allowed_values(name.lower()).endswith(f"from {least} to {greatest}")
    for name, choices in CHOICES.items():
        assert allowed_values(name.lower()) == f"one of {', '.join(choices)}"


@pytest.mark.parametrize("source", ["*", "https://x/; script-src *", "https://x", "data:", "'unsafe-inline'"])
def test_an_image_source_cannot_widen_the_policy_of_the_page(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    assert "must be empty, or sources like https:" in refusal(monkeypatch, "PAGE_IMAGES", source)
