"""Reads the rows of bytes and of files."""

import codecs
import io
from pathlib import Path

from leaderboard.board_rules import BoardRules
from leaderboard.csv_scores import CsvScores
from leaderboard.database.importer import Row
from leaderboard.importing import CsvUsers, JsonUsers, Options, Rejected, open_source, understand
from leaderboard.importing.understanding import format_of

HEADER = b"username,score,imageUrl\n"
SCORES = CsvScores(BoardRules())
"""The scores of `default`."""
UTF8 = Options(encoding="utf-8")
"""What makes a row that is not UTF-8 rejected alone."""


def read(data: bytes, scores: CsvScores = SCORES, options: Options = UTF8) -> list[Row | Rejected]:
    """Return the rows of CSV bytes. Their number format is that of `scores`."""
    beginning = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode(data[: 2**16])
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
    understood = understand(beginning, "csv", options)
    return list(CsvUsers(text, understood, scores, encoding_is_said=options.encoding is not None))


def rows_of(path: Path, options: Options | None = None, rules: BoardRules | None = None) -> list[Row | Rejected]:
    """Return the rows of a file."""
    options, rules = options or Options(), rules or BoardRules()
    with open_source(str(path), options.encoding) as source:
        understood = understand(source.beginning, format_of(str(path), options), options)
        if understood.format == "jsonl":
            return list(JsonUsers(source.text, understood, rules))
        scores, said = CsvScores(rules, options.numbers), options.encoding is not None
        return list(CsvUsers(source.text, understood, scores, encoding_is_said=said))
