"""The `leaderboard` command: only this package prints and sets an exit status.

0: done. 1: done, and the answer is no (the cache differs, rows were rejected). 2: wrong option or setting.
3: not done.
"""

import io
import signal
import sys
from importlib.metadata import version
from typing import Annotated

import structlog
import typer

from leaderboard.cli import (
    boards,
    cache,
    dev,
    exporting,
    importing,
    key,
    migrate,
    operators,
    serve,
    status,
    usernames,
)
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.config import BadSetting
from leaderboard.errors import LeaderboardError
from leaderboard.logs import set_up_logs
from leaderboard.server import CannotServe

_log = structlog.get_logger(__name__)

cli = typer.Typer(
    name="leaderboard",
    help="A leaderboard service that is never wrong about a rank. Settings come from the environment and `.env`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.command()(serve.serve)
cli.command()(migrate.migrate)
cli.command()(usernames.usernames)
cli.command("import")(importing.import_)
cli.command()(exporting.export)
cli.add_typer(boards.commands, name="boards")
cli.command()(operators.top)
cli.command()(operators.show)
# A negative score is no option.
cli.command("set", context_settings={"ignore_unknown_options": True})(operators.set_)
cli.command()(operators.hide)
cli.command()(operators.unhide)
cli.command()(status.status)
cli.command()(cache.sync)
cli.command()(cache.verify)
cli.command()(dev.dev)
cli.command()(key.key)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"leaderboard {version('leaderboard')}")
        raise typer.Exit


@cli.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command. Expected failures are one line on standard error, others a logged traceback."""
    set_up_logs("error", "text")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on standard error: usernames may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    # As process 1 of a container, a process without a handler ignores SIGTERM. The server sets its own later.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        cli()
    except BadSetting as error:
        fail(str(error), ExitStatus.USAGE)
    except (LeaderboardError, CannotServe) as error:
        fail(str(error), ExitStatus.FAILED)
    except KeyboardInterrupt:
        fail("interrupted", ExitStatus.INTERRUPTED)
    except Exception:  # noqa: BLE001 - Python would print the message unescaped and exit with 1, which means "no"
        _log.exception("the command failed")
        raise SystemExit(ExitStatus.FAILED) from None
