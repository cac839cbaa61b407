"""`leaderboard export` writes what `leaderboard import` makes the same board of."""

import gzip
import io
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from leaderboard import app
from leaderboard.board_rules import key_rules, parse_rules, scale, sort_key
from leaderboard.config import Settings
from leaderboard.database.boards import Board
from leaderboard.exporting import export_csv
from leaderboard.importing import OnConflict
from leaderboard.queries import SeasonRef
from leaderboard.rules import clean_username
from tests.boards.boards import started
from tests.importing.boards import counts, run
from tests.system import THOROUGH, environment, in_thread, sql

pytestmark = pytest.mark.anyio


def export(settings: Settings, *options: str, folder: Path | None = None) -> tuple[int, bytes, str]:
    """Return the exit status, the output, and the lines on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "export", *options],
        env=environment(settings),
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


async def make(settings: Settings, name: str, **rules: object) -> Board:
    database = app.database_from(settings)
    await database.open()
    await database.boards.configure(name, parse_rules(rules), None, ())
    board = (await database.boards.get(name)).value
    await database.close()
    assert board is not None
    return board


def add_users(settings: Settings, images: Mapping[str, str | None]) -> None:
    statement = "INSERT INTO users (user_name, image_url) SELECT * FROM unnest($1::text[], $2::text[])"
    sql(settings, statement, list(images), list(images.values()))


def add_entries(settings: Settings, season_id: int, sort_keys: dict[str, int]) -> None:
    sql(
        settings,
        "INSERT INTO scores (season_id, user_id, sort_key) SELECT $1, user_id, e.sort_key"
        " FROM unnest($2::text[], $3::bigint[]) AS e (name, sort_key) JOIN users ON user_name = e.name",
        season_id,
        list(sort_keys),
        list(sort_keys.values()),
    )


# The same board again


def is_username(text: str) -> bool:
    try:
        return clean_username(text) == text
    except ValueError:
        return False


SPELLINGS = (*"aBé日😀", ",", '"', "'", "''", ";", "=", "-", "+", "@", "\\", " ", "\\.", "NULL", "#", "\u200d")
NAMES = st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=6).map("".join).filter(is_username)
IMAGES = st.none() | st.sampled_from(["https://example.com/a,b", "http://x/'%20;"])


@dataclass
class World:
    """A board with its entries in any order, and which users are there before the import, in any order."""

    rules: dict[str, Any]
    entries: list[tuple[str, Decimal, int, str | None]]
    """name, score, tenths of a second, image."""
    known: list[str]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    decimals = draw(st.integers(0, 6))
    rules = {
        "better": draw(st.sampled_from(["higher", "lower"])),
        "keeps": draw(st.sampled_from(["last", "best", "sum"])),
        "ties": draw(st.sampled_from(["id", "first"])),
        "decimals": decimals,
    }
    bounds = key_rules(parse_rules(rules))
    low, high = bounds.lowest, bounds.highest
    if rules["better"] == "lower":
        low, high = -high, -low
    scaled = st.integers(-2, 2) | st.sampled_from([low + 1, low, high - 1, high]) | st.integers(low, high)
    names = draw(st.lists(NAMES, min_size=1, max_size=20, unique=True))
    entries = [
        (name, Decimal(draw(scaled)).scaleb(-decimals), draw(st.integers(0, 3)), draw(IMAGES)) for name in names
    ]
    known = draw(st.permutations([name for name in names if draw(st.booleans())]))
    # Users who exist come first where ties are by id, so that all of them exist or none.
    if rules["ties"] == "id":
        known = []
    return World(rules, entries, known)


@pytest.fixture
def two(template: Settings, settings: Settings) -> Iterator[tuple[Settings, Settings]]:
    """Two databases, each with its users."""
    admin = template.model_copy(update={"db_name": "postgres"})
    other = settings.model_copy(update={"db_name": f"test_{uuid.uuid4().hex[:12]}"})
    sql(admin, f"CREATE DATABASE {other.db_name} TEMPLATE {template.db_name}")
    yield settings, other
    sql(admin, f"DROP DATABASE {other.db_name} WITH (FORCE)")


@hypothesis.given(worlds(), st.sampled_from(OnConflict))
@hypothesis.settings(
    max_examples=25 * THOROUGH, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_an_export_imports_to_the_same_board(
    two: tuple[Settings, Settings], tmp_path: Path, world: World, on_conflict: OnConflict
) -> None:
    in_thread(check(two, tmp_path, world, on_conflict))


async def check(two: tuple[Settings, Settings], folder: Path, world: World, on_conflict: OnConflict) -> None:
    settings, other = two
    for each in two:
        sql(each, "TRUNCATE users, scores")
    name = f"b{uuid.uuid4().hex[:20]}"
    board = await make(settings, name, **world.rules)
    images = {name: image for name, _, _, image in world.entries}
    add_users(settings, images)
    rules = board.rules
    add_entries(
        settings,
        board.season_id,
        {name: sort_key(rules, scale(rules, score), tenths) for name, score, tenths, _ in world.entries},
    )
    add_users(other, {name: images[name] for name in world.known})

    before, path = await exported(settings, SeasonRef(name)), folder / "export.csv"
    path.write_text(before, newline="")
    report = await run(other, path, on_conflict, board=await make(other, name, **world.rules))
    count = len(world.entries)
    assert counts(report) == (count, count, 0, 0, 0)
    after = await exported(other, SeasonRef(name))
    assert after == before
    # Into the same database, where all users exist in the order of their ids.
    again = await make(settings, f"{name}-again", **world.rules)
    assert counts(await run(settings, path, on_conflict, board=again)) == (count, count, 0, 0, 0)
    assert await exported(settings, SeasonRef(f"{name}-again")) == await exported(settings, SeasonRef(name))


async def exported(settings: Settings, season: SeasonRef | None) -> str:
    file = io.StringIO(newline="")
    async with app.database_from(settings).exporting(season) as exporter:
        await export_csv(exporter, file)
    return file.getvalue()


async def test_default_is_imported_with_its_order(two: tuple[Settings, Settings], tmp_path: Path) -> None:
    settings, other = two
    sql(
        settings,
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'user ' || (n * 7919) % 3000, n % 5 FROM generate_series(1, 3000) AS n",
    )
    sql(
        settings,
        "INSERT INTO users (user_name, total_score, image_url)"
        " VALUES ('x', 2 ^ 53 - 1, 'https://x'), ('y', 1 - 2 ^ 53, NULL)",
    )
    before, path = await exported(settings, None), tmp_path / "export.csv"
    assert before.startswith("username,score,imageUrl\nx,9007199254740991,https://x\n")
    assert before.endswith("\ny,-9007199254740991,\n")
    path.write_text(before, newline="")
    assert counts(await run(other, path)) == (3002, 3002, 0, 0, 0)
    assert await exported(other, None) == before


# What is exported


async def test_a_season_is_exported_without_hidden_users(settings: Settings) -> None:
    rules = {"better": "lower", "decimals": 2}
    board = await make(settings, "laps", **rules)
    add_users(settings, dict.fromkeys(("amy", "bob", "cat")))
    add_entries(settings, board.season_id, {"amy": -9340, "bob": -100, "cat": 50})
    sql(settings, "UPDATE users SET hidden = true WHERE user_name = 'bob'")
    async with started(settings) as running:
        await running.service.boards.end_season("laps", 1)
        season = await running.service.boards.get("laps")
    add_entries(settings, season.season_id, {"bob": -1, "cat": -2})
    head = b"username,score,imageUrl\n"
    first = head + b"cat,-0.50,\namy,93.40,\n"
    second = head + b"cat,0.02,\n"
    assert export(settings, "--board", "laps") == (0, second, "1 entries of the board laps, season 2\n")
    assert export(settings, "--board", "laps", "--season", "1") == (
        0,
        first,
        "2 entries of the board laps, season 1\n",
    )
    assert export(settings, "--board", "laps", "--season", "previous")[1] == first
    status, output, line = export(settings)
    assert (status, sorted(output.splitlines()), line) == (
        0,
        [b"amy,0,", b"cat,0,", b"username,score,imageUrl"],
        "2 entries of the board default\n",
    )


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (("--board", "none"), 3, "no board has the name 'none'"),
        (
            ("--board", "none", "--season", "0"),
            2,
            "--season is '0', must be an integer from 1 to 2147483647, or previous",
        ),
        (("--season", "2"), 3, "the board 'default' has no season 2"),
        (("--season", "previous"), 3, "no season of the board 'default' has ended"),
        (("--output", "/none/x.csv"), 3, "cannot write /none/x.csv: No such file or directory"),
    ],
)
def test_what_cannot_be_exported_is_one_error(
    settings: Settings, options: tuple[str, ...], status: int, error: str
) -> None:
    assert export(settings, *options) == (status, b"", f"leaderboard: {error}\n")


async def test_names_that_a_spreadsheet_would_run_are_text_and_scores_stay_numbers(settings: Settings) -> None:
    names = ["=1+1", "+a", "-b", "@c", "'=d", "'tis"]
    sql(settings, "INSERT INTO users (user_name, total_score) SELECT unnest($1::text[]), -5", names)
    assert export(settings)[1].decode().splitlines()[1:] == [
        *("'=1+1,-5,", "'+a,-5,", "'-b,-5,", "'@c,-5,", "''=d,-5,", "'tis,-5,")
    ]


async def test_all_is_of_one_snapshot(settings: Settings) -> None:
    board = await make(settings, "laps")
    names = [f"user {number}" for number in range(5000)]
    add_users(settings, dict.fromkeys(names))
    add_entries(settings, board.season_id, dict.fromkeys(names, 5))
    async with app.database_from(settings).exporting(SeasonRef("laps")) as exporter:
        # A change between finding the season and reading it, and one while it is read.
        sql(settings, "DELETE FROM scores WHERE user_id % 10 = 0")
        rows = exporter.entries()
        read = [await anext(rows)]
        sql(settings, "UPDATE scores SET sort_key = 1")
        sql(settings, "UPDATE users SET user_name = 'new ' || user_id")
        read += [row async for row in rows]
    assert sorted(read) == sorted((name, 5, None, None) for name in names)


# Where to


def test_a_file_is_replaced_when_it_is_complete(settings: Settings, tmp_path: Path) -> None:
    add_users(settings, {"amy": None})
    (tmp_path / "board.csv").write_text("older")
    for name in ("board.csv", "board.csv.gz"):
        assert export(settings, "--output", name, folder=tmp_path) == (0, b"", "1 entries of the board default\n")
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    expected = b"username,score,imageUrl\namy,0,\n"
    assert (tmp_path / "board.csv").read_bytes() == expected
    assert gzip.decompress((tmp_path / "board.csv.gz").read_bytes()) == expected
    assert sorted(os.listdir(tmp_path)) == ["board.csv", "board.csv.gz"]


def test_only_a_regular_file_is_replaced(settings: Settings, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "folder", "link"):
        error = f"leaderboard: cannot write {name}: it is not a regular file\n"
        assert export(settings, "--output", name, folder=tmp_path) == (3, b"", error)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_an_export_that_fails_leaves_the_older_file(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "board.csv").write_text("older")
    sql(settings, "INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, 3000) AS n")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
    program = f"{limit}; from leaderboard.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "export", "--output", "board.csv"],
        env=environment(settings),
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, b"leaderboard: cannot write board.csv: File too large\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"board.csv": "older"}


@pytest.mark.parametrize("users", [1, 30_000])
def test_standard_output_that_is_closed_early(settings: Settings, users: int) -> None:
    """Either the last write fails, or one before it."""
    sql(settings, "INSERT INTO users (user_name) SELECT 'user ' || n FROM generate_series(1, $1::int) AS n", users)
    with subprocess.Popen(
        [sys.executable, "-m", "leaderboard", "export"],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        if users > 1:
            assert process.stdout.readline() == b"username,score,imageUrl\n"
        process.stdout.close()
        assert process.stderr.read() == b"leaderboard: cannot write to standard output: Broken pipe\n"
    assert process.returncode == 3
