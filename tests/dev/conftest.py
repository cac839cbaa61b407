import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that other accounts may enter, which is the usual case. pytest closes `tmp_path` to them."""
    folder = Path(tempfile.mkdtemp(prefix="leaderboard-"))
    folder.chmod(0o755)
    try:
        yield folder / "data"
    finally:
        shutil.rmtree(folder)
