"""Counts the rejected rows, and writes them to a new file beside the imported one."""

import csv
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self, TextIO

from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Repeated
from leaderboard.importing.csv_users import Rejected
from leaderboard.importing.reports import ImportReport
from leaderboard.importing.source import STDIN, UnusableFile
from leaderboard.importing.understanding import Understood
from leaderboard.spreadsheet import neutral

REPORT_COLUMNS = ("line", "reason")
_NUMBER = re.compile(r"[+-]?[0-9.,' \u00a0\u202f\u2019]*(?:[eE][+-]?[0-9]+)? *")


class RejectedRows:
    """Counts and reports the rejected rows."""

    def __init__(self, on_rejected: Callable[[Rejected], None]) -> None:
        self._on_rejected = on_rejected
        self._count = 0

    def add(self, row: Rejected) -> None:
        """Count a row, and call `on_rejected` with it."""
        self._count += 1
        self._on_rejected(row)

    def add_repeated(self, repeated: Repeated, scores: CsvScores) -> None:
        """Add a row that was dropped."""
        line, user_name, value, *others = repeated.row
        if repeated.first_line is None:
            reason = "username: another user has it, and no user has the externalId"
        else:
            reason = f"{repeated.same}: duplicate of line {repeated.first_line}"
        self.add(Rejected(line, reason, user_name, scores.format(value), *(cell or "" for cell in others)))

    def report(self, read: int) -> ImportReport:
        """Return the report when `read` rows have been read and none written."""
        return ImportReport(read, rejected=self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pass


class RejectedFile(RejectedRows):
    """Writes the rejected rows, too. The file is created for the first of them.

    It has the encoding, the separator, the names of columns and the format of numbers of the imported file. So the
    same options import it. Cells that a spreadsheet would run are neutral.

    It is never written over `source`, the status of the imported file. Raises UnusableFile when a row cannot be
    written.
    """

    def __init__(
        self,
        path: str,
        on_rejected: Callable[[Rejected], None],
        understood: Understood,
        encoding: str = "utf-8",
        source: os.stat_result | None = None,
    ) -> None:
        super().__init__(on_rejected)
        beside = Path("stdin.rejected.csv" if path == STDIN else f"{path}.rejected.csv")
        # The folder of the imported file may be read-only.
        self._places = (beside, Path(beside.name))
        self._columns = understood.own_columns()
        self._separator = understood.separator or ","
        self._encoding = encoding
        self._source = source
        self._path: Path | None = None
        self._file: TextIO | None = None

    def add(self, row: Rejected) -> None:
        """Write a row and call `on_rejected` with it."""
        if self._file is None:
            self._file, self._path = self._create()
            self._write(self._file, *REPORT_COLUMNS, *map(neutral, self._columns.values()))
        score = row.score if _NUMBER.fullmatch(row.score) else neutral(row.score)
        cells = {
            "username": neutral(row.user_name),
            "score": score,
            "imageUrl": neutral(row.image_url),
            "externalId": neutral(row.external_id),
        }
        self._write(self._file, str(row.line), row.reason, *(cells[column] for column in self._columns))
        super().add(row)

    def report(self, read: int) -> ImportReport:
        """Return the report when `read` rows have been read and none written."""
        return replace(super().report(read), rejected_path=self._path)

    def _write(self, file: TextIO, *cells: str) -> None:
        with self._write_errors():
            csv.writer(file, delimiter=self._separator).writerow(map(self._encodable, cells))

    def _encodable(self, cell: str) -> str:
        """Return the cell, or nothing if the encoding of the file lacks one of its characters.

        JSON may have half of a surrogate pair, and a name in normal form C other characters than the file.
        """
        try:
            cell.encode(self._encoding, "surrogateescape")
        except UnicodeEncodeError:
            return ""
        return cell

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnusableFile(f"cannot write rejected rows to {self._path}: {error.strerror}") from error

    def _create(self) -> tuple[TextIO, Path]:
        for place in self._places:
            try:
                return _new_file(place, self._encoding, self._source), place
            except OSError as error:
                failure = error
        raise UnusableFile(f"cannot write rejected rows to {failure.filename}: {failure.strerror}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            with self._write_errors() if kind is None else suppress(OSError):
                self._file.close()


def _new_file(path: Path, encoding: str, source: os.stat_result | None) -> TextIO:
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
    # Bytes that are not in the encoding are written as they were read.
    return open(path, "x", encoding=encoding, errors="surrogateescape", newline="", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
