"""The table of what can be switched off fits the source, the tests and the documentation.

Whether the tests then fail is seen by `make switch-off`.
"""

import subprocess
import sys

import pytest

from tests.switches.table import DOCUMENTATION, ROOT, SOURCE, SWITCHES, Switch, rendered


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.mechanism)
def test_a_switch_fits_the_source(switch: Switch) -> None:
    texts = {edit.file: (SOURCE / edit.file).read_text("utf-8") for edit in switch.edits}
    for edit in switch.edits:
        before = texts[edit.file]
        texts[edit.file] = edit.applied(before)
        assert texts[edit.file] != before
    for file, text in texts.items():
        if file.endswith(".py"):
            compile(text, file, "exec")


def test_every_mechanism_has_a_name_of_its_own() -> None:
    assert len({switch.mechanism for switch in SWITCHES}) == len(SWITCHES)


def test_the_tests_that_have_to_fail_exist() -> None:
    named = {test for switch in SWITCHES for test in (switch.works, *switch.tests)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *sorted(named)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_is_the_table() -> None:
    text = DOCUMENTATION.read_text("utf-8")
    assert text.partition("\n| ")[2] == rendered(SWITCHES).removeprefix("| "), (
        "docs/switched-off.md is not what the table says; `make switch-off ARGS=--write-docs` writes it"
    )
