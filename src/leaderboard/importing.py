"""Reads users from CSV as a stream and hands them to PostgreSQL; what cannot be used is reported by line.

A fault in a row costs that row. A fault in the file (no header, cut short) stops the import before anything
is written.
"""

import csv
import errno
import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, TextIO

from leaderboard.database.importer import CHUNK, Importer, OnConflict, Repeated, Row, WriteProgress
from leaderboard.errors import InvalidField, InvalidInput
from leaderboard.rules import SCORE_ALLOWED, check_score, clean_image_url, clean_username

__all__ = ["CsvUsers", "ImportReport", "OnConflict", "Progress", "Rejected", "UnusableFile", "import_file"]

STDIN = "-"
_COLUMNS = ("username", "score", "imageUrl")
# What we add to rejected rows, so that their file can be corrected and imported as it is.
_OUR_COLUMNS = ("line", "reason")
# Far more than three fields can need. Python's csv bounds a field, but not how many there are.
_MAX_ROW = 2**20
# No more digits than this, leading zeros included: Python takes quadratic time for thousands.
_SCORE = re.compile(r" *(-?[0-9]{1,100}) *")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class UnusableFile(InvalidInput):
    """The file as a whole cannot be imported, and nothing was written."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out: the line it starts on, why, and its cells as they are in the file."""

    line: int
    reason: str
    user_name: str = ""
    score: str = ""
    image_url: str = ""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the rows: `read` = `imported` (new users) + `updated` + `skipped` + `rejected`."""

    read: int = 0
    imported: int = 0
    updated: int = 0
    skipped: int = 0
    rejected: int = 0
    rejected_path: Path | None = None
    """Where the rejected rows are, if there are any."""

    def summary(self) -> str:
        """All of it in one line."""
        counts = ("read", "imported", "updated", "skipped", "rejected")
        text = ", ".join(f"{getattr(self, name):,} {name}" for name in counts)
        return f"{text}: see {self.rejected_path}" if self.rejected_path else text


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is. First all is read, then all is written; `rows` and `done` start again from 0.

    `done` of `total` are bytes of the file (compressed, if it is) while reading, rows while writing. `total` is
    None where it is not known: a pipe. What `report` counts as imported and updated is committed.
    """

    stage: Literal["reading", "writing"]
    rows: int
    done: int
    total: int | None
    report: ImportReport


async def import_file(
    path: str,
    importer: Importer,
    on_conflict: OnConflict,
    progress: Callable[[Progress], None],
    rejected: Callable[[Rejected], None] = lambda _: None,
) -> ImportReport:
    """Import the CSV file at `path`, gzipped or not; `-` is standard input.

    `progress` is called about every 10,000 rows, `rejected` for each row left out, which also goes to a new file
    `<path>.rejected.csv`, readable by its owner only. Raises UnusableFile, or NamesTaken if `on_conflict` is FAIL
    and names exist: nothing was written then. After any other error or a cancellation, what the last `progress`
    reported is committed (at least), and importing again completes it.
    """
    read = 0
    with _opened(path) as source, _RejectedFile(path, rejected, source.status) as rejects:
        await importer.begin()
        good: list[Row] = []
        users = CsvUsers(source.text)
        for row in users:
            read += 1
            if isinstance(row, Rejected):
                rejects.add(row)
            else:
                good.append(row)
            if read % CHUNK == 0:
                await importer.load(good)
                good.clear()
                progress(Progress("reading", read, source.position(), source.size, rejects.report(read)))
        await importer.load(good)
        await importer.drop_repeated(rejects.add_repeated)
        progress(Progress("reading", read, source.position(), source.size, rejects.report(read)))
    report = rejects.report(read)

    def written(so_far: WriteProgress) -> None:
        nonlocal report
        report = replace(report, imported=so_far.imported, updated=so_far.updated, skipped=so_far.skipped)
        progress(Progress("writing", so_far.rows, so_far.rows, importer.rows, report))

    await importer.write(on_conflict, users.has_images, written)
    return report


class CsvUsers:
    """The rows of a CSV text with a header line, one at a time, each good or Rejected; blank lines are left out.

    `text` is opened with `newline=""` and `errors="surrogateescape"`. Raises UnusableFile when the header is
    not as it must be, or later, when reading fails.
    """

    def __init__(self, text: TextIO) -> None:
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, strict=True)
        self._header = _read_header(self._reader)
        self.has_images = "imageUrl" in self._header

    def __iter__(self) -> Iterator[Row | Rejected]:
        lines, reader, header = self._lines, self._reader, self._header
        name_at, score_at = header.index("username"), header.index("score")
        image_at = header.index("imageUrl") if self.has_images else None
        while True:
            line = lines.number + 1
            lines.start_row()
            try:
                fields = next(reader, None)
            except csv.Error as error:
                upto = f" up to line {lines.number}" if lines.number > line else ""
                yield Rejected(line, f"not valid CSV{upto}: {error}")
                continue
            if fields is None:
                return
            if not fields:
                continue
            if len(fields) != len(header):
                cells = dict(zip(header, fields, strict=False))
                reason = f"has {len(fields)} fields, the header has {len(header)}"
                yield Rejected(line, reason, *(cells.get(column, "") for column in _COLUMNS))
                continue
            name, score = fields[name_at], fields[score_at]
            image_url = fields[image_at] if image_at is not None else ""
            try:
                yield line, clean_username(name), _parse_score(score), _parse_image_url(image_url)
            except ValueError:
                yield Rejected(line, _reason(name, score, image_url), name, score, image_url)


