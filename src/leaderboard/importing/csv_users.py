"""Reads users from a CSV text: each row is good, or rejected with a reason."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TextIO, TypeVar

from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Row
from leaderboard.errors import InvalidField
from leaderboard.importing.columns import COLUMNS, clean_header
from leaderboard.importing.lines import Lines
from leaderboard.importing.source import UnusableFile, not_decoded, not_utf8
from leaderboard.importing.understanding import Understood, is_filled
from leaderboard.rules import check_external_id, clean_image_url, clean_username
from leaderboard.spreadsheet import original

_Cell = TypeVar("_Cell")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out: the line it starts on, the reason, and its cells as they are in the file."""

    line: int
    reason: str
    user_name: str = ""
    score: str = ""
    image_url: str = ""
    external_id: str = ""


class CsvUsers:
    """Iterates over the rows of a CSV text. Blank lines, and rows of blank cells, are skipped.

    `text` must be opened with `newline=""` and `errors="surrogateescape"`, `understood` is what its beginning was
    taken for, and `scores` reads its scores. Raises UnusableFile when reading fails. It is also raised for a score
    that needs an option, and, unless `encoding_is_said`, for a cell that is not UTF-8: other rows would be read
    wrongly or be rejected for the same reason.
    """

    def __init__(
        self, text: TextIO, understood: Understood, scores: CsvScores, *, encoding_is_said: bool = False
    ) -> None:
        self._columns = understood.columns
        self._scores = scores
        self._encoding_is_said = encoding_is_said
        self._lines = Lines(text)
        self._reader = csv.reader(self._lines, delimiter=understood.separator, strict=True)
        try:
            header = next(islice(self._reader, understood.before, None), [])
        except csv.Error as error:
            raise UnusableFile(f"line 1 is not valid CSV: {error}") from error
        if clean_header(header) != understood.columns.header:
            raise UnusableFile("line 1 is longer than 64 KB")
        self.has_images = understood.columns.image_at is not None

    def __iter__(self) -> Iterator[Row | Rejected]:
        lines, reader, parse_score = self._lines, self._reader, self._scores.parse
        columns = self._columns
        width = len(columns.header)
        name_at, score_at, image_at = columns.username_at, columns.score_at, columns.image_at
        id_at = columns.id_at
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
            if len(fields) != width:
                if is_filled(fields):
                    yield self._misshapen(line, fields)
                continue
            name, score = fields[name_at], fields[score_at]
            image_url = fields[image_at] if image_at is not None else ""
            if name.startswith("'"):
                name = original(name)
            external_id = "" if id_at is None else original(fields[id_at])
            try:
                row = line, clean_username(name), parse_score(score), _parse_image_url(image_url)
                yield row if id_at is None else (*row, _parse_external_id(external_id))
            except ValueError:
                if is_filled(fields):
                    yield self._without_apostrophes(line, name, score, image_url, external_id)

    def _without_apostrophes(
        self, line: int, name: str, score: str, image_url: str, external_id: str
    ) -> Row | Rejected:
        """Read again a row that is not valid, without the apostrophes of `spreadsheet.neutral`."""
        score, image_url = original(score), original(image_url)
        try:
            row = line, clean_username(name), self._scores.parse(score), _parse_image_url(image_url)
            return row if self._columns.id_at is None else (*row, _parse_external_id(external_id))
        except ValueError:
            self._check_file(line, name, score, image_url, external_id)
            cells = name, score, image_url, external_id
            return Rejected(line, rejection_reason(self._scores, *cells), *cells)

    def _check_file(self, line: int, *cells: str) -> None:
        """Raise UnusableFile if the file needs an option that it has not got."""
        for column, cell in zip(COLUMNS, cells, strict=True):
            if not_decoded(cell) and not self._encoding_is_said:
                raise not_utf8(f"line {line}: the {column}", cell)
        needs = self._scores.needs_option(cells[1])
        if needs:
            raise UnusableFile(
                f"line {line}: the score {cells[1].strip()!r} needs an option: it is {needs};"
                " --decimal . --thousands none rejects such rows alone"
            )

    def _misshapen(self, line: int, fields: list[str]) -> Rejected:
        columns = self._columns
        cells = dict(enumerate(fields[: len(columns.header)]))
        reason = f"has {len(fields)} fields, the header has {len(columns.header)}"
        if fields[len(columns.header) :] == [""]:
            reason += "; if all rows end with a separator, write one at the end of the header too"
        positions = (columns.username_at, columns.score_at, columns.image_at, columns.id_at)
        return Rejected(
            line, reason, *("" if each is None else original(cells.get(each, "")) for each in positions)
        )


def rejection_reason(scores: CsvScores, name: str, score: str, image_url: str, external_id: str = "") -> str:
    """Return all that is wrong with a row's cells, by column, in the words that HTTP uses."""
    checks = (clean_username, scores.parse, _parse_image_url, _parse_external_id)
    return reason_of(zip(COLUMNS, map(_decoded, checks), (name, score, image_url, external_id), strict=True))


def reason_of(cells: Iterable[tuple[str, Callable[[_Cell], object], _Cell]]) -> str:
    """Return what the checks of the cells say, by column."""
    problems = {}
    for column, check, cell in cells:
        try:
            check(cell)
        except ValueError as error:
            problems[column] = str(error)
    return str(InvalidField(problems))


def _decoded(check: Callable[[str], object]) -> Callable[[str], object]:
    """Return a check that says first if a cell that is not valid is not in the encoding of the file."""

    def decoded(cell: str) -> object:
        try:
            return check(cell)
        except ValueError:
            if byte := not_decoded(cell):
                raise ValueError(f"not in the encoding of the file: {byte}") from None
            raise

    return decoded


def _parse_external_id(cell: str) -> str | None:
    return check_external_id(cell) if cell else None


def _parse_image_url(cell: str) -> str | None:
    url = cell.strip(" ")
    return clean_image_url(url) if url else None
