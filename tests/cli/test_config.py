"""Every setting has a default, bounds and an error of one line, and no secret is shown."""

import logging
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from leaderboard.config import BadSetting, Settings, allowed_values, load
from tests.cli.settings import (
    BLANKS,
    BOUNDS,
    CHOICES,
    DEFAULTS,
    FILES,
    NEEDED,
    NOT_EMPTY,
    OTHERS,
    PASSWORD,
    SECRETS,
    error_for,
    value_of,
)

pytestmark = pytest.mark.usefixtures("no_settings")


def test_the_defaults() -> None:
    settings = load()
    assert {name.upper(): value_of(settings, name) for name in Settings.model_fields} == DEFAULTS


def test_every_setting_has_limits_that_are_tested() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description
        if get_origin(field.annotation) is not None:
            assert get_args(field.annotation) == CHOICES[name.upper()]
        elif field.annotation is bool:
            assert CHOICES[name.upper()] == ("on", "off")
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
def test_the_environment_sets_each_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
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
def test_a_number_has_bounds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    least, greatest = BOUNDS[name]
    for value in (least, greatest):
        monkeypatch.setenv(name, str(value))
        assert value_of(load(), name) == value
    kind = "a number" if name == "AUDIT_INTERVAL_S" else "an integer"
    for bad in (str(least - 1), str(greatest + 1), "", "many", "1e99", "nan", "inf", "0x10", "1;2", "-5", "1,000"):
        assert error_for(monkeypatch, name, bad) == f"{name}='{bad}': must be {kind} from {least} to {greatest}"


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_its_values(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if needed := NEEDED.get(name):
        monkeypatch.setenv(needed, OTHERS[needed])
    for value in CHOICES[name]:
        monkeypatch.setenv(name, value)
        assert value_of(load(), name) == value
    for bad in ("", CHOICES[name][0].upper(), "true", "x\ny", " " + CHOICES[name][0]):
        assert error_for(monkeypatch, name, bad) == f"{name}={bad!r}: must be one of {', '.join(CHOICES[name])}"


@pytest.mark.parametrize("name", NOT_EMPTY)
def test_a_name_is_not_empty(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert error_for(monkeypatch, name, "") == f"{name}='': must be a text that is not blank"


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_a_blank_value_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str, blank: str) -> None:
    """Taken as "not set", it would turn a protection off."""
    if needed := NEEDED.get(name):
        monkeypatch.setenv(needed, OTHERS[needed])
    line = error_for(monkeypatch, name, blank)
    assert line.startswith(f"{name}={'(hidden)' if name in SECRETS else repr(blank)}: must be ")


@pytest.mark.parametrize("name", ["JWT_ALGORITHMS", "JWT_KEY"])
def test_an_error_names_the_blank_half_of_a_pair(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert error_for(monkeypatch, name, " ").startswith(f"{name}=")


def test_an_empty_value_means_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that list every variable, such as `.env.example`, have them empty."""
    empty = [name for name in DEFAULTS if DEFAULTS[name] == ""]
    for name in empty:
        monkeypatch.setenv(name, "")
    assert {name: value_of(load(), name) for name in empty} == dict.fromkeys(empty, "")


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
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
    # Nor in the error about another setting.
    assert PASSWORD not in error_for(monkeypatch, "PORT", "0")


def test_the_first_of_several_bad_values_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_SIZE", "9")
    assert error_for(monkeypatch, "WORKERS", "0").startswith("WORKERS='0'")


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1234")
    assert load(port=4321).port == 4321
    with pytest.raises(BadSetting, match="PORT=0: must be an integer from 1 to 65535"):
        load(port=0)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 5


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# a comment\n\nPORT=4000\nDB_NAME='from the file'\nexport DB_USER=\"müller\"\nANOTHER_PROGRAMS=1\n",
        "utf-8",
    )
    monkeypatch.setenv("PORT", "5000")
    settings = load()
    assert (settings.port, settings.db_name, settings.db_user) == (5000, "from the file", "müller")
    assert load(env_file=None).db_name == DEFAULTS["DB_NAME"]


def test_a_bad_value_in_the_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"REDIS_URL=http://u:{PASSWORD}@h\n")
    with pytest.raises(BadSetting, match=r"^REDIS_URL=\(hidden\): must be a URL"):
        load()
    (tmp_path / ".env").write_text("CACHE_SIZE=none\n")
    with pytest.raises(BadSetting, match=r"^CACHE_SIZE='none': must be an integer from 10 to 100000$"):
        load()


def test_a_file_that_is_not_utf8_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"DB_NAME=m\xfcller\n")
    with pytest.raises(BadSetting, match=r"\.env"):
        load()


def test_allowed_values_are_described() -> None:
    for name, (least, greatest) in BOUNDS.items():
        assert allowed_values(name.lower()).endswith(f"from {least} to {greatest}")
    for name, choices in CHOICES.items():
        assert allowed_values(name.lower()) == f"one of {', '.join(choices)}"
