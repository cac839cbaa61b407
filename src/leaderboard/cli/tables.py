"""Prints answers as tables for people, and as JSON for programs.

A name is never interpreted: neither its control characters by the terminal, nor its markup by Rich.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboard.cli.operations import Found, Summary
from leaderboard.database.database import MAX_LOG_ROWS
from leaderboard.http.board_answers import ChangedEntry
from leaderboard.model import Account, ScoreNumber, Standing, encode_json
from leaderboard.printable import printable

_UNKNOWN = "not known"


def print_json(answer: object) -> None:
    """Print an answer as JSON on one line.

    Characters that are not printable, or not in the encoding of standard output, are escaped as JSON does.
    """
    encoding = sys.stdout.encoding or "ascii"
    text = encode_json(answer).decode()
    print("".join(each if _is_shown(each, encoding) else json.dumps(each)[1:-1] for each in text))


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    Console().print(table)


def print_answer(answer: object, as_tables: Sequence[Table], *, as_json: bool) -> None:
    """Print an answer as JSON, or as these tables."""
    if as_json:
        print_json(answer)
        return
    for table in as_tables:
        print_table(table)


def standings_table(standings: Iterable[Standing], marked: int | None = None) -> Table:
    """Return users with their ranks; the one with the number `marked` is bold."""
    standings = list(standings)
    with_ids = any(standing.external_id is not None for standing in standings)
    table = Table(box=None)
    table.add_column("rank", justify="right")
    table.add_column("user", justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("score", justify="right")
    if with_ids:
        table.add_column("external id", overflow="fold")
    for each in standings:
        cells = [str(each.rank), str(each.user_id), each.user_name, _number(each.total_score)]
        if with_ids:
            cells.append(each.external_id or "")
        table.add_row(*map(_cell, cells), style="bold" if each.user_id == marked else None)
    return table


def account_table(account: Account) -> Table:
    """Return a user as operators see it."""
    return _fields(_account_fields(account))


def found_tables(found: Found, board: str) -> Sequence[Table]:
    """Return a user, and its place on a board."""
    context = found.context
    fields = _account_fields(found.user)
    if context is None:
        fields["rank"] = f"not on the board {board}" + (", as it is hidden" if found.user.hidden else "")
    else:
        fields["rank"] = f"{context.user.rank:,} of {context.total:,} on the board {board}"
    fields["boards"] = ", ".join(found.boards)
    if context is None:
        return [_fields(fields)]
    users = [*context.above, context.user, *context.below]
    return [_fields(fields), standings_table(users, marked=context.user.user_id)]


def changed_table(changed: ChangedEntry, board: str) -> Table:
    """Return what a change of a score did."""
    rank: Any = changed.rank
    fields = {
        "user": str(changed.userId),
        "name": changed.username,
        "board": f"{board}, season {changed.season}",
        "score": _number(changed.score),
        "before": "none" if changed.previousScore is None else _number(changed.previousScore),
        "improved": "yes" if changed.improved else "no",
        "rank": "not known: it could not be read after the change" if rank is None else f"{rank:,}",
    }
    return _fields(fields)


def summary_table(summary: Summary, of: str) -> Table:
    """Return the state of a service; `of` says of which."""
    health, by_process = summary.health, summary.source == "service"
    of_stores = f"{_UNKNOWN}; shown without --url" if by_process else _UNKNOWN
    of_process = _UNKNOWN if by_process else f"{_UNKNOWN}; shown with --url"
    fields = {
        "status": f"{health.status}, {of}, version {health.version}",
        "PostgreSQL": f"{health.postgres}, writes {health.writes}",
        "Redis": health.redis,
        "connections": _known(summary.connections, "{:,} of all processes to PostgreSQL", of_stores),
        "cache": _UNKNOWN,
        "caught up": of_stores,
        "log": _known(summary.log_rows, "{:,} rows", of_stores),
        "rank index": _UNKNOWN,
        "requests": _known(summary.in_flight, "{:,} being handled", of_process),
        "queues": of_process,
    }
    if summary.log_rows == MAX_LOG_ROWS:
        fields["log"] += " or more"
    if (cache := summary.cache) is not None:
        invalid = ", invalid now" if cache.valid is False else ""
        fields["cache"] = f"{cache.users:,} users of default, {cache.seasons:,} seasons of other boards{invalid}"
        fields["caught up"] = _known(cache.age_s, "{:,.3f} s ago at most", of_stores)
    if (index := summary.rank_index) is not None:
        state = "valid" if index.valid else "not valid, ranks are counted"
        fields["rank index"] = f"{state}; {index.pending:,} log rows pending"
    if summary.queues is not None:
        waiting = [f"{depth:,} for {queue}" for queue, depth in summary.queues.items() if depth]
        fields["queues"] = ", ".join(waiting) or "empty"
    fields |= {f"note {number}": note for number, note in enumerate(summary.notes, 1)}
    return _fields(fields)


def _account_fields(account: Account) -> dict[str, str]:
    return {
        "user": str(account.user_id),
        "name": account.user_name,
        "image": account.image_url or "none",
        "external id": account.external_id or "none",
        "hidden": "yes" if account.hidden else "no",
        "score": f"{_number(account.total_score)} on the board default",
    }


def _fields(fields: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in fields.items():
        table.add_row(name, _cell(text))
    return table


def _cell(text: str) -> Text:
    """Return a Text, because Rich would interpret markup and emoji names in a `str`."""
    return Text(printable(text))


def _number(score: ScoreNumber | float) -> str:
    return f"{score:f}" if isinstance(score, Decimal) else str(score)


def _known(value: float | None, form: str, unknown: str) -> str:
    return unknown if value is None else form.format(value)


def _is_shown(character: str, encoding: str) -> bool:
    if character.isascii():
        return character.isprintable()
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return character.isprintable()
