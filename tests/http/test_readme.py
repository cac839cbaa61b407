"""The commands of the README get the answers that it shows, on the board that `leaderboard dev` begins with."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from leaderboard.config import Settings
from tests.system import ApiProcess

README = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")

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
        script = command.replace("localhost:3000", api.url.removeprefix("http://"))
        script = script.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
        done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        # What is left out is some text or none.
        shown = ".*".join(re.escape(part) for part in answer.split("…"))
        assert re.fullmatch(shown, done.stdout, re.DOTALL), f"{command}\n{done.stdout}"
