"""`python -m deploy.check`: failures, and checks that could not run."""

import signal
from pathlib import Path

import pytest

from deploy.check import ROOT, Check, Failed, NotExercised, execute, impossible, need, suites
from deploy.check.__main__ import CHECKS, main
from deploy.check.kubernetes import COMBINATIONS


def passing() -> str:
    return "a remark"


def failing() -> None:
    raise Failed("the first line\nand the second")


def missing() -> None:
    need("no-such-program")


PASSED, FAILED, MISSING = Check("one", passing), Check("two", failing), Check("three", missing)
IMPOSSIBLE = impossible("four", "it needs a cluster")


@pytest.mark.parametrize(
    ("checks", "status"),
    [([PASSED], 0), ([PASSED, MISSING, IMPOSSIBLE], 0), ([MISSING], 0), ([FAILED, PASSED], 1)],
)
def test_only_a_failed_check_sets_the_exit_status(checks: list[Check], status: int) -> None:
    assert main([], checks) == status


def test_the_table_has_each_outcome_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    main([], [PASSED, FAILED, MISSING, IMPOSSIBLE])
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "one passed a remark",
        "two FAILED the first line",
        "and the second",
        "three not exercised no-such-program is not installed",
        "four not exercised it needs a cluster",
        "1 passed, 1 FAILED, 2 not exercised",
    ]


def test_only_selects_checks_by_a_word() -> None:
    assert main(["--only", "ONE"], [PASSED, FAILED]) == 0
    assert main(["--only", "no such check"], [PASSED]) == 2


def test_a_failed_command_is_reported_with_its_status_and_output() -> None:
    with pytest.raises(Failed) as refusal:
        execute("sh", "-c", "echo an error; exit 4")
    assert "exit status 4" in str(refusal.value)
    assert "an error" in str(refusal.value)
    assert execute("sh", "-c", "echo out; exit 4", accept=(4,)) == "out\n"
    with pytest.raises(Failed, match="not done within"):
        execute("sleep", "30", timeout_s=0.1)


def test_a_command_that_takes_too_long_can_clean_up(tmp_path: Path) -> None:
    # The background process must not keep the pipe of the command's output open.
    script = f"trap 'touch {tmp_path}/removed; exit' INT; sleep 30 >/dev/null 2>&1 & wait"
    # A shell cannot trap a signal that is ignored when it starts, as in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Failed, match="not done within"):
            execute("sh", "-c", script, timeout_s=0.5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "removed").exists()


# Tests as checks

TESTS = """
import pytest

def test_passes(): pass

@pytest.mark.skip(reason="no such program")
@pytest.mark.parametrize("number", range(2))
def test_lacks_something(number): pass
"""
FAILS = """
def test_fails(): assert 1 == 2, "an error"

def test_has_an_error(unknown): pass
"""


def run_tests(folder: Path, text: str) -> str:
    """Returns the remark of the check of a file with these tests."""
    (folder / "test_them.py").write_text(text)
    return suites.Suite(str(folder / "test_them.py"))()


def test_the_remark_has_counts_and_the_reasons_to_skip(tmp_path: Path) -> None:
    assert run_tests(tmp_path, TESTS) == "1 passed, 0 failed, 2 skipped\n2 skipped: no such program"


def test_failed_tests_are_named(tmp_path: Path) -> None:
    with pytest.raises(Failed) as refusal:
        run_tests(tmp_path, TESTS + FAILS)
    counts, *lines = str(refusal.value).splitlines()
    assert counts == "1 passed, 2 failed, 2 skipped"
    assert lines[0].startswith("failed: test_fails: AssertionError: an error")
    assert lines[1].startswith("failed: test_has_an_error: ")


def test_if_all_tests_are_skipped_the_check_was_not_exercised(tmp_path: Path) -> None:
    with pytest.raises(NotExercised, match="no such program"):
        run_tests(tmp_path, TESTS.replace("def test_passes(): pass", ""))


def test_a_file_that_cannot_be_imported_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="exit status 2"):
        run_tests(tmp_path, "import no_such_module")
    with pytest.raises(NotExercised, match="there is no tests/nothing"):
        suites.Suite("tests/nothing.py")()


def test_every_test_file_of_deployment_is_a_check() -> None:
    checked = {check.run.file for check in CHECKS if isinstance(check.run, suites.Suite)}
    files = {str(path.relative_to(ROOT)) for path in Path(__file__).parent.glob("test_*.py")}
    assert files - checked == {str(Path(__file__).relative_to(ROOT))}


def test_every_values_file_is_checked() -> None:
    checked = {path for files in COMBINATIONS for path in files}
    found = {*(ROOT / "deploy").rglob("*values*.yaml")}
    # The chart's defaults are part of every set.
    assert found - checked == {ROOT / "deploy" / "helm" / "leaderboard" / "values.yaml"}


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    with pytest.raises(NotExercised):
        IMPOSSIBLE.run()
