"""The commands print names, paths and server messages so that no escape sequence reaches the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard.config import Settings
from tests.system import ApiProcess, environment, free_port, redis, sql

STRANGE = "\x1b[2J\x7f\x9b\u202e\u2028\r"
SHOWN = r"\x1b[2J\x7f\x9b\u202e\u2028\r"


def command(
    settings: Settings, *arguments: str | bytes, folder: Path | None = None, program: str = "", **variables: str
) -> tuple[int, list[str]]:
    """Return the exit status of a command, and its lines on standard output and then on standard error."""
    done = subprocess.run(
        [sys.executable, *(["-c", program] if program else ["-m", "leaderboard"]), *arguments],
        env={**environment(settings), **variables},
        cwd=folder,
        capture_output=True,
        timeout=30,
        check=False,
    )
    lines = b"".join((done.stdout, done.stderr)).decode().removesuffix("\n").split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    return done.returncode, lines


def test_verify_escapes_names_and_urls(settings: Settings) -> None:
    name = f"[red]:heart:[/red]日本{STRANGE}"
    sql(settings, "INSERT INTO users (user_name, image_url) VALUES ($1, $2)", name, f"https://{STRANGE}")
    ApiProcess(settings).run("sync")
    redis(settings).zincrby("{leaderboard}:scores", 5, f"{1:010d}")
    for encoding, shown in {"utf-8": "日本", "ascii": r"\u65e5\u672c"}.items():
        status, lines = command(settings, "verify", COLUMNS="400", PYTHONIOENCODING=encoding)
        assert status == 1
        (row,) = [line for line in lines if "heart" in line]
        assert row.count(f"[red]:heart:[/red]{shown}{SHOWN} https://{SHOWN}") == 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_import_escapes_the_name_of_the_file(settings: Settings, tmp_path: Path, encoding: str) -> None:
    name = b"\xff" + f"日本{STRANGE}\n.csv".encode()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("username,score\nada,1\nada,2\n")
    status, lines = command(settings, "import", name, folder=tmp_path, PYTHONIOENCODING=encoding)
    shown = r"\udcff" + (r"\u65e5\u672c" if encoding == "ascii" else "日本") + SHOWN + r"\n.csv"
    assert (status, lines[1].rpartition(": ")[2]) == (1, f"see {shown}.rejected.csv")

    status, lines = command(settings, "import", name + b"\n2026 forged", folder=tmp_path)
    assert (status, lines[0].startswith("leaderboard: cannot read")) == (3, True)
    assert all(line.startswith("  | ") for line in lines[1:])
    assert SHOWN in lines[0]


def test_import_escapes_taken_names_and_rejected_cells(settings: Settings, tmp_path: Path) -> None:
    sql(settings, "INSERT INTO users (user_name) VALUES ($1)", "e\u0600ve")
    path = tmp_path / "in.csv"
    path.write_text("username,score\ne\u0600ve,1\n")
    status, lines = command(settings, "import", str(path), "--on-conflict", "fail")
    assert (status, r"'e\u0600ve' (line 2)" in lines[-1]) == (3, True)

    path.write_text(f'username,score,imageUrl\n"{STRANGE}",1,\nbob,"{STRANGE}",\ncat,3,"https://{STRANGE}"\n')
    status, lines = command(settings, "import", str(path), "--on-conflict", "fail")
    assert status == 1
    assert sum(line.startswith("line ") for line in lines) == 3

    path.write_text(f"username,{STRANGE},score\n")
    status, lines = command(settings, "import", str(path))
    assert (status, r"\x1b[2J" in lines[0]) == (3, True)


def test_import_escapes_errors_of_postgresql(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("username,score\nada,1\n")
    sql(
        settings,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        r" RAISE EXCEPTION E'no\nleaderboard: done\u001b[2J\u202e' USING HINT = 'ask the administrator'; END $$",
    )
    sql(settings, "CREATE TRIGGER fail BEFORE INSERT ON users EXECUTE FUNCTION fail()")
    status, lines = command(settings, "import", str(path))
    assert (status, lines[-3]) == (3, "leaderboard: PostgreSQL refused: no")
    assert lines[-2:] == [r"  | leaderboard: done\x1b[2J\u202e", "  | HINT:  ask the administrator"]


def test_an_unexpected_error_has_a_status_of_its_own(settings: Settings) -> None:
    """Its traceback shows where it was, without local variables."""
    program = f"""
from leaderboard.cli import cli, main
@cli.command()
def fail():
    secret = "-".join("pass word".split())
    raise ValueError({STRANGE!r})
main()
"""
    status, lines = command(settings, "fail", program=program)
    assert status == 3
    assert f"  | ValueError: {SHOWN}" in lines
    assert not [line for line in lines if "pass-word" in line]


def test_the_log_of_a_server_is_printed_line_by_line(settings: Settings, tmp_path: Path) -> None:
    """PostgreSQL rejects the folder, which is no cluster, and logs more than one line."""
    (tmp_path / STRANGE / "postgres" / "cluster").mkdir(parents=True)
    status, lines = command(settings, "dev", "--port", str(free_port()), "--data-dir", STRANGE, folder=tmp_path)
    assert status == 3
    (error,) = [number for number, line in enumerate(lines) if line.startswith("leaderboard: ")]
    assert SHOWN in lines[error]
    assert len(lines) > error + 2
    assert all(line.startswith("  | ") for line in lines[error + 1 :])


def test_the_log_of_a_command_is_text_without_local_variables(settings: Settings, tmp_path: Path) -> None:
    """Before a command sets the log up: a library's record, and ours."""
    program = f"""
import logging, structlog
from leaderboard.cli import cli, main
from leaderboard.config import BadSetting
@cli.command()
def fail():
    secret = "-".join("pass word".split())
    logging.getLogger("other").error({STRANGE!r})
    try: 1 / 0
    except ZeroDivisionError: structlog.get_logger().exception({STRANGE!r})
    raise BadSetting("enough")
main()
"""
    status, lines = command(settings, "fail", folder=tmp_path, program=program)
    assert status == 2
    assert sum(SHOWN in line for line in lines) == 2
    assert not [line for line in lines if "pass-word" in line]
