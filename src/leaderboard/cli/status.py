"""`leaderboard status`: the state of a service and its stores, once or as a live view."""

import asyncio
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from leaderboard.cli import tables
from leaderboard.cli.exits import ExitStatus
from leaderboard.cli.operating import JsonOption, KeyOption, UrlOption, run
from leaderboard.cli.operations import Operations
from leaderboard.errors import LeaderboardError
from leaderboard.printable import printable


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show it until Ctrl-C; once without a terminal.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks with --watch.")] = 2.0,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of the service: cache, log, rank index, queues; exit 1 if it cannot be used."""
    if watch and as_json:
        raise typer.BadParameter("--watch and --json exclude each other")
    of = "as PostgreSQL and Redis say" if url is None else f"the process that answers at {url}"
    if watch and sys.stdout.isatty():
        _watch(of, interval, url, key)
        return
    summary = run(lambda operations: operations.summary(), url, key, check_schema=False)
    tables.print_answer(summary, [tables.summary_table(summary, of)], as_json=as_json)
    if not summary.health.is_ready:
        raise typer.Exit(ExitStatus.NO)


def _watch(of: str, interval_s: float, url: str | None, key: str | None) -> None:
    """Show the state until Ctrl-C. An error takes the place of the table, and the next look may succeed."""

    async def work(operations: Operations) -> None:
        with Live(console=Console(), auto_refresh=False) as live:
            while True:
                live.update(await _look(operations, of), refresh=True)
                await asyncio.sleep(interval_s)

    try:
        run(work, url, key, check_schema=False)
    except KeyboardInterrupt:
        return


async def _look(operations: Operations, of: str) -> Table | Text:
    try:
        return tables.summary_table(await operations.summary(), of)
    except LeaderboardError as error:
        return Text(printable(str(error)))
