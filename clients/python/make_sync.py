"""Makes `sync_client.py` from `async_client.py`, so that each call is written once: `make client`."""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "src" / "leaderboard_client"

WORDS = {
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\bAsync(?=[A-Z])": "",
    r"\b__a(enter|exit)__": r"__\1__",
    r"\baclose\b": "close",
    r"\basyncio\b": "time",
}
"""What becomes of each word in the code."""
SENTENCES = {
    "The client for asyncio. `make client` makes `sync_client.py` from this file.": (
        "The synchronous client. Made from `async_client.py` by `make client`; change that file."
    ),
    "It may be shared by all tasks of an event loop.": "It may be shared by threads.",
}
"""Sentences that are otherwise for the synchronous client."""


def synchronous(source: str) -> str:
    """Returns the source of the synchronous client."""
    for sentence, replacement in SENTENCES.items():
        if sentence not in source:
            raise ValueError(f"not found: {sentence}")
        source = source.replace(sentence, replacement)
    for pattern, replacement in WORDS.items():
        source = re.sub(pattern, replacement, source)
    return _formatted(source)


def _formatted(source: str) -> str:
    for command in (["check", "--fix-only", "--select", "I", "--quiet"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(FOLDER / "sync_client.py"), "-"]
        source = subprocess.run(ruff, input=source, capture_output=True, text=True, check=True).stdout
    return source


if __name__ == "__main__":
    made = synchronous((FOLDER / "async_client.py").read_text("utf-8"))
    (FOLDER / "sync_client.py").write_text(made, "utf-8")
