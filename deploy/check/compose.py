"""Checks of the Dockerfile, the image and the Compose files."""

import subprocess
from functools import partial

from deploy.check import ROOT, Check, Failed, NotExercised, execute, image, need
from deploy.check.suites import IMAGE_TESTS

_ONE = ("compose.yaml",)
_AT_SCALE = (*_ONE, "compose.scale.yaml")
_SCRIPT_S = 590


def _dockerfile() -> None:
    execute(need("hadolint"), "Dockerfile")


def _valid(*files: str) -> None:
    named = [part for file in files for part in ("--file", file)]
    execute(_docker_with_compose(), "compose", "--env-file", "/dev/null", *named, "config", "--quiet")


def _docker_with_compose() -> str:
    docker = need("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        raise NotExercised("docker has no Compose plugin")
    return docker


def _run_script(script: str, *files: str) -> str:
    _docker_with_compose()
    image.need_images(image.docker_engine(), *files)
    output = execute(ROOT / "deploy" / script, timeout_s=_SCRIPT_S, accept=(0, 1))
    lines = [line.strip() for line in output.splitlines()]
    if "all ok" not in lines:
        raise Failed("\n".join([line for line in lines if line.startswith("FAILED")] or lines[-10:]))
    return f"{output.count('  ok  ')} checks of its own"


CHECKS = (
    Check("Dockerfile: hadolint", _dockerfile),
    Check("Image: runs without privileges and writable folders", image.confined),
    Check("Image: every pin has its wheels", image.wheels),
    IMAGE_TESTS,
    Check("Compose: compose.yaml is valid", partial(_valid, *_ONE)),
    Check("Compose: compose.scale.yaml is valid", partial(_valid, *_AT_SCALE)),
    Check("Compose: deploy/compose-test.sh", partial(_run_script, "compose-test.sh", *_ONE)),
    Check("Compose: deploy/compose-scale-test.sh", partial(_run_script, "compose-scale-test.sh", *_AT_SCALE)),
    Check("Images: the official ones", image.official),
)
