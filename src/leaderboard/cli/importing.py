"""`leaderboard import`: users and their scores from a CSV file, or from JSON Lines."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import typer

from leaderboard import importing
from leaderboard.app import App
from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.operating import complete_board
from leaderboard.cli.process import with_app
from leaderboard.cli.progress import progress_display
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.number_formats import DECIMALS, THOUSANDS, NumberOptions
from leaderboard.printable import printable

_NO_SEASON = 0
_REJECTED_SHOWN = 20
"""How many rejected rows are printed; all of them are in the file of rejected rows."""


def _separator(text: str) -> str:
    separator = "\t" if text in {"tab", "\\t"} else text
    if len(separator) != 1 or separator.isalnum() or separator in "\"'\r\n .-":
        raise typer.BadParameter("must be one character, such as ; or |, or the word tab")
    return separator


def _encoding(text: str) -> str:
    try:
        "a".encode(text)
    except (LookupError, UnicodeError):
        raise typer.BadParameter("must be an encoding, such as utf-8, utf-16-le or windows-1252") from None
    return text


def _columns(text: str) -> importing.ColumnOptions:
    try:
        return importing.ColumnOptions.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _decimal(text: str) -> str:
    if text not in DECIMALS:
        raise typer.BadParameter(f"must be one of {' '.join(DECIMALS)}")
    return text


def _thousands(text: str) -> str:
    if text in THOUSANDS:
        return THOUSANDS[text]
    if text in THOUSANDS.values():
        return text
    raise typer.BadParameter(f"must be one of {' '.join(THOUSANDS)}")


def import_(
    file: Annotated[
        str,
        typer.Argument(
            help="CSV with a header line, or JSON Lines (.jsonl, .ndjson), gzipped or not; - for standard input."
        ),
    ],
    board: Annotated[
        str,
        typer.Option(
            help="The board; its current season gets the entries, and its rules hold.",
            autocompletion=complete_board,
        ),
    ] = DEFAULT_BOARD,
    on_conflict: Annotated[
        importing.OnConflict, typer.Option(help="What to do with a user who is on the board already.")
    ] = importing.OnConflict.SKIP,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the import would do, and change nothing.")
    ] = False,
    columns: Annotated[
        importing.ColumnOptions | None,
        typer.Option(
            parser=_columns,
            metavar="TEXT",
            help="The names of columns, as in username=Player,score=Points; default: common names.",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column with external ids, which users are found by; default: externalId or external_id.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            parser=_separator, metavar="TEXT", help="Between the cells of CSV; default: found in the header line."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            parser=_encoding,
            metavar="TEXT",
            help="Such as windows-1252; default: UTF-8, or what the byte order mark says.",
        ),
    ] = None,
    decimal: Annotated[
        str | None, typer.Option(parser=_decimal, metavar="TEXT", help="The decimal mark: . (the default) or ,")
    ] = None,
    thousands: Annotated[
        str | None,
        typer.Option(
            parser=_thousands,
            metavar="TEXT",
            help="The mark between thousands: , . space apostrophe or none (the default).",
        ),
    ] = None,
    format_: Annotated[
        importing.Format | None,
        typer.Option("--format", help="Default: jsonl if the name of the file says so, otherwise csv."),
    ] = None,
) -> None:
    """Import users and scores from CSV or JSON Lines; a running service shows them without a restart."""
    try:
        numbers = NumberOptions(decimal, thousands)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    named = columns or importing.ColumnOptions()
    if id_column is not None:
        named = importing.ColumnOptions({**named.names, "externalId": id_column.strip()})
    options = importing.Options(format_, encoding, separator, named, numbers)
    if dry_run:
        report = _preview(file, board, on_conflict, options)
    else:
        report = import_users(file, board, on_conflict, options, understood=_print_lines)
        print(printable(report.summary()))
    if report.rejected:
        raise typer.Exit(ExitStatus.NO)


def import_users(
    file: str,
    board: str,
    on_conflict: importing.OnConflict,
    options: importing.Options | None = None,
    settings: Settings | None = None,
    understood: Callable[[list[str]], None] = lambda _: None,
) -> importing.ImportReport:
    """Import a file and show the progress. Exits if that cannot be done, or on Ctrl-C.

    `understood` is called with the lines that say what the file was taken for.
    """
    so_far = importing.ImportReport()

    async def work(app: App) -> importing.ImportReport:
        target = None if board == DEFAULT_BOARD else await _with_open_season(app, board)
        with progress_display() as show:

            def progress(progress: importing.Progress) -> None:
                nonlocal so_far
                so_far = progress.report
                show(progress)

            listener = importing.Listener(understood, progress, _print_rejected())
            async with app.database.importing(target) as importer:
                return await importing.import_file(file, importer, on_conflict, listener, options)

    try:
        return with_app(work, settings)
    except importing.UnusableFile as error:
        fail(f"{error}; nothing was imported", ExitStatus.FAILED)
    except importing.BoardChanged as error:
        fail(f"{error}; before that: {so_far.summary()}", ExitStatus.FAILED)
    except KeyboardInterrupt:
        fail(f"interrupted: {so_far.summary()}; import the file again to do the rest", ExitStatus.INTERRUPTED)


def _preview(
    file: str, board: str, on_conflict: importing.OnConflict, options: importing.Options
) -> importing.ImportReport:
    """Print what an import would do. Exits if it could not be done."""

    async def work(app: App) -> importing.Preview:
        target = None if board == DEFAULT_BOARD else await app.service.boards.get(board)
        if target is not None and _is_past_its_end(target):
            # An import ends the season, and the next one has no entries.
            target = replace(target, season_id=_NO_SEASON)
        with progress_display() as show:
            listener = importing.Listener(_print_lines, show, _print_rejected())
            async with app.database.importing(target) as importer:
                return await importing.preview_file(file, importer, on_conflict, listener, options)

    try:
        preview = with_app(work)
    except importing.UnusableFile as error:
        fail(f"{error}; nothing would be imported", ExitStatus.FAILED)
    for line, name, score, image_url in preview.first:
        _print_lines([f"line {line}: username {name}, score {score}, image {image_url or 'none'}"])
    _print_lines([f"dry run, nothing was changed; an import would do this: {preview.report.summary()}"])
    return preview.report


async def _with_open_season(app: App, name: str) -> Board:
    """Return a board. Ends its season if that is past its end. Raises BoardNotFound."""
    board = await app.service.boards.get(name)
    if not _is_past_its_end(board):
        return board
    await app.service.boards.end(board)
    return await app.service.boards.get(name)


def _is_past_its_end(board: Board) -> bool:
    return board.season_ends_at is not None and board.season_ends_at <= board.now


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(printable(line), flush=True)


def _print_rejected() -> Callable[[importing.Rejected], None]:
    """Return a function that prints the first rejected rows it is called with."""
    shown = 0

    def show(row: importing.Rejected) -> None:
        nonlocal shown
        shown += 1
        if shown <= _REJECTED_SHOWN:
            print(printable(f"line {row.line} rejected: {row.reason}"), file=sys.stderr)
        elif shown == _REJECTED_SHOWN + 1:
            print("more rows are rejected", file=sys.stderr)

    return show
