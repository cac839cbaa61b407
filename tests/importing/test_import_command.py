"""`leaderboard import` and the file of rejected rows."""

import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard.config import Settings
from tests.importing.boards import board, write_csv
from tests.system import environment


def import_in(folder: Path, settings: Settings, file: str, stdin: Path, limit: int = 2**20) -> tuple[int, str]:
    """The status of `leaderboard import` and its last line; no file may become larger than `limit` bytes."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from leaderboard.cli import main
main()
"""
    with stdin.open("rb") as input_:
        done = subprocess.run(
            [sys.executable, "-c", program, "import", file],
            cwd=folder,
            env=environment(settings),
            stdin=input_,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


def test_rejected_rows_do_not_replace_the_imported_file(settings: Settings, tmp_path: Path) -> None:
    """Corrected rejected rows of standard input, put there again."""
    path = write_csv(tmp_path / "stdin.rejected.csv", [("amy", 5, ""), ("", 1, "")])
    before = path.read_bytes()
    assert import_in(tmp_path, settings, "-", path) == (
        3,
        "leaderboard: cannot write rejected rows to stdin.rejected.csv: it is the file being imported;"
        " nothing was imported",
    )
    assert path.read_bytes() == before
    assert board(settings) == {}
    path = path.rename(tmp_path / "corrected.csv")
    assert import_in(tmp_path, settings, "-", path)[0] == 1
    assert board(settings) == {"amy": (5, None)}


@pytest.mark.parametrize("rows", [30, 1000])
def test_nothing_is_imported_when_rejected_rows_cannot_be_written(
    settings: Settings, tmp_path: Path, rows: int
) -> None:
    """As on a full disk: the error comes while they are written, or when the file is closed."""
    path = write_csv(tmp_path / "in.csv", [("amy", 5, ""), *[("", 1, "")] * rows])
    assert import_in(tmp_path, settings, str(path), path, limit=1000) == (
        3,
        f"leaderboard: cannot write rejected rows to {path}.rejected.csv: File too large; nothing was imported",
    )
    assert board(settings) == {}
