"""`leaderboard usernames`: changes how usernames are compared, and lists the names that would be one."""

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated

import typer

from leaderboard import app
from leaderboard.cli.exits import ExitStatus
from leaderboard.cli.options import settings_with
from leaderboard.database.username_mode import Twins
from leaderboard.printable import printable
from leaderboard.usernames import Usernames


@dataclass(frozen=True, slots=True)
class _Outcome:
    before: Usernames
    after: Usernames
    twins: Twins


def usernames(
    mode: Annotated[
        Usernames, typer.Argument(help="exact: as they are; caseless: Bob, bob and BOB are one name.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look for twins only, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many names with twins are listed, at most.")] = 100,
) -> None:
    """Change how this database compares usernames. Nothing is changed if two users would have one name.

    Then set USERNAMES to the same and restart all processes.
    """
    outcome = asyncio.run(_change(mode, limit, dry_run=dry_run))
    if as_json:
        print(json.dumps(_described(outcome), indent=2))
    else:
        _print(outcome, mode, dry_run=dry_run)
    if outcome.twins.in_all:
        raise typer.Exit(ExitStatus.NO)


async def _change(mode: Usernames, limit: int, *, dry_run: bool) -> _Outcome:
    database = app.database_from(settings_with())
    async with database.changing_usernames() as switch:
        before = await switch.mode()
        if dry_run and mode == "caseless" != before:
            twins = await switch.find_twins(limit)
        elif dry_run:
            twins = Twins()
        else:
            twins = await switch.change(mode, limit)
        return _Outcome(before, await switch.mode(), twins)


def _print(outcome: _Outcome, mode: Usernames, *, dry_run: bool) -> None:
    twins = outcome.twins
    for group in twins.groups.values():
        users = ", ".join(
            f"{twin.user_name!r} (id {twin.user_id}, score {twin.score}{', hidden' if twin.hidden else ''})"
            for twin in group
        )
        print(printable(f"one name: {users}"))
    if more := twins.in_all - len(twins.groups):
        print(f"and {more} more")
    if twins.in_all:
        print(
            f"nothing was changed: {twins.in_all} names would belong to several users each; rename or erase all"
            " but one of them (PATCH or DELETE /users/{id}), then try again"
        )
    elif outcome.before == mode:
        print(f"usernames are compared {mode} already")
    elif dry_run:
        print(f"dry run, nothing was changed; usernames can be compared {mode}")
    else:
        print(f"usernames are compared {mode}; set USERNAMES={mode} and restart all processes")


def _described(outcome: _Outcome) -> dict[str, object]:
    twins = [
        [
            {"userId": twin.user_id, "username": twin.user_name, "score": twin.score, "hidden": twin.hidden}
            for twin in group
        ]
        for group in outcome.twins.groups.values()
    ]
    return {"usernames": outcome.after, "twins": twins, "namesWithTwins": outcome.twins.in_all}
