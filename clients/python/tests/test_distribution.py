"""The client is a distribution of its own: it works with httpx alone, without the service."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.system import ApiProcess

FOLDER = Path(__file__).parents[1]

PROGRAM = """
import asyncio, json, sys
sys.path[:0] = [sys.argv[1]]
from leaderboard_client import AsyncLeaderboard, Leaderboard
with Leaderboard(sys.argv[2]) as lb:
    names = [each.username for each in lb.find_users("alone")]
    names.append(lb.create_user("alone").username)
asyncio.run(AsyncLeaderboard(sys.argv[2]).status())
third_party = {name for name, module in sys.modules.items() if "." not in name and sys.argv[1] in str(module)}
print(json.dumps([names, sorted(third_party), "leaderboard" in sys.modules]))
"""


def requirements(name: str) -> Iterator[Requirement]:
    """Yields the requirements of an installed distribution that apply here, without extras."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def closure(name: str) -> set[str]:
    """Returns the names of a distribution and of all that it needs."""
    found, waiting = set[str](), [name]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += [requirement.name for requirement in requirements(each)]
    return found


def test_it_requires_httpx_only() -> None:
    assert [requirement.name for requirement in requirements("leaderboard-client")] == ["httpx"]


def test_the_readme_names_what_httpx_brings() -> None:
    readme = FOLDER.joinpath("README.md").read_text("utf-8")
    (named,) = re.findall(r"with its own requirements \((.*?)\)", readme, re.DOTALL)
    brought = {name.replace("_", "-") for name in closure("httpx")}
    assert brought - {"httpx"} <= set(re.findall(r"[a-z0-9-]+", named))


@pytest.mark.slow
def test_its_wheel_works_with_httpx_alone(service: ApiProcess, tmp_path: Path) -> None:
    """In a folder with the wheel and copies of what httpx needs; no network is needed, unlike for a fresh venv."""
    source = tmp_path / "source"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    build = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True)
    (wheel,) = tmp_path.glob("leaderboard_client-*.whl")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    assert {path.name for path in site.iterdir() if path.is_dir()} == {
        "leaderboard_client",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    assert (site / "leaderboard_client" / "py.typed").is_file()
    assert list(site.glob("*.dist-info/licenses/LICENSE"))
    for name in closure("httpx"):
        for file in metadata.files(name) or ():
            if file.parts[0] not in {"..", "/"} and "__pycache__" not in file.parts:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
    # -S: without the site-packages of this environment, -I: without this folder and PYTHONPATH.
    command = [sys.executable, "-IS", "-c", PROGRAM, str(site), service.url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names, third_party, has_service = json.loads(done.stdout)
    assert names == ["alone"]
    assert "leaderboard_client" in third_party
    assert not has_service
