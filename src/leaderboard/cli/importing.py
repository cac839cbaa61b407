"""`leaderboard import`: users from a CSV file."""

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from leaderboard import app, importing
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.options import settings_with
from leaderboard.cli.progress import progress_display
from leaderboard.config import Settings
from leaderboard.printable import printable

_REJECTED_SHOWN = 20
"""How many rejected rows are printed; all of them are in the file of rejected rows."""


def import_(
    file: Annotated[
        str,
        typer.Argument(help="A .csv or .csv.gz with the header username,score,imageUrl; - for standard input."),
    ],
    on_conflict: Annotated[
        importing.OnConflict, typer.Option(help="What to do with a username that is on the board already.")
    ] = importing.OnConflict.SKIP,
) -> None:
    """Import users from a CSV file; a running service shows them without a restart."""
    report = import_users(settings_with(), file, on_conflict)
    print(printable(report.summary()))
    if report.rejected:
        raise typer.Exit(ExitStatus.NO)


def import_users(settings: Settings, file: str, on_conflict: importing.OnConflict) -> importing.ImportReport:
    """Import a file and show the progress. Exits if the file is unusable, or on Ctrl-C."""
    so_far = importing.ImportReport()

    async def work() -> importing.ImportReport:
        database = app.database_from(settings)
        with progress_display() as show:

            def progress(progress: importing.Progress) -> None:
                nonlocal so_far
                so_far = progress.report
                show(progress)

            async with database.importing() as importer:
                return await importing.import_file(file, importer, on_conflict, progress, _print_rejected())

    try:
        return asyncio.run(work())
    except importing.UnusableFile as error:
        fail(f"{error}; nothing was imported", ExitStatus.FAILED)
    except KeyboardInterrupt:
        fail(f"interrupted: {so_far.summary()}; import the file again to do the rest", ExitStatus.INTERRUPTED)


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
