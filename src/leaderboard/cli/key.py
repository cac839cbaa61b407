"""`leaderboard key`: a new API key."""

import secrets
from typing import Annotated

import typer

from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.credentials import BadEntry, new_key, parse_keys


def key(
    name: Annotated[str | None, typer.Option(help="Its name; default: a random one.")] = None,
    scopes: Annotated[str, typer.Option(help="Its scopes: read, write and admin, joined by +.")] = "read+write",
    boards: Annotated[
        str | None, typer.Option(help="The boards it is limited to, joined by +; default: no limit.")
    ] = None,
) -> None:
    """Make an API key: print it for the caller, and its entry for API_KEYS, which holds only its hash."""
    made, hashed = new_key()
    limit = "" if boards is None else f"@{boards}"
    entry = f"{name or secrets.token_hex(4)}:{scopes}{limit}:{hashed}"
    try:
        parse_keys(entry)
    except BadEntry as error:
        fail(f"{entry.partition(':sha256')[0]}: the entry must be {error}", ExitStatus.USAGE)
    print(f"key    {made}")
    print(f"entry  {entry}")
