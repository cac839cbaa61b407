"""docs/aws.md agrees with the code."""

import re
from dataclasses import fields
from pathlib import Path

import cost
import pytest
from stacks.config import SIZES, Config

from tests.conftest import Templates

PAGE = (Path(__file__).parents[3] / "docs" / "aws.md").read_text()


def test_the_page_shows_what_the_script_computes() -> None:
    shown = re.search(r"<!-- cost computed -->\n\n(.*)\n\n<!-- end of cost -->", PAGE, re.DOTALL)
    assert shown is not None
    assert shown[1] == cost.tables(cost.Measured.read()), "run `make aws-cost`"


def test_every_choice_is_described() -> None:
    described = re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE)
    assert sorted(described) == sorted(found.name for found in fields(Config) if found.name != "name")


def test_every_alarm_is_described(small: Templates) -> None:
    alarms = {
        re.sub(r"(00[12])?[0-9A-F]{8}$", "", name)
        for name in small.alarms.find_resources("AWS::CloudWatch::Alarm")
    }
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", PAGE, re.MULTILINE)) == alarms


def test_what_is_counted_in_the_cost_is_what_is_deployed(small: Templates) -> None:
    assert len(small.alarms.find_resources("AWS::CloudWatch::Alarm")) == cost.ALARMS
    assert len(small.data.find_resources("AWS::SecretsManager::Secret")) == cost.SECRETS
    endpoints = small.network.find_resources(
        "AWS::EC2::VPCEndpoint", {"Properties": {"VpcEndpointType": "Interface"}}
    )
    assert len(endpoints) == cost.ENDPOINTS
    assert {len(found["Properties"]["SubnetIds"]) for found in endpoints.values()} == {cost.ZONES}
    (acl,) = small.service.find_resources("AWS::WAFv2::WebACL").values()
    assert len(acl["Properties"]["Rules"]) == cost.RULES


def test_every_size_has_its_prices() -> None:
    for size in SIZES.values():
        assert f"db.{size.db_class}, one zone" in cost.HOURLY
        assert f"cache.{size.cache_class}, one node" in cost.HOURLY
        assert size.db_class in cost.DATABASE_VCPU


def test_more_users_never_get_a_smaller_size() -> None:
    measured = cost.Measured.read()
    plans = [cost.Plan.of(cost.Need.of(10**power, measured)) for power in range(3, 9)]
    order = list(SIZES)
    assert [order.index(plan.name) for plan in plans] == sorted(order.index(plan.name) for plan in plans)
    totals = [sum(price for _, price in plan.costs()) for plan in plans]
    assert totals == sorted(totals)


def test_too_many_users_for_every_size_are_refused() -> None:
    with pytest.raises(cost.NoFigure, match="no size is large enough for 10,000,000,000 users"):
        cost.Plan.of(cost.Need.of(10**10, cost.Measured.read()))


def test_a_figure_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text("| work |\n")
    monkeypatch.setattr(cost, "_PERFORMANCE", page)
    with pytest.raises(cost.NoFigure, match=r"performance.md has no"):
        cost.Measured.read()
