"""Every patch applies and names tests that exist; the runner tells a failure from a crash."""

import ast
from pathlib import Path

import pytest

from tests.mutants.__main__ import WORKS, Outcome
from tests.mutants.mutant import ROOT, BadPatch, Mutant, copy_of_source, mutants

DIFF = """\
diff --git a/src/a.txt b/src/a.txt
--- a/src/a.txt
+++ b/src/a.txt
@@ -2,3 +2,3 @@
 one
-two
+2
 three
"""


def functions(file: str) -> set[str]:
    """The names of a module's functions and classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if isinstance(node, kinds)}


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_names_tests_that_exist(mutant: Mutant) -> None:
    for test in (WORKS, *mutant.tests):
        file, *names = test.partition("[")[0].split("::")
        assert (ROOT / file).is_file(), file
        assert set(names) <= functions(file), test


def test_every_mutant_applies() -> None:
    wrong = []
    with copy_of_source() as root:
        for mutant in mutants():
            try:
                mutant.apply(root, "--check")
            except BadPatch as error:
                wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


def written(folder: Path, header: str, diff: str = DIFF) -> Path:
    path = folder / "a.patch"
    path.write_text(f"{header}\n{diff}", "utf-8")
    return path


def test_a_patch_is_read_and_applied(tmp_path: Path) -> None:
    header = "Without it: it is wrong.\nFails: tests/a.py::test_a, tests/b.py::test_b[1]\nWith: TimeoutError\n"
    mutant = Mutant.read(written(tmp_path, header))
    assert mutant.without == "it is wrong."
    assert mutant.tests == ("tests/a.py::test_a", "tests/b.py::test_b[1]")
    assert mutant.raises == {"TimeoutError"}
    source = tmp_path / "src" / "a.txt"
    source.parent.mkdir()
    source.write_text("new\nzero\none\ntwo\nthree\n")
    mutant.apply(tmp_path)
    assert source.read_text() == "new\nzero\none\n2\nthree\n"
    with pytest.raises(BadPatch, match="does not apply"):
        mutant.apply(tmp_path)


@pytest.mark.parametrize(
    ("header", "diff"),
    [
        ("Without it: it is wrong.\n", DIFF),
        ("Fails: tests/a.py::test_a\n", DIFF),
        ("Fails: tests/a.py::test_a\nWith: KeyError\n", DIFF),
        ("Without it: it is wrong.\nFails: tests/a.py::test_a\nWhy: because\n", DIFF),
        ("Without it: it is wrong.\nFails: tests/a.py::test_a\n", "nothing"),
    ],
)
def test_a_malformed_patch_is_refused(tmp_path: Path, header: str, diff: str) -> None:
    with pytest.raises(BadPatch):
        Mutant.read(written(tmp_path, header, diff))


def line(test: str, outcome: str = "failed", when: str = "call", *raised: str) -> dict[str, object]:
    return {"test": test, "when": when, "outcome": outcome, "raised": list(raised)}


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([], "broken"),
        ([line("another", "passed")], "broken"),
        ([line("t", "skipped")], "broken"),
        ([line("t", "passed")], "passed"),
        ([line("t[1]", "passed"), line("t[2]", "failed", "call", "AssertionError")], "failed"),
        ([line("t", "failed", "call", "KeyError")], "crashed: KeyError"),
        ([line("t", "failed", "setup", "AssertionError")], "broken"),
        ([line("t", "passed"), line("t", "failed", "teardown", "AssertionError")], "broken"),
        ([line("t", "failed", "call", "AssertionError"), line("t", "failed", "teardown", "OSError")], "failed"),
    ],
)
def test_verdicts(lines: list[dict[str, object]], verdict: str) -> None:
    assert Outcome.of("t", lines).verdict(frozenset({"AssertionError"})) == verdict
