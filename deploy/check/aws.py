"""Checks of the AWS stacks that need no account."""

import tempfile
from pathlib import Path

from deploy.check import Check, execute, impossible, need
from deploy.check.suites import VALKEY_ACCESS, outcome

_SETUP_AND_CHECKS_S = 900


def _stacks() -> str:
    # The CDK for Python runs Node.js.
    need("node")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        execute(need("make"), "aws-check", f"ARGS=--junitxml={report}", timeout_s=_SETUP_AND_CHECKS_S)
        return outcome(report)


CHECKS = (
    Check("AWS: types, templates, cdk-nag, cfn-lint", _stacks),
    VALKEY_ACCESS,
    impossible("AWS: deployment, failovers, restore, permissions", "they need an account"),
)
