"""Opens the file that is imported, or standard input: gzipped or not, in any encoding.

No encoding is guessed from the text. A byte order mark says what it is. Without one it is UTF-8, or what the
operator says.
"""

import codecs
import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

from leaderboard.errors import InvalidInput

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN = "-"
"""The path that means standard input."""

_BEGINNING = 2**16
"""Bytes that are read to find out what the file is. Headers are much shorter."""
# Reading with these codecs drops the mark; writing writes one.
_BY_MARK = MappingProxyType(
    {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
)
_SAME = MappingProxyType({"utf-8-sig": {"utf-8", "utf-8-sig"}, "utf-16": {"utf-16", "utf-16-le", "utf-16-be"}})
_SHOWN = MappingProxyType({"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16"})
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_ARCHIVES = MappingProxyType(
    {
        b"PK\x03\x04": "a ZIP archive, as .xlsx and .ods files are",
        b"\xd0\xcf\x11\xe0": "an older Excel workbook (.xls)",
    }
)


class UnusableFile(InvalidInput):
    """The file as a whole cannot be imported. Nothing was written."""


def not_decoded(text: str) -> str | None:
    """Return the first byte that is not in the file's encoding.

    `surrogateescape` has made it a lone surrogate.
    """
    found = _ESCAPED_BYTE.search(text)
    return f"byte 0x{ord(found[0]) - 0xDC00:02X}" if found else None


def not_utf8(what: str, text: str) -> UnusableFile:
    """Return the error of a text that has such a byte, in a file whose encoding is not said."""
    return UnusableFile(
        f"{what} is not UTF-8: {not_decoded(text)}; give --encoding, such as windows-1252, or --encoding utf-8 to"
        " reject such rows alone"
    )


@dataclass(frozen=True, slots=True)
class Source:
    """An open input. `beginning` is what `text` begins with; reading it does not change `text`.

    Bytes that are not valid in `encoding` are lone surrogates in the text (`surrogateescape`).
    """

    text: TextIO
    beginning: str
    encoding: str
    """The codec. A text that is written with it has a byte order mark if this one has."""
    raw: io.BufferedReader
    status: os.stat_result

    @property
    def encoding_name(self) -> str:
        """The encoding as it is shown to people."""
        return _shown(self.encoding)

    @property
    def size(self) -> int | None:
        """Bytes; None for a pipe."""
        return self.status.st_size if stat.S_ISREG(self.status.st_mode) else None

    def position(self) -> int:
        """Return how many bytes have been read; 0 for a pipe."""
        return self.raw.tell() if self.size is not None else 0


@contextmanager
def open_source(path: str, encoding: str | None = None) -> Iterator[Source]:
    """Open a file; `-` is standard input. `encoding` is what the operator says. Raises UnusableFile."""
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(open(0 if path == STDIN else path, "rb", closefd=path != STDIN))
            status = os.fstat(raw.fileno())
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            data: io.BufferedIOBase = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
            head = data.read(_BEGINNING)
        except EOFError:
            raise UnusableFile("the compressed data are cut short") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UnusableFile(f"the compressed data are damaged: {error}") from error
        except OSError as error:
            raise UnusableFile(f"cannot read {path}: {error.strerror}") from error
        codec = _codec(head, encoding)
        try:
            beginning = codecs.getincrementaldecoder(codec)("surrogateescape").decode(head)
        except UnicodeDecodeError as error:
            raise UnusableFile(f"the file is not {_shown(codec)}: {error.reason}") from error
        whole = io.BufferedReader(_Replayed(head, data), _BEGINNING)
        text = io.TextIOWrapper(whole, codec, "surrogateescape", newline="")
        yield Source(stack.enter_context(text), beginning, codec, raw, status)


class _Replayed(io.RawIOBase):
    """A stream again from its beginning, some of which has been read already. A pipe cannot be read twice."""

    def __init__(self, beginning: bytes, rest: io.BufferedIOBase) -> None:
        self._beginning = memoryview(beginning)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room = memoryview(buffer).cast("B")
        read = self._beginning[: len(room)] or self._rest.read1(len(room))
        room[: len(read)] = read
        self._beginning = self._beginning[len(read) :]
        return len(read)


def _shown(codec: str) -> str:
    return _SHOWN.get(codecs.lookup(codec).name, codec)


def _codec(head: bytes, said: str | None) -> str:
    """Return the codec of a file with this beginning. Raises UnusableFile."""
    for mark, what in _ARCHIVES.items():
        if head.startswith(mark):
            raise UnusableFile(f"the file is {what}; save it as CSV (UTF-8), and import that file")
    by_mark = next((codec for mark, codec in _BY_MARK.items() if head.startswith(mark)), None)
    if by_mark is None:
        return said or "utf-8"
    if said is not None and codecs.lookup(said).name not in _SAME[by_mark]:
        raise UnusableFile(
            f"the file has the byte order mark of {by_mark[:6].rstrip('-').upper()}, but --encoding is {said};"
            " leave --encoding out"
        )
    return by_mark
