"""Opens one page in a real browser."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def shown(address: str, profile: Path, milliseconds: int = 2000, *more_flags: str) -> tuple[str, list[str]]:
    """Returns the page after that time on the browser's clock, and the lines of its console."""
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
        " --disable-background-networking --disable-component-update --disable-sync"
        " --enable-logging=stderr --dump-dom"
        f" --virtual-time-budget={milliseconds} --user-data-dir={profile}"
    )
    done = subprocess.run(
        [CHROMIUM, *flags.split(), *more_flags, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
