"""A pytest plugin that writes down how each test ended, and by what exception: an assertion, or a crash."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

# To see a test fail is enough: nobody reads its shortest story. And the same stories each time.
settings.register_profile(
    "switched off",
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
)
settings.load_profile("switched off")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file to which a line of JSON is added for each failure")


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
    """Of what a test raised, the classes; an assertion of pytest's own is one like any other."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _names(each)
    elif isinstance(error, AssertionError | pytest.fail.Exception):
        yield "AssertionError"
    else:
        yield type(error).__name__
