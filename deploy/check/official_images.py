"""Whether the images that the checks above ran are those of their publishers."""

import os
import re
import subprocess

from deploy.check import ROOT, Check, NotExercised, need


def _official() -> str:
    docker = need("docker")
    named = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", (ROOT / "compose.yaml").read_text("utf-8")))
    images = [str(os.environ.get(name) or default) for name, default in named.items()]
    made_here = [image for image in images if not _digests(docker, image)]
    if made_here:
        raise NotExercised(f"no registry gave {', '.join(made_here)}: stand-ins at most")
    return ", ".join(images)


def _digests(docker: str, image: str) -> str:
    """The digests by which registries know this image; none if it was made here or is not here."""
    done = subprocess.run(
        [docker, "image", "inspect", "--format", '{{join .RepoDigests " "}}', image],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


CHECKS = (Check("Images: the official ones", _official),)
