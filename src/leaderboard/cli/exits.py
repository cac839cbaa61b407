"""Exit statuses, and the error line before an exit."""

import sys
from enum import IntEnum
from typing import NoReturn

from leaderboard.printable import printable, printable_lines


class ExitStatus(IntEnum):
    """The exit statuses of the commands; 0 is success."""

    NO = 1
    """Done, and the answer is no: the cache differs, rows were rejected."""
    USAGE = 2
    """A wrong option or setting."""
    FAILED = 3
    """Not done."""
    INTERRUPTED = 130


def fail(text: str, status: ExitStatus) -> NoReturn:
    """Print an error on standard error and exit."""
    first, *more = text.split("\n", 1)
    print(f"leaderboard: {printable(first)}", *map(printable_lines, more), sep="\n", file=sys.stderr)
    raise SystemExit(status)
