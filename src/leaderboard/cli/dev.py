"""`leaderboard dev`: PostgreSQL, Valkey and the API on this machine.

The servers come from `leaderboard.dev`. It is imported inside the command, because no other command needs it.
"""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from leaderboard import app, importing, server
from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.cli.importing import import_users
from leaderboard.cli.options import settings_with
from leaderboard.cli.serve import warn_if_open
from leaderboard.cli.welcome import print_welcome
from leaderboard.config import Settings
from leaderboard.logs import set_up_logs
from leaderboard.printable import printable

_LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = "localhost 127.0.0.1 [::1]"
"""The hosts that `dev` answers for.

A site can resolve its own name to 127.0.0.1 (DNS rebinding). Its page, in a browser on this machine, could then
read the board and write to it.
"""


def dev(
    port: Annotated[int | None, typer.Option(help="TCP port of the API; default: PORT, 3000.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data is kept between runs; default: .data.")
    ] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Do not import the example board.")] = False,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep the data in a temporary folder.")] = False,
    workers: Annotated[int | None, typer.Option(help="API processes; default: WORKERS, 1.")] = None,
) -> None:
    """Run everything on this machine: PostgreSQL, Valkey and the API, with an example board."""
    if ephemeral and data_dir is not None:
        raise typer.BadParameter("--ephemeral and --data-dir exclude each other")
    asked = settings_with(port=port, workers=workers)
    # Only for this machine unless HOST says otherwise, because writes need no key.
    host = asked.host if "host" in asked.model_fields_set else _LOOPBACK
    server.check_port(asked.model_copy(update={"host": host}))
    with ExitStack() as stack:
        folder = data_dir or Path(".data")
        if ephemeral:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leaderboard-")))
        endpoints = _start_servers(stack, folder, ephemeral)
        settings = settings_with(
            host=host,
            allowed_hosts=asked.allowed_hosts or (_LOOPBACK_NAMES if host == _LOOPBACK else ""),
            port=port,
            workers=workers,
            log_format="text",
            **endpoints,
        )
        set_up_logs(settings.log_level, settings.log_format)
        if host != _LOOPBACK:
            warn_if_open(settings)
        with _step("migrating"):
            asyncio.run(app.database_from(settings).migrate(lambda _line: None))
        if not empty and asyncio.run(_is_empty(settings)):
            _import_example(settings)
        threading.Thread(target=print_welcome, args=(settings,), daemon=True).start()
        server.serve(settings, stop_on_hangup=True)
        print("stopping")


def _start_servers(stack: ExitStack, folder: Path, ephemeral: bool) -> dict[str, Any]:
    """Start PostgreSQL and Valkey until `stack` closes; return their addresses as settings."""
    from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints  # noqa: PLC0415

    with _step("starting PostgreSQL"):
        postgres = stack.enter_context(EmbeddedPostgres(folder))
        postgres.create_database("leaderboard")
    with _step("starting Valkey"):
        valkey = stack.enter_context(EmbeddedValkey(folder))
    for started in (postgres, valkey):
        if ephemeral:
            stack.callback(started.remove)
        if started.note:
            print(printable(started.note))
    return asdict(Endpoints.of(postgres, valkey))


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Print the name of a step and, at its end, how long it took."""
    started = time.perf_counter()
    print(f"{name} … ", end="", flush=True)
    try:
        yield
    except BaseException:
        print()
        raise
    print(f"{time.perf_counter() - started:.1f} s")


def _import_example(settings: Settings) -> None:
    with resources.as_file(resources.files("leaderboard") / "example.csv") as example:
        import_users(str(example), DEFAULT_BOARD, importing.OnConflict.SKIP, settings=settings)


async def _is_empty(settings: Settings) -> bool:
    database = app.database_from(settings)
    await database.open()
    try:
        return not (await database.users.top(1)).value
    finally:
        await database.close()
