"""The base images: pins by digest, the same names in all files, and the pins of the wheels."""

import os
import re
import subprocess
from pathlib import Path

from packaging.requirements import Requirement

from deploy.check.image import images, wanted_pins

ROOT = Path(__file__).parents[2]
NAMES = ("PYTHON_IMAGE", "POSTGRES_IMAGE", "REDIS_IMAGE", "CADDY_IMAGE", "PROMETHEUS_IMAGE")
COMPOSE = "".join((ROOT / file).read_text("utf-8") for file in ("compose.yaml", "compose.scale.yaml"))


def defaults() -> dict[str, str]:
    found = re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", COMPOSE)
    assert len(set(found)) == len(dict(found)), "both files have the same default"
    return dict(found)


def test_every_image_is_a_variable_with_a_default() -> None:
    assert sorted(defaults()) == sorted(NAMES)
    named = re.findall(r"^\s+(?:image|PYTHON_IMAGE): (.*)$", COMPOSE, re.MULTILINE)
    assert {*named} == {f"${{{name}:-{image}}}" for name, image in defaults().items()} | {"${IMAGE:-leaderboard}"}
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert re.findall(r"^ARG PYTHON_IMAGE=(.*)$", dockerfile, re.MULTILINE) == [defaults()["PYTHON_IMAGE"]]
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    example = (ROOT / ".env.example").read_text("utf-8")
    assert dict(re.findall(r"^#(\w+_IMAGE)=(.*)$", example, re.MULTILINE)) == defaults()


def image_digests(folder: Path, docker: str) -> subprocess.CompletedProcess[str]:
    """Runs `make image-digests` with this shell script as docker."""
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{docker}\n")
    program.chmod(0o755)
    return subprocess.run(
        ["make", "--silent", "image-digests"],
        cwd=ROOT,
        env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_digests_are_printed_as_lines_for_env(tmp_path: Path) -> None:
    done = image_digests(
        tmp_path,
        '[ "$1 $2 $3 $4 $5" = "buildx imagetools inspect --format {{.Manifest.Digest}}" ] || exit 9\n'
        'echo "sha256:$(echo "$6" | sha256sum | cut -d" " -f1)"',
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.partition("=") for line in done.stdout.splitlines()]
    assert {name: image.partition("@")[0] for name, _, image in lines} == defaults()
    digests = {image.partition("@")[2] for _, _, image in lines}
    assert len(digests) == len(NAMES)
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in digests)


def test_no_line_is_printed_when_a_digest_is_not_found(tmp_path: Path) -> None:
    for docker in (
        'case "$6" in redis*) echo "no such image" >&2; exit 1;; esac; echo sha256:' + "0" * 64,
        'case "$6" in redis*) echo latest;; *) echo sha256:' + "0" * 64 + ";; esac",
    ):
        done = image_digests(tmp_path, docker)
        assert done.returncode != 0
        assert done.stdout == ""
        assert done.stderr != ""


def test_images_returns_the_variables_of_the_compose_files() -> None:
    assert images("compose.yaml", "compose.scale.yaml") == defaults()


def chosen(*pins: str, python: str = "3.13", machine: str = "aarch64") -> list[str]:
    return wanted_pins([(Requirement(pin), pin.partition(" ")[0]) for pin in pins], python, machine)


def test_a_pin_for_another_system_or_python_is_left_out() -> None:
    pins = ("asyncpg==1", "colorama==1 ; sys_platform == 'win32'", "async-timeout==1 ; python_version < '3.12'")
    assert chosen(*pins) == ["asyncpg==1"]
    assert chosen(*pins, python="3.11") == ["asyncpg==1", "async-timeout==1"]


def test_a_pin_for_one_architecture_is_used_only_there() -> None:
    pin = "uvloop==1 ; platform_machine == 'x86_64'"
    assert chosen(pin, machine="x86_64") == ["uvloop==1"]
    assert chosen(pin, machine="aarch64") == []
