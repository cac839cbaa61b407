"""Files as other programs write them: what an import does without options, and with which options it works.

docs/csv.md has the same table.
"""

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leaderboard.cli import cli
from leaderboard.cli.exits import ExitStatus
from leaderboard.config import Settings
from leaderboard.errors import LeaderboardError
from tests.importing.boards import board
from tests.system import environment, sql

Command = Callable[..., tuple[int, list[str]]]
DOCS = (Path(__file__).parents[2] / "docs" / "csv.md").read_text("utf-8")


@pytest.fixture
def command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `leaderboard import`; return its status and its lines, those of standard error without progress."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object) -> tuple[int, list[str]]:
        done = CliRunner().invoke(cli, ["import", *map(str, arguments)])
        lines = [line for line in done.output.splitlines() if not re.match(r"(reading|writing): ", line)]
        if isinstance(done.exception, LeaderboardError):
            return ExitStatus.FAILED, [*lines, str(done.exception)]  # As `main` does.
        return done.exit_code, lines

    return run


@dataclass
class File:
    data: bytes
    scores: dict[str, int]
    """What is imported in the end."""
    options: str = ""
    status: int = 0
    first: str = ""
    """The beginning of the first line of output, with the options."""
    error: str = ""
    """The last line of output without them."""


FILES = {
    "semicolons": File(
        "username;score\nJürgen;12\namy;5\n".encode(),
        {"Jürgen": 12, "amy": 5},
        first="read as CSV in UTF-8 separated by semicolons: username is 'username', score is 'score', no"
        " imageUrl; numbers as 1234",
    ),
    "“Unicode text” of Excel: UTF-16, tabs": File(
        "\ufeffusername\tscore\timageUrl\r\nJürgen\t12\t\r\n日本\t5\thttps://x/\r\n".encode("utf-16-le"),
        {"Jürgen": 12, "日本": 5},
        first="read as CSV in UTF-16 separated by tabs: username is 'username', score is 'score', imageUrl is"
        " 'imageUrl'; numbers as 1234",
    ),
    "windows-1252": File(
        "username,score\namy,5\nJürgen,12\n".encode("windows-1252"),
        {"Jürgen": 12, "amy": 5},
        options="--encoding windows-1252",
        error="leaderboard: line 3: the username is not UTF-8: byte 0xFC; give --encoding, such as windows-1252,"
        " or --encoding utf-8 to reject such rows alone; nothing was imported",
        first="read as CSV in windows-1252 separated by commas: ",
    ),
    "other names and other columns": File(
        b"Rank,Name,Score,Country\n1,bob,12,DE\n2,amy,5,\n",
        {"bob": 12, "amy": 5},
        first="read as CSV in UTF-8 separated by commas: username is 'Name', score is 'Score', no imageUrl;",
    ),
    "`12.0` and `1e3`": File(b"username,score\nbob,12.0\namy,1e3\n", {"bob": 12, "amy": 1000}),
    '`"1,234"`': File(
        b'username,score\nbob,999\namy,"1,234"\nzoe,"1,234,567"\n',
        {"bob": 999, "amy": 1234, "zoe": 1234567},
        options="--thousands ,",
        error="leaderboard: line 3: the score '1,234' needs an option: it is 1234 with --thousands ,;"
        " --decimal . --thousands none rejects such rows alone; nothing was imported",
        first="read as CSV in UTF-8 separated by commas: username is 'username', score is 'score', no"
        " imageUrl; numbers as 1,234",
    ),
    "`1.234,0` and semicolons": File(
        b"username;score\nbob;999,0\namy;1.234,0\n",
        {"bob": 999, "amy": 1234},
        options="--decimal , --thousands .",
        error="leaderboard: line 2: the score '999,0' needs an option: it is 999 with --decimal ,;"
        " --decimal . --thousands none rejects such rows alone; nothing was imported",
        first="read as CSV in UTF-8 separated by semicolons: ",
    ),
    "blank scores, rows and last columns": File(
        b"username;score;;\r\nbob;12;;\r\ncat;;;\r\n;;;\r\n\r\namy;5;;\r\n",
        {"bob": 12, "amy": 5},
        status=1,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_imported_without_options_or_the_error_names_them(
    settings: Settings, tmp_path: Path, command: Command, name: str
) -> None:
    file = FILES[name]
    path = tmp_path / "in.csv"
    path.write_bytes(file.data)
    status, lines = command(path)
    if file.options:
        assert (status, lines[-1], board(settings)) == (3, file.error, {})
        status, lines = command(path, *file.options.split())
    assert lines[0].startswith(file.first or "read as CSV in UTF-8 separated by ")
    assert status == file.status
    assert {user: score for user, (score, _) in board(settings).items()} == file.scores
    assert f"\n| {name} | {f'`{file.options}`' if file.options else 'nothing'} |" in DOCS


def test_other_columns_are_ignored_with_a_line_that_says_so(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(FILES["other names and other columns"].data)
    assert command(path)[1][1] == "ignored columns: 'Rank', 'Country'"
    path.write_text("Player,Points,,\nbob,5,,\n")
    status, lines = command(path, "--columns", "username=player, score = POINTS", "--on-conflict", "update")
    assert (status, lines[1:]) == (0, [
        "ignored columns: 2 without a name", "1 read, 0 imported, 1 updated, 0 skipped, 0 rejected"
    ])  # fmt: skip


def test_the_same_options_import_the_mended_file_of_rejected_rows(
    settings: Settings, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "in.csv"
    rows = (
        *("=Spieler;Größe;Punkte", "Jürgen;;x", "Éric;;1.234,0", "Éric;;2.345,0"),
        *("=2*3;;y", "'-amy;;'-5,0", "zoé;;z\r\n"),
    )
    path.write_bytes("\r\n".join(rows).encode("windows-1252"))
    options = (
        *("--encoding", "windows-1252", "--decimal", ",", "--thousands", "."),
        *("--columns", "username==Spieler,score=Punkte"),
    )
    status, lines = command(path, *options)
    assert lines[1] == "ignored columns: 'Größe'"
    assert (status, lines[-1].partition(":")[0]) == (1, "6 read, 2 imported, 0 updated, 0 skipped, 4 rejected")
    rejects = path.with_name("in.csv.rejected.csv")
    text = rejects.read_bytes().decode("windows-1252")
    header, *cells = [line.split(";") for line in text.splitlines()]
    assert header == ["line", "reason", "'=Spieler", "Punkte"]
    # A reason may have a semicolon.
    assert [cell[-2:] for cell in cells] == [["Jürgen", "x"], ["'=2*3", "y"], ["zoé", "z"], ["Éric", "2345"]]
    mended = (
        text.replace(";x\r", ";1.000,0\r").replace(";y\r", ";6\r").replace(";z\r", ";7\r").replace("Éric", "Eric")
    )
    rejects.write_bytes(mended.encode("windows-1252"))
    assert command(rejects, *options)[0] == 0
    assert {user: score for user, (score, _) in board(settings).items()} == {
        "Jürgen": 1000, "Éric": 1234, "Eric": 2345, "=2*3": 6, "-amy": -5, "zoé": 7
    }  # fmt: skip


def test_a_dry_run_shows_what_an_import_would_do_and_changes_nothing(
    settings: Settings, tmp_path: Path, command: Command
) -> None:
    sql(settings, "INSERT INTO users (user_name) VALUES ('amy')")
    path = tmp_path / "in.csv.gz"
    path.write_bytes(
        gzip.compress(b'Name|Points|Avatar\nbob|"1,234"|https://x\namy|7|\n"bad\nname"|5|\nbob|1|\nzoe||\n')
    )
    status, lines = command(path, "--dry-run", "--thousands", ",")
    assert status == 1
    assert lines[0] == (
        "read as CSV in UTF-8 separated by vertical bars: username is 'Name', score is 'Points', imageUrl is"
        " 'Avatar'; numbers as 1,234"
    )
    *rejected, first, second, last = lines[1:]
    assert [first, second] == [
        "line 2: username bob, score 1234, image https://x",
        "line 3: username amy, score 7, image none",
    ]
    assert last.endswith("an import would do this: 5 read, 1 imported, 0 updated, 1 skipped, 3 rejected")
    assert [line.partition(":")[0] for line in rejected] == [f"line {line} rejected" for line in (4, 7, 6)]
    assert board(settings) == {"amy": (0, None)}
    assert [found.name for found in tmp_path.iterdir()] == ["in.csv.gz"]
    assert (
        "0 imported, 0 updated"
        not in command(path, "--dry-run", "--thousands", ",", "--on-conflict", "update")[1][-1]
    )
    status, lines = command(path, "--dry-run", "--thousands", ",", "--on-conflict", "fail")
    assert (status, lines[-1]) == (3, "nothing was imported, because these users exist: 'amy' (line 3)")
    assert command(path, "--thousands", ",")[1][-1].startswith(
        "5 read, 1 imported, 0 updated, 1 skipped, 3 rejected"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    {
        ("--separator", ";;"): "must be one character, such as ; or |, or the word tab",
        ("--separator", "a"): "must be one character",
        ("--encoding", "windows"): "must be an encoding, such as utf-8, utf-16-le or windows-1252",
        ("--encoding", "base64"): "must be an encoding",
        ("--decimal", ";"): "must be one of . ,",
        ("--thousands", "x"): "must be one of none , . space apostrophe",
        ("--decimal", ",", "--thousands", ","): "are the same mark",
        (
            "--columns",
            "user=Name",
        ): "'user=Name' must be one of username, score, imageUrl, externalId, then = and a name in the file",
        ("--columns", "username=a,username=b"): "username is given twice",
        ("--columns", "score="): "score has no column; only imageUrl and externalId may be left out",
        ("--format", "xlsx"): "is not one of 'csv', 'jsonl'",
    }.items(),
)
def test_a_wrong_option_is_one_error(command: Command, options: tuple[str, ...], says: str) -> None:
    status, lines = command("-", *options)
    assert status == 2
    words = " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in lines).split())
    assert says in words
