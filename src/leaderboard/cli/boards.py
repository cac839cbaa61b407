"""`leaderboard boards`: lists, creates, changes and deletes boards, and ends their seasons."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboard.app import App
from leaderboard.board_rules import (
    DEFAULT_BOARD,
    BoardRules,
    check_board_name,
    parse_number,
    parse_rules,
    to_json,
)
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.process import with_app
from leaderboard.database.boards import Board
from leaderboard.errors import BoardInUse, BoardNotFound, InvalidField
from leaderboard.model import encode_json
from leaderboard.printable import printable
from leaderboard.queries import PageQuery, SeasonRef

_AT_ONCE = 100
"""How many boards one statement reads."""
_NUMBERS = frozenset({"decimals", "lowest", "highest", "keep_seasons"})
_SCHEDULE = frozenset({"every", "cron", "timezone"})
_MEMBERS = MappingProxyType({"keep_seasons": "keepSeasons"})
"""The names of rules in JSON that are not those of the options."""
_OPTIONS = MappingProxyType({"season": "--every, --cron, --timezone", "keepSeasons": "--keep-seasons"})
"""The options of rules that are not named like them."""

commands = typer.Typer(help="List, create, change and delete boards, and end their seasons.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="The name of the board.")]


@commands.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array with all rules.")] = False,
) -> None:
    """List the boards: rules other than the defaults, current season and its end, number of entries."""
    boards = with_app(_boards_with_entries)
    if as_json:
        print(encode_json([_described(board, entries) for board, entries in boards]).decode())
        return
    table = Table(box=None)
    for column in ("board", "rules", "season", "ends at"):
        table.add_column(column, overflow="fold")
    table.add_column("entries", justify="right")
    for board, entries in boards:
        season = "" if board.name == DEFAULT_BOARD else str(board.season_number)
        cells = (board.name, _in_short(board.rules), season, _time(board.season_ends_at), f"{entries:,}")
        # A Text, because Rich would interpret markup in a `str`.
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)


@commands.command("create", help="Create a board. Its first season begins at once.")
@commands.command("configure", help='Change rules of a board. A rule that is not given stays; "" is its default.')
def write(
    context: typer.Context,
    name: _Name,
    better: Annotated[str | None, typer.Option(help="Which score is better: higher (default) or lower.")] = None,
    keeps: Annotated[str | None, typer.Option(help="Which score stays: last (default), best or sum.")] = None,
    ties: Annotated[
        str | None, typer.Option(help="Who is first of one score: id (default), or first to reach it.")
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="Ranks of one score: unique (default) or shared.")] = None,
    decimals: Annotated[str | None, typer.Option(help="Decimals of a score, 0 (default) to 6.")] = None,
    lowest: Annotated[str | None, typer.Option(help="The lowest score that is allowed.")] = None,
    highest: Annotated[str | None, typer.Option(help="The highest score that is allowed.")] = None,
    every: Annotated[str | None, typer.Option(help="A season ends every hour, day, week, month or year.")] = None,
    cron: Annotated[
        str | None, typer.Option(help='A season ends by a cron expression, such as "0 4 * * MON".')
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="The time zone of --every and --cron; UTC by default.")
    ] = None,
    keep_seasons: Annotated[
        str | None, typer.Option(help="How many ended seasons are kept; default: all.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="A title to show.")] = None,
) -> None:
    """Create a board, or change its rules. The context has the rules that were given, by their options."""
    given = {option: text for option, text in context.params.items() if option != "name" and text is not None}
    creates = context.info_name == "create"
    try:
        check_board_name(name)
    except ValueError as error:
        fail(f"the name of a board {error}", ExitStatus.USAGE)
    try:
        board = with_app(lambda app: (_create if creates else _configure)(app, name, given))
    except InvalidField as error:
        problems = (f"{_OPTIONS.get(rule, f'--{rule}')}: {problem}" for rule, problem in error.errors.items())
        fail("; ".join(problems), ExitStatus.USAGE)
    print(f"{'created' if creates else 'configured'}: {_line(board)}")


@commands.command()
def end(name: _Name) -> None:
    """End the current season of a board, and begin the next one."""

    async def work(app: App) -> tuple[int, Board]:
        number = (await app.service.boards.get(name)).season_number
        ended = await app.service.boards.end_season(name, number)
        return ended.number, await app.service.boards.get(name)

    number, board = with_app(work)
    print(f"season {number} has ended: {_line(board)}")


@commands.command()
def delete(
    name: _Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a board with all its seasons. Running services delete its entries in the background."""
    if not yes:
        if not sys.stdin.isatty():
            fail("standard input is not a terminal, so nothing can be asked; give --yes", ExitStatus.USAGE)
        board, entries = with_app(lambda app: _with_entries(app, name))
        seasons = f"all seasons up to number {board.season_number}"
        question = f"Delete the board {name} with {seasons} and {entries:,} entries in the current one?"
        if not typer.confirm(printable(question)):
            fail("nothing was deleted", ExitStatus.NO)
    with_app(lambda app: app.service.boards.delete(name))
    print(f"deleted: {printable(name)}")


