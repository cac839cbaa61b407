"""Loads the Lua of `scripts/`, each with the digest by which Redis knows it."""

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script."""

    name: str
    source: str
    sha: str


def load_script(name: str) -> Script:
    """The script of that name."""
    source = resources.files(__package__).joinpath("scripts", f"{name}.lua").read_text("utf-8")
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
