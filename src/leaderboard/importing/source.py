"""Opens the file that is imported: gzipped or not, or standard input."""

import gzip
import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TextIO

from leaderboard.errors import InvalidInput

STDIN = "-"
"""The path that means standard input."""


class UnusableFile(InvalidInput):
    """The file as a whole cannot be imported. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Source:
    """An open input."""

    text: TextIO
    raw: io.BufferedReader
    status: os.stat_result

    @property
    def size(self) -> int | None:
        """Bytes; None for a pipe."""
        return self.status.st_size if stat.S_ISREG(self.status.st_mode) else None

    def position(self) -> int:
        """Return how many bytes have been read; 0 for a pipe."""
        return self.raw.tell() if self.size is not None else 0


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Open a file; `-` is standard input. Raises UnusableFile."""
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(open(0 if path == STDIN else path, "rb", closefd=path != STDIN))
            status = os.fstat(raw.fileno())
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        except OSError as error:
            raise UnusableFile(f"cannot read {path}: {error.strerror}") from error
        data = io.BufferedReader(stack.enter_context(gzip.GzipFile(fileobj=raw)), 2**16) if zipped else raw
        # `utf-8-sig` drops the byte order mark of Excel's exports.
        text = io.TextIOWrapper(data, "utf-8-sig", "surrogateescape", newline="")
        yield Source(stack.enter_context(text), raw, status)