async def _create(app: App, name: str, given: Mapping[str, str]) -> Board:
    rules = _changed(BoardRules(), given)
    with suppress(BoardNotFound):
        await app.service.boards.get(name)
        raise BoardInUse(f"the board {name!r} exists; change it with `leaderboard boards configure`")
    board, _ = await app.service.boards.configure(name, rules)
    return board


async def _configure(app: App, name: str, given: Mapping[str, str]) -> Board:
    stored = await app.service.boards.get(name)
    board, _ = await app.service.boards.configure(name, _changed(stored.rules, given))
    return board


async def _boards_with_entries(app: App) -> list[tuple[Board, int]]:
    found: list[tuple[Board, int]] = []
    while boards := await app.service.boards.list(found[-1][0].name if found else "", _AT_ONCE):
        for board in boards:
            try:
                found.append((board, await _entries(app, board.name)))
            except BoardNotFound:  # It was deleted meanwhile.
                continue
        if len(boards) < _AT_ONCE:
            break
    return found


async def _with_entries(app: App, name: str) -> tuple[Board, int]:
    return await app.service.boards.get(name), await _entries(app, name)


async def _entries(app: App, name: str) -> int:
    """Return how many entries the current season has. The rank index knows, if the season has one."""
    season = None if name == DEFAULT_BOARD else SeasonRef(name)
    return (await app.service.reads.page(PageQuery(1, season=season))).result.total


def _changed(rules: BoardRules, given: Mapping[str, str]) -> BoardRules:
    """Return the rules with those that were given as options, "" for a default. Raises InvalidField."""
    fields = _fields(rules)
    for option, text in given.items():
        if option not in _SCHEDULE:
            value = _number(text) if option in _NUMBERS else text
            fields[_MEMBERS.get(option, option)] = value if text else None
    if schedule := {option: text for option, text in given.items() if option in _SCHEDULE}:
        fields["season"] = _schedule(fields.get("season") or {}, schedule)
    return parse_rules(fields)


def _schedule(stored: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Return the schedule with the members that were given, None if neither `every` nor `cron` is left."""
    replaced = {"every", "cron"} if given.get("every") or given.get("cron") else set()
    kept = {name: text for name, text in stored.items() if name not in replaced}
    members = {name: text for name, text in (kept | dict(given)).items() if text}
    removed = "" in given.values() and not members.keys() & {"every", "cron"}
    return None if removed else members


def _number(text: str) -> object:
    """Return a number exactly, and any other text as it is, which no rule takes."""
    try:
        return int(text) if len(text) < 100 and text.lstrip("-").isdecimal() else Decimal(text)
    except (InvalidOperation, ValueError):
        return text


def _fields(rules: BoardRules) -> dict[str, Any]:
    """Return the rules as a JSON object."""
    fields: dict[str, Any] = json.loads(to_json(rules), parse_float=parse_number)
    return fields


def _described(board: Board, entries: int) -> dict[str, object]:
    season = {
        "number": board.season_number,
        "startedAt": board.season_started_at,
        "endsAt": board.season_ends_at,
        "entries": entries,
    }
    return {"name": board.name, "rules": _fields(board.rules), "season": season}


def _line(board: Board) -> str:
    rules = _in_short(board.rules)
    text = f"{board.name}, season {board.season_number}"
    text += f", which ends at {_time(board.season_ends_at)}" if board.season_ends_at else ""
    return printable(f"{text}; {rules}" if rules else text)


def _in_short(rules: BoardRules) -> str:
    """Return the rules that differ from the defaults, in one line."""
    defaults = _fields(BoardRules())
    words: list[str] = []
    for name, value in _fields(rules).items():
        if name == "season":
            words += [_word(member, text) for member, text in value.items()]
        elif value != defaults.get(name):
            words.append(_word(name, value))
    return " ".join(words)


def _word(name: str, value: object) -> str:
    return f'{name}="{value}"' if isinstance(value, str) and " " in value else f"{name}={value}"


def _time(time: datetime | None) -> str:
    return "" if time is None else time.isoformat(sep=" ", timespec="seconds")