class _Lines:
    """The physical lines of a text, counted, and never more of them in one row than fit in memory."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._room = _MAX_ROW
        self.number = 0

    def start_row(self) -> None:
        self._room = _MAX_ROW

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        self._room -= len(line)
        if self._room <= 0:
            while line and not line.endswith(("\n", "\r")):
                line = self._read()
            raise csv.Error(f"more than {_MAX_ROW} characters")
        return line

    def _read(self) -> str:
        try:
            return self._text.readline(_MAX_ROW)
        except EOFError:
            raise UnusableFile(f"the compressed data are cut short somewhere after line {self.number}") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UnusableFile(f"the compressed data are damaged after line {self.number}: {error}") from error
        except OSError as error:
            raise UnusableFile(f"reading failed after line {self.number}: {error}") from error


def _read_header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip(" ") for name in next(reader, [])]
    except csv.Error as error:
        raise UnusableFile(f"line 1 is not valid CSV: {error}") from error
    wanted = f"it must name the columns {', '.join(_COLUMNS)} (the last may be left out)"
    if not header:
        raise UnusableFile(f"line 1 is empty; {wanted}")
    if problem := _not_utf8(",".join(header)):
        raise UnusableFile(f"line 1 is {problem}")
    shown = ascii(",".join(header)[:80])
    for column in ("username", "score"):
        if column not in header:
            raise UnusableFile(f"line 1 has no column {column}: {shown}; {wanted}")
    if unknown := set(header).difference(_COLUMNS, _OUR_COLUMNS):
        raise UnusableFile(f"line 1 has an unknown column {ascii(min(unknown))[:80]}; {wanted}")
    if len(set(header)) < len(header):
        raise UnusableFile(f"line 1 names a column twice: {shown}; {wanted}")
    return header


def _parse_score(cell: str) -> int:
    match = _SCORE.fullmatch(cell)
    if match is None:
        raise ValueError(
            f"{'is missing' if not cell.strip() else 'is not a number in plain digits'}; {SCORE_ALLOWED}"
        )
    return check_score(int(match[1]))


def _parse_image_url(cell: str) -> str | None:
    url = cell.strip(" ")
    return clean_image_url(url) if url else None


def _reason(name: str, score: str, image_url: str) -> str:
    """All that is wrong with a row, in the same words as HTTP says it."""
    problems = {}
    checks: tuple[Callable[[str], object], ...] = (clean_username, _parse_score, _parse_image_url)
    for column, check, cell in zip(_COLUMNS, checks, (name, score, image_url), strict=True):
        try:
            check(cell)
        except ValueError as error:
            problems[column] = _not_utf8(cell) or str(error)
    return str(InvalidField(problems))


def _not_utf8(text: str) -> str | None:
    """A byte that is no UTF-8 arrives as a lone surrogate, which `rules` and PostgreSQL refuse."""
    found = _ESCAPED_BYTE.search(text)
    return f"not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02X}" if found else None


@dataclass(frozen=True, slots=True)
class _Source:
    """An open input: its text, and where we are in its bytes."""

    text: TextIO
    raw: io.BufferedReader
    status: os.stat_result

    @property
    def size(self) -> int | None:
        """Bytes; None where that is not known: a pipe."""
        return self.status.st_size if stat.S_ISREG(self.status.st_mode) else None

    def position(self) -> int:
        return self.raw.tell() if self.size is not None else 0


@contextmanager
def _opened(path: str) -> Iterator[_Source]:
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
        yield _Source(stack.enter_context(text), raw, status)


class _RejectedFile:
    """The rejected rows, counted, reported and written; the file is made at the first of them.

    `source` is the file that is imported: it is never replaced. Raises UnusableFile when a row cannot be kept.
    """

    def __init__(self, path: str, tell: Callable[[Rejected], None], source: os.stat_result | None = None) -> None:
        beside = Path("stdin.rejected.csv" if path == STDIN else f"{path}.rejected.csv")
        # The input may lie where we must not write.
        self._places = (beside, Path(beside.name))
        self._tell = tell
        self._source = source
        self._path: Path | None = None
        self._file: TextIO | None = None
        self._count = 0

    def add(self, row: Rejected) -> None:
        if self._file is None:
            self._file, self._path = self._create()
            self._write(self._file, *_OUR_COLUMNS, *_COLUMNS)
        self._write(self._file, row.line, row.reason, row.user_name, row.score, row.image_url)
        self._count += 1
        self._tell(row)

    def add_repeated(self, repeated: Repeated) -> None:
        line, user_name, score, image_url = repeated.row
        reason = f"username: duplicate of line {repeated.first_line}"
        self.add(Rejected(line, reason, user_name, str(score), image_url or ""))

    def report(self, read: int) -> ImportReport:
        """Of a file of which `read` rows have been read and nothing is written yet."""
        return ImportReport(read, rejected=self._count, rejected_path=self._path)

    def _write(self, file: TextIO, *cells: object) -> None:
        with self._failing():
            csv.writer(file).writerow(cells)

    @contextmanager
    def _failing(self) -> Iterator[None]:
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
            with self._failing() if kind is None else suppress(OSError):
                self._file.close()


def _new_file(path: Path, source: os.stat_result | None) -> TextIO:
    """A new file for its owner only, which replaces an older regular file. Raises OSError.

    The rows are users' data, and others may write to the folder if it is one like /tmp. So nothing that is there
    is opened: not what a link leads to, not a pipe, not a file that another user made in order to read the rows.
    An older file is unlinked, and keeps its other names; mode "x" makes a file and follows no link.
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
    # Bytes that are no UTF-8 go out as they came in.
    return open(path, "x", encoding="utf-8", errors="surrogateescape", newline="", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
