"""The examples of the client's README, and of the main one, get the results that they show."""

import doctest
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from leaderboard_client import errors, retries
from tests.system import ApiProcess

MAIN_README = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_examples_get_the_results_that_are_shown(serve: Callable[..., ApiProcess]) -> None:
    url = serve().url
    text = README.replace("http://localhost:3000", url)
    blocks = re.findall(r"```pycon\n(.*?)```", text, re.DOTALL)
    printed = StringIO()
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README", "README.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=printed.write, clear_globs=False)
    assert runner.summarize(verbose=False).attempted == len(test.examples) > 20
    assert not printed.getvalue(), printed.getvalue()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (expected,) = re.findall(r"# prints (.*)", program)
    with redirect_stdout(StringIO()) as output:
        exec(program, {"__name__": "example"})
    assert output.getvalue().strip() == expected
    test.globs["lb"].close()


def test_the_example_of_the_main_readme_runs(serve: Callable[..., ApiProcess]) -> None:
    (chapter,) = re.findall(r"^## From Python\n(.*?)^## ", MAIN_README, re.MULTILINE | re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)
    api = serve()
    api.create("ada")
    with redirect_stdout(StringIO()) as output:
        exec(program.replace("http://localhost:3000", api.url), {})
    assert output.getvalue() == "['ada']\n"


def test_the_numbers_of_the_readme_are_the_defaults() -> None:
    retry = retries.Retry()
    (attempts, total_s) = re.findall(r"at most (\d+) attempts, and none begins later than\n(\d+) s", README)[0]
    assert (int(attempts), float(total_s)) == (retry.attempts, retry.total_s)


def test_the_families_of_errors_that_are_named_exist() -> None:
    (chapter,) = re.findall(r"^## Errors\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([A-Z]\w+)`", chapter))
    assert len(named) > 8
    assert named <= vars(errors).keys()
