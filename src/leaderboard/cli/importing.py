"""`leaderboard import`: users and their scores from a CSV file."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from leaderboard import importing
from leaderboard.app import App
from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.process import with_app
from leaderboard.cli.progress import progress_display
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.printable import printable

_REJECTED_SHOWN = 20
"""How many rejected rows are printed; all of them are in the file of rejected rows."""


def import_(
    file: Annotated[
        str,
        typer.Argument(help="A .csv or .csv.gz with the header username,score,imageUrl; - for standard input."),
    ],
    board: Annotated[
        str, typer.Option(help="The board; its current season gets the entries, and its rules hold.")
    ] = DEFAULT_BOARD,
    on_conflict: Annotated[
        importing.OnConflict, typer.Option(help="What to do with a user who is on the board already.")
    ] = importing.OnConflict.SKIP,
) -> None:
    """Import users and scores from a CSV file; a running service shows them without a restart."""
    report = import_users(file, board, on_conflict)
    print(printable(report.summary()))
    if report.rejected:
        raise typer.Exit(ExitStatus.NO)


def import_users(
    file: str, board: str, on_conflict: importing.OnConflict, settings: Settings | None = None
) -> importing.ImportReport:
    """Import a file and show the progress. Exits if that cannot be done, or on Ctrl-C."""
    so_far = importing.ImportReport()

    async def work(app: App) -> importing.ImportReport:
        target = None if board == DEFAULT_BOARD else await _with_open_season(app, board)
        with progress_display() as show:

            def progress(progress: importing.Progress) -> None:
                nonlocal so_far
                so_far = progress.report
                show(progress)

            async with app.database.importing(target) as importer:
                return await importing.import_file(file, importer, on_conflict, progress, _print_rejected())

    try:
        return with_app(work, settings)
    except importing.UnusableFile as error:
        fail(f"{error}; nothing was imported", ExitStatus.FAILED)
    except importing.BoardChanged as error:
        fail(f"{error}; before that: {so_far.summary()}", ExitStatus.FAILED)
    except KeyboardInterrupt:
        fail(f"interrupted: {so_far.summary()}; import the file again to do the rest", ExitStatus.INTERRUPTED)


async def _with_open_season(app: App, name: str) -> Board:
    """Return a board. Ends its season if that is past its end. Raises BoardNotFound."""
    board = await app.service.boards.get(name)
    if board.season_ends_at is None or board.season_ends_at > board.now:
        return board
    await app.service.boards.end(board)
    return await app.service.boards.get(name)


def _print_rejected() -> Callable[[importing.Rejected], None]:
    """Return a function that prints the first rejected rows it is called with."""
    shown = 0

    def show(row: importing.Rejected) -> None:
        nonlocal shown
        shown += 1
        if shown <= _REJECTED_SHOWN:
            print(printable(f"line {row.line} rejected: {row.reason}"), file=sys.stderr)
        elif shown == _REJECTED_SHOWN + 1:
            print("more rows are rejected; all are in the file of rejected rows", file=sys.stderr)

    return show
