import os
from pathlib import Path

import pytest

from tests.cli.settings import DEFAULTS


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove all settings from the environment, and work in a folder without `.env`."""
    for name in list(os.environ):
        if name.upper() in DEFAULTS:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
