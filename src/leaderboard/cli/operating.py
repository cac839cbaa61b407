"""Runs operations: with the stores that the settings name, or by the API of the service at a URL."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

import typer

from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.operations import NamedUser, Operations, UserName
from leaderboard.cli.process import with_app
from leaderboard.cli.stores import StoreOperations
from leaderboard.config import BadSetting
from leaderboard.errors import InvalidInput, InvalidParameter, LeaderboardError
from leaderboard.http import requests
from leaderboard.model import UserRef
from leaderboard.rules import clean_username

_T = TypeVar("_T")
Work = Callable[[Operations], Coroutine[Any, Any, _T]]

_COMPLETION_S = 2.0
"""Completion gives up after this."""
_HOW_TO_INSTALL = (
    "--url needs the client for Python, the distribution leaderboard-client, which is not installed;"
    " install it from a checkout of this service: pip install ./clients/python"
)


def complete_board(context: typer.Context, incomplete: str) -> Sequence[str]:
    """Return the names of boards that begin so; none if the boards cannot be read."""

    async def names(operations: Operations) -> Sequence[str]:
        async with asyncio.timeout(_COMPLETION_S):
            return await operations.board_names()

    try:
        found = _run(names, context.params.get("url"), context.params.get("key"), check_schema=False)
    except (BadSetting, LeaderboardError, TimeoutError):
        return ()
    return [name for name in found if name.startswith(incomplete)]


UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="The URL of a running service; default: PostgreSQL and Redis by the settings."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="LEADERBOARD_KEY", help="With --url: an API key, or a user's token."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BoardOption = Annotated[str, typer.Option(help="The board.", autocompletion=complete_board)]
UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="A user's number, @ and its external id, or with --name its name.")
]
NameOption = Annotated[bool, typer.Option("--name", help="USER is a username.")]


class ClientMissing(LeaderboardError):
    """The client for Python is not installed."""


def run(work: Work[_T], url: str | None, key: str | None, *, check_schema: bool = True) -> _T:
    """Return what `work` returns with the operations of the stores, or with those of the service at `url`.

    With `check_schema`, PostgreSQL has to answer before. Exits for input that is not valid.

    Raises LeaderboardError and BadSetting.
    """
    try:
        return _run(work, url, key, check_schema=check_schema)
    except InvalidInput as error:
        fail(str(error), ExitStatus.USAGE)


def user_argument(text: str, *, is_name: bool) -> NamedUser:
    """Return the user that an argument names. Exits for a text that names none."""
    try:
        return UserName(clean_username(text)) if is_name else requests.user("USER", text, b"")
    except InvalidParameter as error:
        hint = "" if text.startswith("@") else "; with --name, USER is a username"
        fail(f"{error}{hint}", ExitStatus.USAGE)
    except ValueError as error:
        fail(f"the username {error}", ExitStatus.USAGE)


async def user_of(operations: Operations, named: NamedUser) -> UserRef:
    """Return the user of an argument, by its number if it was named by its username. Raises UserNotFound."""
    return (await operations.find(named.text)).user_id if isinstance(named, UserName) else named


def _run(work: Work[_T], url: str | None, key: str | None, *, check_schema: bool) -> _T:
    if url is None:
        return with_app(lambda app: work(StoreOperations(app)), check_schema=check_schema)
    try:
        from leaderboard.cli.service import service_at  # noqa: PLC0415 - the client is a distribution of its own
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"leaderboard_client", "httpx"}:
            raise
        raise ClientMissing(_HOW_TO_INSTALL) from None

    async def work_there(url: str) -> _T:
        async with service_at(url, key) as operations:
            return await work(operations)

    return asyncio.run(work_there(url))
