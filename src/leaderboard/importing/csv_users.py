"""Reads users from a CSV text: each row is good, or rejected with a reason."""

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO

from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Row
from leaderboard.errors import InvalidField
from leaderboard.importing.source import UnusableFile
from leaderboard.rules import clean_image_url, clean_username

COLUMNS = ("username", "score", "imageUrl")
REPORT_COLUMNS = ("line", "reason")
"""The columns that a file of rejected rows has too. They are allowed, so that it can be corrected and imported."""

# Far more than three fields need. Python's csv limits the size of a field, but not the number of fields.
_MAX_ROW_CHARACTERS = 2**20
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out: the line it starts on, the reason, and its cells as they are in the file."""

    line: int
    reason: str
    user_name: str = ""
    score: str = ""
    image_url: str = ""


class CsvUsers:
    """Iterates over the rows of a CSV text with a header line; blank lines are skipped.

    `text` must be opened with `newline=""` and `errors="surrogateescape"`, and `scores` reads its scores. Raises
    UnusableFile when the header is wrong, or later, when reading fails.
    """

    def __init__(self, text: TextIO, scores: CsvScores) -> None:
        self._scores = scores
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, strict=True)
        self._header = _read_header(self._reader)
        self.has_images = "imageUrl" in self._header

    def __iter__(self) -> Iterator[Row | Rejected]:
        lines, reader, header, parse_score = self._lines, self._reader, self._header, self._scores.parse
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
                yield Rejected(line, reason, *(cells.get(column, "") for column in COLUMNS))
                continue
            name, score = fields[name_at], fields[score_at]
            image_url = fields[image_at] if image_at is not None else ""
            try:
                yield line, clean_username(name), parse_score(score), _parse_image_url(image_url)
            except ValueError:
                reason = rejection_reason(self._scores, name, score, image_url)
                yield Rejected(line, reason, name, score, image_url)


def rejection_reason(scores: CsvScores, name: str, score: str, image_url: str) -> str:
    """Return all that is wrong with a row's cells, by column, in the words that HTTP uses."""
    problems = {}
    checks: tuple[Callable[[str], object], ...] = (clean_username, scores.parse, _parse_image_url)
    for column, check, cell in zip(COLUMNS, checks, (name, score, image_url), strict=True):
        try:
            check(cell)
        except ValueError as error:
            problems[column] = _not_utf8(cell) or str(error)
    return str(InvalidField(problems))


class _Lines:
    """Counts the physical lines of a text, and limits the characters of one row."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._room = _MAX_ROW_CHARACTERS
        self.number = 0

    def start_row(self) -> None:
        self._room = _MAX_ROW_CHARACTERS

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
            raise csv.Error(f"more than {_MAX_ROW_CHARACTERS} characters")
        return line

    def _read(self) -> str:
        try:
            return self._text.readline(_MAX_ROW_CHARACTERS)
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
    wanted = f"it must name the columns {', '.join(COLUMNS)} (the last may be left out)"
    if not header:
        raise UnusableFile(f"line 1 is empty; {wanted}")
    if problem := _not_utf8(",".join(header)):
        raise UnusableFile(f"line 1 is {problem}")
    shown = ascii(",".join(header)[:80])
    for column in ("username", "score"):
        if column not in header:
            raise UnusableFile(f"line 1 has no column {column}: {shown}; {wanted}")
    if unknown := set(header).difference(COLUMNS, REPORT_COLUMNS):
        raise UnusableFile(f"line 1 has an unknown column {ascii(min(unknown))[:80]}; {wanted}")
    if len(set(header)) < len(header):
        raise UnusableFile(f"line 1 names a column twice: {shown}; {wanted}")
    return header


def _parse_image_url(cell: str) -> str | None:
    url = cell.strip(" ")
    return clean_image_url(url) if url else None


def _not_utf8(text: str) -> str | None:
    """Return the first byte that is not UTF-8. `surrogateescape` has decoded it to a lone surrogate."""
    found = _ESCAPED_BYTE.search(text)
    return f"not UTF-8: byte 0x{ord(found[0]) - 0xDC00:02X}" if found else None
