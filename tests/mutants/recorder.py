"""A pytest plugin that writes how each test ended, and with which exceptions, to a file."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

# A failing example is enough, it need not be the shortest. The same examples are tried in each run.
settings.register_profile(
    "mutants",
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
)
settings.load_profile("mutants")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file that gets a line of JSON for each call and each failure")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    path: Path | None = item.config.getoption("--outcomes")
    if path is not None and (report.failed or call.when == "call"):
        raised = [] if call.excinfo is None else sorted(set(_names(call.excinfo.value)))
        outcome = {"test": item.nodeid, "when": call.when, "outcome": report.outcome, "raised": raised}
        with path.open("a") as file:
            file.write(json.dumps(outcome) + "\n")
    return report


def _names(error: BaseException) -> Iterator[str]:
    """The class names of what a test raised; `pytest.fail` counts as an assertion."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _names(each)
    elif isinstance(error, AssertionError | pytest.fail.Exception):
        yield "AssertionError"
    else:
        yield type(error).__name__
