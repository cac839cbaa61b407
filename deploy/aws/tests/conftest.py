"""Fixtures: the templates of every size, created once, with all checks of the CDK and cdk-nag."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from app import build
from aws_cdk import App, Environment
from aws_cdk.assertions import Template
from stacks.config import SIZES, Config

FOLDER = Path(__file__).parents[1]
CONTEXT: dict[str, Any] = json.loads((FOLDER / "cdk.json").read_text())["context"]
WHERE = Environment(account="123456789012", region="eu-west-1")


@dataclass(frozen=True)
class Templates:
    """The templates that CloudFormation would get."""

    folder: Path
    network: Template
    data: Template
    service: Template
    alarms: Template

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.template.json"))


def config(**choices: Any) -> Config:
    """Returns a valid configuration with these options changed."""
    usual = {
        "size": "small",
        "domain": "board.example.com",
        "alarm_email": "ops@example.com",
        "hosted_zone_id": "Z0000000000000000000",
        "hosted_zone_name": "example.com",
    }
    return Config.load({"test": {**usual, **choices}}, "test")


@pytest.fixture(scope="session")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Templates]:
    """Returns a function that creates the templates of a size."""

    @cache
    def make(size: str) -> Templates:
        folder = tmp_path_factory.mktemp(size)
        app = App(context=CONTEXT, outdir=str(folder))
        stacks = build(app, config(size=size), WHERE)
        # Raises for every finding of cdk-nag that the stacks do not acknowledge.
        app.synth()
        return Templates(folder, *map(Template.from_stack, stacks))

    return make


@pytest.fixture(params=SIZES)
def templates(request: pytest.FixtureRequest, synthesised: Callable[[str], Templates]) -> Templates:
    """The templates of each size."""
    return synthesised(request.param)


@pytest.fixture
def small(synthesised: Callable[[str], Templates]) -> Templates:
    return synthesised("small")
