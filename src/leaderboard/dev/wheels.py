"""Finds the folders of the wheels that hold the servers' programs."""

import importlib.util
from pathlib import Path

from leaderboard.dev.errors import EmbeddedError


def package_folder(name: str) -> Path:
    """Return the folder of an installed package. Raises EmbeddedError when it is missing.

    The package is not imported, because importing these packages starts threads and handlers of theirs.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is missing: pip install 'leaderboard[embedded]'")
    return Path(spec.origin).absolute().parent
