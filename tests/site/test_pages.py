"""The tutorial and the guides, followed to the letter: every command gets the answer that is shown."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.site.pages import DOCS, Block, Reader, blocks
from tests.system import dev, eventually, free_port
from tests.web.chromium import CHROMIUM, shown

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")]

GUIDES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.glob("guides/*.md"))


@pytest.fixture(scope="module")
def reader(module_folder: Path) -> Iterator[Reader]:
    """A reader who has started the service and is in the folder of the game."""
    site, other = free_port(), free_port()
    with dev(module_folder / "data", CORS_ORIGINS=f"http://localhost:{site}", STOP_DELAY_MS="0") as (
        port,
        printed,
    ):

        def variables() -> dict[str, str]:
            (line,) = re.findall(r"^  export (DB_HOST=.*)$", printed.read_text("utf-8"), re.MULTILINE) or [""]
            return dict(each.split("=", 1) for each in line.split())

        game = module_folder / "my-game"
        game.mkdir()
        shutil.copy(DOCS.parent / "clients" / "javascript" / "leaderboard.js", game)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # No week ends while the test runs, and nobody watches the page.
        other_times = {'"every": "week"': '"every": "year"', "time.sleep(0.3)": "time.sleep(0)"}
        ports = {
            "localhost:3000": f"localhost:{port}",
            "localhost:3001": f"localhost:{other}",
            "PORT=3001": f"PORT={other}",
            "8000": str(site),
        }
        reader = Reader(game, ports | other_times, eventually(variables) | {"PATH": path, "STOP_DELAY_MS": "0"})
        yield reader
        reader.close()


def rows(reader: Reader, profile: Path) -> dict[str, list[str]]:
    """Returns what the page of the tutorial shows in a browser: the rows of each table, as texts."""
    text, _ = shown(f"http://localhost:{reader.names['8000']}/?you=p7", profile, 3000)
    assert '<p id="problem"></p>' in text, text
    tables = re.findall(r'<table id="(\w+)">(.*?)</table>', text, re.DOTALL)
    return {
        name: [" ".join(re.findall(r"<td>(.*?)</td>", row)) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]
        for name, body in tables
    }


def page_is_served(reader: Reader) -> bool:
    try:
        with urlopen(f"http://localhost:{reader.names['8000']}/") as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def test_the_tutorial(reader: Reader, tmp_path: Path) -> None:
    followed: list[Block] = []
    for block in blocks("tutorial.md"):
        reader.follow(block)
        followed.append(block)
        if block.note == "in the background":
            eventually(lambda: page_is_served(reader))
            if CHROMIUM is not None:
                seen = rows(reader, tmp_path / "before")
                assert seen["top"][::9] == ["1 Ada 310", "10 Jo 90"]
                assert [row.split()[0] for row in seen["near"]] == [str(rank) for rank in range(2, 13)]
                assert "7 Gül 180" in seen["near"]
                assert seen["last"] == []
    assert {block.language for block in followed} == {"sh", "console", "text", "python", "html"}
    if CHROMIUM is not None:
        seen = rows(reader, tmp_path / "after")
        assert (seen["top"], seen["near"], len(seen["last"])) == ([], [], 3)
        assert seen["last"][0].startswith("1 Gül ")


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide(reader: Reader, page: str) -> None:
    for block in blocks(page):
        reader.follow(block)
