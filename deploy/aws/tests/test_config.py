"""The options in `cdk.json`, and the errors for invalid values."""

import re
from typing import Any

import pytest
from stacks.config import BadConfig, Config

from tests.conftest import CONTEXT, config


@pytest.mark.parametrize("name", CONTEXT["environments"])
def test_the_environments_of_cdk_json_are_valid(name: str) -> None:
    assert Config.load(CONTEXT["environments"], name).prefix == f"leaderboard-{name}"


def test_the_environment_chosen_in_cdk_json_exists() -> None:
    assert CONTEXT["environment"] in CONTEXT["environments"]


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        ({"size": "huge"}, "environments.test.size='huge': must be one of small, medium, large"),
        ({"domain": "example"}, "environments.test.domain='example': must be a name such as board.example.com"),
        (
            {"alarm_email": "ops"},
            "environments.test.alarm_email='ops': must be an address",
        ),
        ({"hosted_zone_id": ""}, "environments.test.hosted_zone_id='': must be set if certificate_arn is not"),
        ({"certificate_arn": "arn:aws:acm:x"}, "and empty if it is"),
        (
            {"hosted_zone_name": "example.org"},
            "hosted_zone_name='example.org': must be the zone",
        ),
        ({"hosted_zone_name": "ample.com"}, "environments.test.hosted_zone_name='ample.com': must be the zone"),
        ({"allowed_cidrs": []}, "environments.test.allowed_cidrs=(): must be a list of IPv4 networks"),
        ({"allowed_cidrs": ["all"]}, "environments.test.allowed_cidrs=('all',): must be a list of IPv4 networks"),
        ({"allowed_cidrs": ["300.0.0.0/8"]}, "must be a list of IPv4 networks"),
        ({"own_cidrs": ["mine"]}, "environments.test.own_cidrs=('mine',): must be a list of IPv4 networks"),
        ({"requests_per_address": 1}, "environments.test.requests_per_address=1: must be an integer from 10"),
        ({"requests_per_address": "many"}, "must be an integer from 10"),
        ({"log_days": 29}, "environments.test.log_days=29: must be one of 1, 7, 30, 90, 365"),
        ({"backup_days": 0}, "environments.test.backup_days=0: must be an integer from 1 to 35"),
        ({"backup_days": True}, "environments.test.backup_days=True: must be an integer from 1 to 35"),
        ({"settings": {"CACHE_SIZE": 10}}, "environments.test.settings"),
        ({"settings": ["CACHE_SIZE"]}, "environments.test.settings"),
        (
            {"settings": {"API_KEYS": "x"}},
            "settings.API_KEYS: must not be set; the stacks set it",
        ),
        (
            {"settings": {"DATABASE_URL": "postgresql://u:p@h/d"}},  # pragma: allowlist secret
            "settings.DATABASE_URL: must not be set; the stacks set it",
        ),
        (
            {"settings": {"CACHE_SIZ": "10"}},
            "environments.test.settings.CACHE_SIZ: is not a setting of the service",
        ),
        (
            {"settings": {"DB_SSLMODE": "prefer"}},
            "settings.DB_SSLMODE='prefer': must be one of require, verify-ca, verify-full",
        ),
        ({"settings": {"DB_SSLMODE": "verify-full"}}, "settings.DB_SSLROOTCERT: must be a file in the image"),
        ({"python_image": " "}, "environments.test.python_image=' ': must be the name of an image"),
        ({"python_image": 3}, "environments.test.python_image=3: must be the name of an image"),
        ({"settings": {"STOP_DELAY_MS": "0"}}, "environments.test.settings.STOP_DELAY_MS: must not be set"),
        ({"settings": {"JWT_KEY": "secret"}}, "environments.test.settings.JWT_KEY: must be a public key in PEM"),
        (
            {"colour": "red"},
            "environments.test.colour: is not known; the known keys are alarm_email, allowed_cidrs",
        ),
    ],
)
def test_an_invalid_value_is_refused_by_name_with_what_is_allowed(choices: dict[str, Any], error: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(error)):
        config(**choices)


@pytest.mark.parametrize("name", ["Production", "a-name-of-more-than-twenty", ""])
def test_an_environments_name_must_fit_resource_names(name: str) -> None:
    with pytest.raises(BadConfig, match="must be"):
        Config.load({"Production": {}, **CONTEXT["environments"]} if not name else {name: _usual()}, name)


def test_a_missing_required_option_is_refused_by_name() -> None:
    with pytest.raises(BadConfig, match=re.escape("environments.test.domain: must be set")):
        Config.load({"test": {"size": "small"}}, "test")


def test_an_unknown_environment_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadConfig, match="environment='nowhere': must be one of staging, production"):
        Config.load(CONTEXT["environments"], "nowhere")


def test_a_certificate_replaces_a_zone() -> None:
    arn = "arn:aws:acm:eu-west-1:123456789012:certificate/x"
    assert config(hosted_zone_id="", hosted_zone_name="", certificate_arn=arn).certificate_arn == arn


def test_settings_of_the_service_are_added() -> None:
    assert config(settings={"READS": "key"}).plain_settings["READS"] == "key"


def _usual() -> dict[str, Any]:
    return dict(CONTEXT["environments"]["staging"])
