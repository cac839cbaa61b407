"""The image and compose.yaml."""

import subprocess

from deploy.check import ROOT, Check, NotExercised, execute, image, need

_WHOLE_TEST_S = 590


def _dockerfile() -> None:
    execute(need("hadolint"), "Dockerfile")


def _valid() -> None:
    execute(_docker_with_compose(), "compose", "--env-file", "/dev/null", "config", "--quiet")


def _docker_with_compose() -> str:
    docker = need("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        raise NotExercised("docker has no plugin compose")
    return docker


def _running() -> str:
    _docker_with_compose()
    image.need_images(image.docker_engine(), "compose.yaml")
    said = execute(ROOT / "deploy" / "compose-test.sh", timeout_s=_WHOLE_TEST_S)
    return f"{said.count('  ok  ')} of its own checks"


CHECKS = (
    Check("Dockerfile: hadolint", _dockerfile),
    Check("Image: runs without rights and writes nowhere", image.confined),
    Check("Image: every pin has its wheels", image.wheels),
    Check("Compose: compose.yaml is valid", _valid),
    Check("Compose: deploy/compose-test.sh", _running),
)
