"""`leaderboard boards` makes, changes, lists and deletes boards, and ends their seasons."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from leaderboard.config import Settings
from tests.system import environment, sql

UNCHANGED = {"better": "higher", "keeps": "last", "ties": "id", "ranks": "unique", "decimals": 0}


def boards(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Return the exit status of a command and its output or its error."""
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "boards", *arguments],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr if done.returncode == 0 else done.stderr.startswith("leaderboard: "), done.stderr
    return done.returncode, done.stdout or done.stderr


def listed(settings: Settings) -> dict[str, dict[str, Any]]:
    status, output = boards(settings, "list", "--json")
    assert status == 0
    return {board["name"]: board for board in json.loads(output)}


def rules(settings: Settings, name: str) -> dict[str, Any]:
    return dict(listed(settings)[name]["rules"])


def test_a_board_with_every_rule_is_created_changed_and_deleted(settings: Settings) -> None:
    every_rule = {
        "better": "lower",
        "keeps": "best",
        "ties": "first",
        "ranks": "shared",
        "decimals": "3",
        "lowest": "-1.5",
        "highest": "600",
        "every": "week",
        "timezone": "Europe/Berlin",
        "keep-seasons": "4",
        "title": "Laps of the week",
    }
    options = [word for name, value in every_rule.items() for word in (f"--{name}", value)]
    status, output = boards(settings, "create", "laps", *options)
    assert status == 0
    assert output.startswith("created: laps, season 1, which ends at ")
    made = {
        "better": "lower",
        "keeps": "best",
        "ties": "first",
        "ranks": "shared",
        "decimals": 3,
        "lowest": -1.5,
        "highest": 600,
        "keepSeasons": 4,
        "title": "Laps of the week",
        "season": {"every": "week", "timezone": "Europe/Berlin"},
    }
    assert rules(settings, "laps") == made

    # What is not given stays; "" is the default; `cron` replaces `every`.
    changes = ("--keep-seasons", "", "--cron", "0 4 * * MON", "--highest", "700.25", "--title", "Laps")
    assert boards(settings, "configure", "laps", *changes)[0] == 0
    del made["keepSeasons"]
    made |= {"highest": 700.25, "title": "Laps", "season": {"cron": "0 4 * * MON", "timezone": "Europe/Berlin"}}
    assert rules(settings, "laps") == made
    assert boards(settings, "configure", "laps", "--cron", "")[0] == 0
    del made["season"]
    assert rules(settings, "laps") == made

    assert boards(settings, "delete", "laps", "--yes") == (0, "deleted: laps\n")
    assert list(listed(settings)) == ["default"]


def test_the_list_has_rules_seasons_and_entries(settings: Settings) -> None:
    assert boards(settings, "create", "coins", "--keeps", "sum") == (0, "created: coins, season 1; keeps=sum\n")
    assert boards(settings, "end", "coins") == (0, "season 1 has ended: coins, season 2; keeps=sum\n")
    sql(settings, "INSERT INTO users (user_name) VALUES ('ada'), ('bob')")
    sql(
        settings,
        "INSERT INTO scores (user_id, season_id, sort_key) SELECT 1, season_id, 5 FROM boards WHERE board_id > 1",
    )
    found = listed(settings)
    assert {name: board["season"]["entries"] for name, board in found.items()} == {"coins": 1, "default": 2}
    assert found["coins"]["season"]["number"] == 2
    assert found["coins"]["rules"] == {**UNCHANGED, "keeps": "sum"}
    status, output = boards(settings, "list")
    assert status == 0
    assert [line.split() for line in output.splitlines()[1:]] == [
        ["coins", "keeps=sum", "2", "1"],
        ["default", "2"],
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (("create", "Laps"), 2, "the name of a board has capital letters"),
        (("create", "laps", "--better", "faster"), 2, "--better: must be one of higher, lower"),
        (
            ("create", "laps", "--decimals", "2.5", "--lowest", "low"),
            2,
            "--decimals: must be an integer from 0 to 6",
        ),
        (("create", "laps", "--lowest", "low"), 2, "--lowest: must be a number"),
        (("create", "laps", "--keep-seasons", "0"), 2, "--keep-seasons: must be an integer from 1"),
        (("create", "laps", "--timezone", "UTC"), 2, "--every, --cron, --timezone: needs every or cron"),
        (
            ("create", "laps", "--every", "week", "--cron", "0 4 * * MON"),
            2,
            "--every, --cron, --timezone: has both",
        ),
        (("create", "default"), 3, "the board 'default' exists; change it with `leaderboard boards configure`"),
        (("configure", "laps", "--title", "x"), 3, "no board has the name 'laps'"),
        (("configure", "default", "--keeps", "best"), 3, "the board 'default' takes only a title; refused: keeps"),
        (("end", "laps"), 3, "no board has the name 'laps'"),
        (("end", "default"), 3, "the board 'default' has no seasons"),
        (("delete", "laps"), 2, "standard input is not a terminal, so nothing can be asked; give --yes"),
        (("delete", "laps", "--yes"), 3, "no board has the name 'laps'"),
        (("delete", "default", "--yes"), 3, "the board 'default' cannot be deleted"),
    ],
)
def test_what_cannot_be_done_is_one_error(
    settings: Settings, arguments: tuple[str, ...], status: int, error: str
) -> None:
    found = boards(settings, *arguments)
    assert (found[0], found[1].partition("leaderboard: ")[2].startswith(error)) == (status, True), found
    assert found[1].count("\n") == 1
    assert [row["name"] for row in sql(settings, "SELECT name FROM boards")] == ["default"]


def test_rules_that_entries_depend_on_stay(settings: Settings) -> None:
    assert boards(settings, "create", "laps")[0] == 0
    sql(settings, "INSERT INTO users (user_name) VALUES ('ada')")
    sql(
        settings,
        "INSERT INTO scores (user_id, season_id, sort_key) SELECT 1, season_id, 5 FROM boards WHERE board_id > 1",
    )
    status, error = boards(settings, "configure", "laps", "--better", "lower")
    assert (status, "has entries, which depend on better" in error) == (3, True)
    assert rules(settings, "laps") == UNCHANGED


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1)])
def test_a_board_is_deleted_after_a_yes(settings: Settings, answer: str, status: int) -> None:
    assert boards(settings, "create", "laps")[0] == 0
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [sys.executable, "-m", "leaderboard", "boards", "delete", "laps"],
            env=environment(settings),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == status
    question = "Delete the board laps with all seasons up to number 1 and 0 entries in the current one? [y/N]: "
    assert done.stdout.startswith(question)
    assert ("laps" in listed(settings)) == (answer == "n")


def test_a_database_without_boards_has_to_be_migrated(settings: Settings) -> None:
    sql(settings, "DELETE FROM schema_migrations WHERE name = 'boards'")
    error = "leaderboard: the database schema lacks 0004_boards; run `leaderboard migrate`\n"
    assert boards(settings, "list") == (3, error)
