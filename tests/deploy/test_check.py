"""`python -m deploy.check`: what fails is told from what could not be tried."""

import pytest

from deploy.check import Check, Failed, NotExercised, execute, impossible, need
from deploy.check.__main__ import CHECKS, main


def passing() -> str:
    return "well"


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
def test_only_a_failure_is_a_failure(checks: list[Check], status: int) -> None:
    assert main([], checks) == status


def test_the_table_says_what_became_of_each_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    main([], [PASSED, FAILED, MISSING, IMPOSSIBLE])
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "one passed well",
        "two FAILED the first line",
        "and the second",
        "three not exercised no-such-program is not installed",
        "four not exercised it needs a cluster",
        "1 passed, 1 FAILED, 2 not exercised",
    ]


def test_a_word_chooses_checks() -> None:
    assert main(["--only", "ONE"], [PASSED, FAILED]) == 0
    assert main(["--only", "nothing of the kind"], [PASSED]) == 2


def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(Failed) as refusal:
        execute("sh", "-c", "echo all is lost; exit 4")
    assert "exit status 4" in str(refusal.value)
    assert "all is lost" in str(refusal.value)
    assert execute("sh", "-c", "echo out; exit 4", accept=(4,)) == "out\n"
    with pytest.raises(Failed, match="not done within"):
        execute("sleep", "30", timeout_s=0.1)


def test_no_two_checks_have_one_name() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    with pytest.raises(NotExercised):
        IMPOSSIBLE.run()
