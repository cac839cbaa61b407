"""Finds out what a file is from its beginning: its separator and its columns.

What the beginning does not say for certain is not guessed: the error names the option that says it.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from leaderboard.importing.columns import COLUMNS, ColumnOptions, Columns, shown
from leaderboard.importing.json_objects import parse_object
from leaderboard.importing.source import STDIN, UnusableFile, not_decoded, not_utf8
from leaderboard.number_formats import NumberOptions

Format = Literal["csv", "jsonl"]
SEPARATORS = MappingProxyType({",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"})
"""The separators that are recognised, and what they are called."""
# The first line of some files for Excel. It is not a row.
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])(?:\r\n?|\n)")
_JSON_ARRAY = re.compile(r"\s*\[\s*[\[{\]]")
_NEEDED = "its first line must name the columns username and score"


@dataclass(frozen=True, slots=True)
class Options:
    """What is said about a file. None: it is found out."""

    format: Format | None = None
    encoding: str | None = None
    separator: str | None = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    numbers: NumberOptions = field(default_factory=NumberOptions)


@dataclass(frozen=True, slots=True)
class Understood:
    """What a file was taken for.

    `separator` is empty for JSON Lines. `before` is how many records of CSV there are before the header.
    """

    columns: Columns
    separator: str = ""
    before: int = 0

    @property
    def format(self) -> Format:
        """csv or jsonl."""
        return "csv" if self.separator else "jsonl"

    def own_columns(self) -> dict[str, str]:
        """Return what the columns that are read are called in the file of rejected rows, which is always CSV.

        As in this file, so that the same options find them.
        """
        if self.format == "csv":
            return self.columns.named()
        return {name: name for name in COLUMNS if name != "externalId" or self.columns.id_at is not None}

    def describe(self, encoding: str, number: str) -> list[str]:
        """Return one line that says all of it, and one with the columns that are ignored, if there are any."""
        named = self.columns.named()
        fields = ", ".join(f"{column} is {shown([name])}" for column, name in named.items())
        if "imageUrl" not in named:
            fields += ", no imageUrl"
        kind = "JSON Lines" if self.format == "jsonl" else "CSV"
        parts = f" separated by {SEPARATORS.get(self.separator, repr(self.separator))}" if self.separator else ""
        ignored = self.columns.ignored()
        unnamed = ignored.count("")
        others = [shown([name for name in ignored if name]), f"{unnamed} without a name" if unnamed else ""]
        return [
            f"read as {kind} in {encoding}{parts}: {fields}; numbers as {number}",
            *([f"ignored columns: {', '.join(filter(None, others))}"] if ignored else []),
        ]


def format_of(path: str, options: Options) -> Format:
    """Return the format that is said, or that the name of the file has."""
    if options.format is not None:
        return options.format
    name = path.lower().removesuffix(".gz")
    return "jsonl" if path != STDIN and name.endswith((".jsonl", ".ndjson")) else "csv"


def understand(beginning: str, file_format: Format, options: Options) -> Understood:
    """Return what a file with this beginning is. Raises UnusableFile, which says what to change."""
    if not beginning.strip():
        raise UnusableFile(f"the file is empty; {_NEEDED}")
    if _JSON_ARRAY.match(beginning):
        raise UnusableFile("the file is a JSON array; write one object on each line, and give --format jsonl")
    if file_format == "jsonl":
        return _understand_json(beginning, options)
    if beginning.lstrip().startswith("{"):
        raise UnusableFile("the file begins with a JSON object; if it has one on each line, give --format jsonl")
    return _understand_csv(beginning, options)


def _understand_csv(beginning: str, options: Options) -> Understood:
    separators = [options.separator] if options.separator else list(SEPARATORS)
    if line := _SEPARATOR_LINE.match(beginning):
        separators = [options.separator or line[1]]
    found: list[Understood] = []
    problems: list[tuple[int, str]] = []
    for separator in separators:
        try:
            before, line_number, header = _header(beginning, separator)
        except csv.Error as error:
            problems.append((0, f"line 1 is not valid CSV: {error}"))
            continue
        if options.encoding is None and not_decoded("".join(header)):
            raise not_utf8(f"line {line_number}", "".join(header))
        try:
            found.append(Understood(options.columns.find(header), separator, before))
        except ValueError as error:
            problems.append((len(header), f"line {line_number}: {_hint(header)}{error}"))
    if len(found) > 1:
        names = " and ".join(SEPARATORS[each.separator] for each in found)
        raise UnusableFile(f"line 1 can be separated by {names}; give --separator")
    if not found:
        raise UnusableFile(max(problems, key=lambda problem: problem[0])[1])
    return found[0]


def _header(beginning: str, separator: str) -> tuple[int, int, list[str]]:
    """Return how many records are before the header, the line where it ends, and its cells.

    Raises csv.Error.
    """
    reader = csv.reader(io.StringIO(beginning, newline=""), delimiter=separator, strict=True)
    skips = 1 if _SEPARATOR_LINE.match(beginning) else 0
    for before, cells in enumerate(reader):
        if before >= skips and is_filled(cells):
            return before, reader.line_num, cells
    raise csv.Error("there is no header")


def is_filled(cells: list[str]) -> bool:
    """Return whether a record has anything but blanks. A spreadsheet writes an empty row as `;;;`."""
    return any(cell.strip() for cell in cells)


def _hint(header: list[str]) -> str:
    if any("\0" in cell for cell in header):
        return "it has NUL characters, as UTF-16 without a byte order mark has: give --encoding utf-16-le; "
    return ""


def _understand_json(beginning: str, options: Options) -> Understood:
    if options.separator or options.numbers != NumberOptions():
        raise UnusableFile("--separator, --decimal and --thousands are for CSV; JSON says how numbers are written")
    number, first = next(
        (number, line) for number, line in enumerate(io.StringIO(beginning, newline=""), 1) if line.strip()
    )
    try:
        keys = list(parse_object(first))
    except ValueError as error:
        raise UnusableFile(f"line {number} is not a JSON object on one line: {error}") from None
    try:
        found = options.columns.find(keys).named()
        # Other objects may have them.
        others = [column for column in COLUMNS if column not in found and column not in options.columns.names]
        return Understood(options.columns.find([*keys, *others]))
    except ValueError as error:
        raise UnusableFile(f"line {number}: {error}") from None
