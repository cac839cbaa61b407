"""Options that several commands have, and the settings that options override."""

from typing import Annotated, Any

import typer

from leaderboard.board_rules import DEFAULT_BOARD, check_board_name
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.config import Settings, load
from leaderboard.errors import SeasonNotFound
from leaderboard.model import INT32_MAX
from leaderboard.queries import SeasonRef

_PREVIOUS = "previous"

SeasonOption = Annotated[
    str | None,
    typer.Option(help=f"The number of a season, or {_PREVIOUS} for the last that ended; default: the current."),
]


def settings_with(**options: Any) -> Settings:
    """Return the settings; options that are None do not override them. Raises BadSetting."""
    return load(**{name: value for name, value in options.items() if value is not None})


def season_ref(board: str, text: str | None = None) -> SeasonRef | None:
    """Return the season of a board that an option names, None for `default`.

    Exits for a text that is no season, and raises SeasonNotFound for another season of `default`.
    """
    number = None
    if text == _PREVIOUS:
        number = 0
    elif text is not None:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else 0
        if not 1 <= number <= INT32_MAX:
            allowed = f"an integer from 1 to {INT32_MAX}, or {_PREVIOUS}"
            fail(f"--season is {text!r}, must be {allowed}", ExitStatus.USAGE)
    if board != DEFAULT_BOARD:
        return SeasonRef(board, number)
    if number not in {None, 1}:
        raise SeasonNotFound(board, number or 0)
    return None


def checked_board(board: str) -> str:
    """Return the name of a board. Exits for a text that no board can have as its name."""
    try:
        return check_board_name(board)
    except ValueError as error:
        fail(f"the name of a board {error}", ExitStatus.USAGE)
