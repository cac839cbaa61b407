"""The commands of the documentation are answered.

Those of the README get the answers that it shows, on the board that `leaderboard dev` begins with.
"""

import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from leaderboard.config import Settings
from tests.system import ApiProcess

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def chapter(title: str) -> list[tuple[str, str]]:
    """Returns the commands of a chapter, each with the answer that is shown below it on one line."""
    (text,) = re.findall(rf"^## {title}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    pairs = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for command, answer in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:[^$\n].*\n)+)", block, re.MULTILINE):
            pairs.append((command, "".join(line.strip() for line in answer.splitlines())))
        assert block.count("$ curl ") == len(re.findall(r"^\$ ", block, re.MULTILINE))
    assert len(pairs) == text.count("$ curl ")
    return pairs


@pytest.fixture
def api(settings: Settings) -> Iterator[ApiProcess]:
    """A process with the example users."""
    api = ApiProcess(settings)
    with resources.as_file(resources.files("leaderboard") / "example.csv") as example:
        api.run("import", str(example))
    try:
        yield api.start()
    finally:
        api.kill()
        api.client.close()


@pytest.mark.parametrize("title", ["The API by example", "Boards and seasons", "Your own ids"])
def test_the_commands_get_the_answers_that_are_shown(api: ApiProcess, title: str) -> None:
    for command, answer in chapter(title):
        # What is left out is some text or none.
        shown = ".*".join(re.escape(part) for part in answer.split("…"))
        printed = run(command, api)
        assert re.fullmatch(shown, printed, re.DOTALL), f"{command}\n{printed}"


def run(command: str, api: ApiProcess) -> str:
    """Returns what a command with curl prints. Fails if the answer is a refusal."""
    script = command.replace("localhost:3000", api.url.removeprefix("http://"))
    script = script.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout


FIRST = ["PUT /boards/{board}", "POST /boards/{board}/users/{id}/score", "POST /users"]
LAST = [
    "DELETE /boards/{board}/users/{id}",
    "POST /boards/{board}/seasons",
    "DELETE /boards/{board}",
    "PATCH /users/{id}",
    "DELETE /users/{id}",
]
"""The calls without which others would be refused, and those after which others would be."""


def test_the_examples_of_the_page_about_the_api_are_answered(api: ApiProcess) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "site" / "http_api.py"))
    page = made["page"](made["document"]())
    examples = dict(re.findall(r"^### ([A-Z]+ /.*)\n(?:(?!^#).*\n)*?```sh\n(.*)\n```", page, re.MULTILINE))
    others = [name for name in examples if name not in {*FIRST, *LAST}]
    assert len(others) + len(FIRST) + len(LAST) == page.count("```sh\n") == len(examples)
    for name in (*FIRST, *others, *LAST):
        run(examples[name], api)
