"""`leaderboard top`, `show`, `set`, `hide` and `unhide`: what operators ask and do every day."""

import re
from typing import Annotated

import typer

from leaderboard.board_rules import DEFAULT_BOARD, Number
from leaderboard.cli import tables
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.operating import (
    BoardOption,
    JsonOption,
    KeyOption,
    NameOption,
    UrlOption,
    UserArgument,
    run,
    user_argument,
    user_of,
)
from leaderboard.cli.operations import Found, Operations, UserName
from leaderboard.cli.options import SeasonOption, checked_board, season_ref
from leaderboard.http.board_answers import ChangedEntry
from leaderboard.http.strict_json import parse_object
from leaderboard.model import Account

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")


def top(
    n: Annotated[int, typer.Argument(help="How many users.")] = 10,
    board: BoardOption = DEFAULT_BOARD,
    season: SeasonOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the best users of a board."""
    wanted = season_ref(checked_board(board), season)
    found = run(lambda operations: operations.top(n, board, wanted), url, key)
    tables.print_answer(found, [tables.standings_table(found.users)], as_json=as_json)


def show(
    user: UserArgument,
    name: NameOption = False,
    board: BoardOption = DEFAULT_BOARD,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a user: its account, its place among its neighbours on a board, and its boards."""
    named = user_argument(user, is_name=name)
    checked_board(board)

    async def work(operations: Operations) -> Found:
        if isinstance(named, UserName):
            account = await operations.find(named.text)
        else:
            account = await operations.account(named)
        context = await operations.context(account.user_id, board)
        boards = [] if account.hidden else list(await operations.boards_of(account.user_id))
        return Found(account, context, boards)

    found = run(work, url, key)
    tables.print_answer(found, tables.found_tables(found, board), as_json=as_json)


def set_(
    user: UserArgument,
    score: Annotated[str, typer.Argument(help="The score, or with --increment the number to add.")],
    name: NameOption = False,
    board: BoardOption = DEFAULT_BOARD,
    increment: Annotated[bool, typer.Option("--increment", help="Add to the score.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a user's score on a board, or add to it."""
    named = user_argument(user, is_name=name)
    number = _number(score)
    checked_board(board)

    async def work(operations: Operations) -> ChangedEntry:
        return await operations.change_score(await user_of(operations, named), board, number, adds=increment)

    changed = run(work, url, key)
    tables.print_answer(changed, [tables.changed_table(changed, board)], as_json=as_json)


def hide(
    user: UserArgument,
    name: NameOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hide a user on all boards. Its scores are kept."""
    _set_hidden(user, name, url, key, as_json, hidden=True)


def unhide(
    user: UserArgument,
    name: NameOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a hidden user on all boards again."""
    _set_hidden(user, name, url, key, as_json, hidden=False)


def _set_hidden(user: str, name: bool, url: str | None, key: str | None, as_json: bool, *, hidden: bool) -> None:
    named = user_argument(user, is_name=name)

    async def work(operations: Operations) -> Account:
        return await operations.set_hidden(await user_of(operations, named), hidden=hidden)

    account = run(work, url, key)
    tables.print_answer(account, [tables.account_table(account)], as_json=as_json)


def _number(text: str) -> Number:
    """Return a number exactly, as the API reads it. Exits for another text."""
    if not _JSON_NUMBER.fullmatch(text):
        fail(f"SCORE is {text!r}, must be a number, such as 1500 or -2.5", ExitStatus.USAGE)
    number: Number = parse_object(f'{{"number": {text}}}'.encode())["number"]
    return number
