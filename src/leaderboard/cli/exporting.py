"""`leaderboard export`: the entries of a board as CSV."""

import errno
import gzip
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TextIO

import typer

from leaderboard.app import App
from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.cli.operating import BoardOption
from leaderboard.cli.options import SeasonOption, season_ref
from leaderboard.cli.process import with_app
from leaderboard.errors import LeaderboardError
from leaderboard.exporting import export_csv
from leaderboard.printable import printable


def export(
    board: BoardOption = DEFAULT_BOARD,
    season: SeasonOption = None,
    output: Annotated[
        str | None,
        typer.Option(help="The file to write, gzipped if its name ends with .gz; default: standard output."),
    ] = None,
) -> None:
    """Export the entries of a board as CSV, best first; `leaderboard import` reads it."""
    wanted = season_ref(board, season)

    async def work(app: App) -> str:
        async with app.database.exporting(wanted) as exporter:
            with _Output(output) as file:
                count = await export_csv(exporter, file)
            number = "" if exporter.season_number is None else f", season {exporter.season_number}"
            return f"{count:,} entries of the board {board}{number}"

    print(printable(with_app(work)), file=sys.stderr)


class CannotWrite(LeaderboardError):
    """The output cannot be written."""


class _Output:
    """A text whose errors are CannotWrite. Others are taken for PostgreSQL's while its connection is used."""

    def __init__(self, path: str | None) -> None:
        self._to = "to standard output" if path is None else path
        self._path = path
        self._stack = ExitStack()
        self._text: TextIO = sys.stdout

    def write(self, text: str) -> None:
        with self._errors():
            self._text.write(text)

    def __enter__(self) -> Self:
        with self._errors():
            if self._path is not None:
                self._text = self._stack.enter_context(_replacing(Path(self._path)))
            elif isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8", newline="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._errors():
            if error is None:
                self._text.flush()
            self._stack.__exit__(kind, error, trace)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._path is None:
                # Python would flush standard output at its exit, and fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise CannotWrite(f"cannot write {self._to}: {error.strerror}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Open a new file that becomes `path` when it is complete, for its owner only. Raises OSError.

    So there is never half a file, and an older one stays until then.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "it is not a regular file", str(path))
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as raw:
            data = gzip.GzipFile(path.name, "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(data, "utf-8", newline="") as text:
                yield text
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
