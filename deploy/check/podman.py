"""Runs podman, for checks that need containers but no Docker engine."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from deploy.check import Failed, NotExercised, need

_LINES_SHOWN = 15


@dataclass
class Podman:
    """The podman program, with the environment in which it works here."""

    program: str
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, accept_failure: bool = False, timeout_s: float = 120) -> str:
        """Runs podman and returns its standard output and error. Raises Failed."""
        try:
            done = subprocess.run(
                [self.program, *arguments],
                env={**os.environ, **self.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"podman {arguments[0]}: not done within {timeout_s:.0f} s") from None
        if done.returncode and not accept_failure:
            last = "\n".join(done.stdout.strip().splitlines()[-_LINES_SHOWN:])
            raise Failed(f"podman {arguments[0]}: exit status {done.returncode}\n{last}")
        return done.stdout

    def has(self, image: str) -> bool:
        """Returns whether this image exists locally."""
        return image in self.run("images", "--format", "{{.Repository}}:{{.Tag}}").split()


def podman_here(image: str) -> Podman:
    """Returns the podman of this machine, with its defaults or with containers.conf. Raises NotExercised."""
    program = need("podman")
    last_error = ""
    for environment in ({}, {"CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf"))}):
        podman = Podman(program, environment)
        if not podman.has(image):
            raise NotExercised(f"no image {image}; deploy/check/standins.sh builds substitutes")
        try:
            podman.run("run", "--rm", "--network", "none", "--entrypoint", "true", image)
        except Failed as error:
            last_error = str(error).splitlines()[-1]
        else:
            return podman
    raise NotExercised(f"podman cannot run a container: {last_error}")
