"""Writes the rejected rows to a new file beside the imported one."""

import csv
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TextIO

from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Repeated
from leaderboard.importing.csv_users import COLUMNS, REPORT_COLUMNS, Rejected
from leaderboard.importing.reports import ImportReport
from leaderboard.importing.source import STDIN, UnusableFile


class RejectedFile:
    """Counts, reports and writes the rejected rows. The file is created for the first of them.

    It is never written over `source`, the status of the imported file. Raises UnusableFile when a row cannot be
    written.
    """

    def __init__(
        self, path: str, on_rejected: Callable[[Rejected], None], source: os.stat_result | None = None
    ) -> None:
        beside = Path("stdin.rejected.csv" if path == STDIN else f"{path}.rejected.csv")
        # The folder of the imported file may be read-only.
        self._places = (beside, Path(beside.name))
        self._on_rejected = on_rejected
        self._source = source
        self._path: Path | None = None
        self._file: TextIO | None = None
        self._count = 0

    def add(self, row: Rejected) -> None:
        """Write a row and call `on_rejected` with it."""
        if self._file is None:
            self._file, self._path = self._create()
            self._write(self._file, *REPORT_COLUMNS, *COLUMNS)
        self._write(self._file, row.line, row.reason, row.user_name, row.score, row.image_url)
        self._count += 1
        self._on_rejected(row)

    def add_repeated(self, repeated: Repeated, scores: CsvScores) -> None:
        """Write a row whose username an earlier line of the file has."""
        line, user_name, value, image_url = repeated.row
        reason = f"username: duplicate of line {repeated.first_line}"
        self.add(Rejected(line, reason, user_name, scores.format(value), image_url or ""))

    def report(self, read: int) -> ImportReport:
        """Return the report when `read` rows have been read and none written."""
        return ImportReport(read, rejected=self._count, rejected_path=self._path)

    def _write(self, file: TextIO, *cells: object) -> None:
        with self._write_errors():
            csv.writer(file).writerow(cells)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnusableFile(f"cannot write rejected rows to {self._path}: {error.strerror}") from error

    def _create(self) -> tuple[TextIO, Path]:
        for place in self._places:
            try:
                return _new_file(place, self._source), place
            except OSError as error:
                failure = error
        raise UnusableFile(f"cannot write rejected rows to {failure.filename}: {failure.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            with self._write_errors() if kind is None else suppress(OSError):
                self._file.close()


def _new_file(path: Path, source: os.stat_result | None) -> TextIO:
    """Create a file for its owner only, in place of an older regular file. Raises OSError.

    The rows are users' data, and in a folder such as /tmp another user may have put a link, a pipe or a file there
    in order to read them. So nothing that exists is opened. An older file is unlinked, which leaves its other hard
    links alone. Mode "x" creates a file and follows no link.
    """
    with suppress(FileNotFoundError):
        there = path.lstat()
        if stat.S_ISLNK(there.st_mode):
            raise OSError(errno.EEXIST, "it is a symbolic link", str(path))
        if not stat.S_ISREG(there.st_mode):
            raise OSError(errno.EEXIST, "it is not a regular file", str(path))
        if source is not None and os.path.samestat(there, source):
            raise OSError(errno.EEXIST, "it is the file being imported", str(path))
        path.unlink()
    # Bytes that are not UTF-8 are written as they were read.
    return open(path, "x", encoding="utf-8", errors="surrogateescape", newline="", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
