"""Reads a text line by line, counts the lines, and limits what one row may take."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from typing import TextIO

from leaderboard.importing.source import UnusableFile

# Far more than three fields need. Python's csv limits the size of a field, but not the number of fields.
_MAX_ROW_CHARACTERS = 2**20


class Lines:
    """Iterates over the physical lines of a text.

    Raises csv.Error when a row has too many characters, after it has skipped the line; UnusableFile when reading
    fails.
    """

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._room = _MAX_ROW_CHARACTERS
        self.number = 0

    def start_row(self) -> None:
        """Let the next row have as many characters as a row may have."""
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
        except UnicodeDecodeError as error:
            raise UnusableFile(f"not {error.encoding} after line {self.number}: {error.reason}") from error
        except OSError as error:
            raise UnusableFile(f"reading failed after line {self.number}: {error}") from error
