"""Imports that find users by external ids, and the way there and back of an export."""

import asyncio
from pathlib import Path

import pytest

from leaderboard import app
from leaderboard.cli.importing import import_users
from leaderboard.config import Settings
from leaderboard.exporting import export_csv
from leaderboard.importing import ColumnOptions, ImportReport, OnConflict, Options, UnusableFile
from leaderboard.queries import SeasonRef
from leaderboard.spreadsheet import neutral
from tests.exporting.test_export import make
from tests.importing.boards import FAIL, SKIP, UPDATE, counts, rejected, run, write_csv
from tests.system import sql

pytestmark = pytest.mark.anyio

IDS = ("1", "@2", "a,b", "=1+1", "'3", "'=4", " 5 ", "😀", '"', "")


def users(settings: Settings) -> dict[str, tuple[str | None, int]]:
    """Returns external id and score by name."""
    rows = sql(settings, "SELECT user_name, external_id, total_score FROM users")
    return {row["user_name"]: (row["external_id"], row["total_score"]) for row in rows}


def write(path: Path, *rows: tuple[object, ...], header: str = "username,score,external_id") -> Path:
    return write_csv(path / "users.csv", rows, header)


async def to_default(settings: Settings, file: Path, on_conflict: OnConflict = SKIP) -> ImportReport:
    return await run(settings, file, on_conflict)


@pytest.mark.parametrize("on_conflict", [SKIP, UPDATE])
async def test_a_row_finds_its_user_by_the_id_or_creates_it(
    settings: Settings, tmp_path: Path, on_conflict: OnConflict
) -> None:
    sql(settings, "INSERT INTO users (user_name, external_id) VALUES ('renamed', 'x'), ('bob', NULL)")
    file = write(tmp_path, ("ada", 5, "x"), ("eve", 6, "y"), ("joe", 7, ""), ("bob", 8, ""))
    report = await to_default(settings, file, on_conflict)
    updates = on_conflict is UPDATE
    assert counts(report) == (4, 2, 2 * updates, 2 * (not updates), 0)
    old = (5, 8) if updates else (0, 0)
    present = {"renamed": ("x", old[0]), "bob": (None, old[1])}
    assert users(settings) == present | {"eve": ("y", 6), "joe": (None, 7)}
    assert counts(await to_default(settings, file, on_conflict))[1] == 0


async def test_a_row_that_cannot_be_a_user_is_rejected_and_can_be_mended(
    settings: Settings, tmp_path: Path
) -> None:
    sql(settings, "INSERT INTO users (user_name, external_id) VALUES ('ada', NULL), ('bob', 'b'), ('eve', 'e')")
    report = await to_default(
        settings,
        write(
            tmp_path,
            *(("ada", 1, "a"), ("bob", 2, "not b"), ("new", 3, "n"), ("again", 4, "n")),
            *(("another name", 5, "b"), ("bob", 6, ""), ("long", 7, "x" * 129), ("control", 8, "\x7f")),
        ),
    )
    assert counts(report) == (8, 1, 0, 1, 6)
    reasons = {row[0]: row[1] for row in rejected(report, "external_id")}
    taken = "username: another user has it, and no user has the externalId"
    assert reasons == {
        "2": taken,
        "3": taken,
        "5": "externalId: duplicate of line 4",
        "7": "username: duplicate of line 6",
        "8": "externalId: is 129 bytes long in UTF-8; 1 to 128 bytes are allowed",
        "9": "externalId: contains U+007F, a control character; none is allowed",
    }
    assert users(settings)["new"] == ("n", 3)
    assert report.rejected_path is not None
    mended = report.rejected_path.read_text().replace(",bob,2,not b", ",robert,2,not b")
    (tmp_path / "mended.csv").write_text(mended)
    await to_default(settings, tmp_path / "mended.csv")
    assert users(settings)["robert"] == ("not b", 2)


async def test_a_rejected_row_has_its_name_in_the_file(settings: Settings, tmp_path: Path) -> None:
    sql(settings, "INSERT INTO users (user_name, external_id) VALUES ('renamed', 'x')")
    rows = ("ada", 1, "x"), ("eve", 2, "x"), ("renamed", 3, "")
    report = await to_default(settings, write(tmp_path, *rows), UPDATE)
    assert [row[1:3] for row in rejected(report, "external_id")] == [
        ["externalId: duplicate of line 2", "eve"],
        ["username: duplicate of line 2", "renamed"],
    ]


async def test_with_fail_nothing_is_imported_if_an_id_exists(settings: Settings, tmp_path: Path) -> None:
    sql(settings, "INSERT INTO users (user_name, external_id) VALUES ('renamed', 'x')")
    with pytest.raises(Exception, match="renamed"):
        await to_default(settings, write(tmp_path, ("eve", 6, "y"), ("ada", 5, "x")), FAIL)
    assert users(settings) == {"renamed": ("x", 0)}
    assert counts(await to_default(settings, write(tmp_path, ("eve", 6, "y")), FAIL)) == (1, 1, 0, 0, 0)
    assert users(settings)["eve"] == ("y", 6)


async def test_the_column_has_any_name_by_an_option(settings: Settings, tmp_path: Path) -> None:
    file = write(tmp_path, ("ada", 5, "x"), header="username,score,Steam ID")
    options = Options(columns=ColumnOptions({"externalId": "Steam ID"}))
    await asyncio.to_thread(import_users, str(file), "default", SKIP, options, settings)
    assert users(settings) == {"ada": ("x", 5)}
    with pytest.raises(UnusableFile, match="no column has the name 'other'"):
        await run(settings, file, options=Options(columns=ColumnOptions({"externalId": "other"})))


async def test_json_lines_have_ids_too(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text(
        '{"username": "ada", "score": 5, "externalId": "x"}\n{"username": "bob", "score": 6}\n'
        '{"username": "eve", "score": 7, "externalId": 7}\n'
    )
    report = await to_default(settings, file)
    assert users(settings) == {"ada": ("x", 5), "bob": (None, 6)}
    assert [row[1] for row in rejected(report, "imageUrl", "externalId")] == [
        "externalId: must be a string or null"
    ]


async def test_json_lines_may_have_the_first_id_in_any_object(settings: Settings, tmp_path: Path) -> None:
    sql(settings, "INSERT INTO users (user_name, external_id) VALUES ('renamed', 'x')")
    file = tmp_path / "users.jsonl"
    file.write_text(
        '{"username": "bob", "score": 6}\n{"username": "ada", "score": 5, "externalId": "x"}\n'
        '{"username": "eve", "score": "7", "externalId": "e"}\n'
    )
    report = await to_default(settings, file, UPDATE)
    assert users(settings) == {"bob": (None, 6), "renamed": ("x", 5)}
    assert [row[-1] for row in rejected(report, "imageUrl", "externalId")] == ["e"]
    options = Options(columns=ColumnOptions({"externalId": ""}))
    await run(settings, file, UPDATE, options=options)
    assert users(settings)["ada"] == (None, 5)


async def exported(settings: Settings, season: SeasonRef | None, path: Path) -> Path:
    async with app.database_from(settings).exporting(season) as exporter:
        with path.open("w", newline="") as file:
            await export_csv(exporter, file)
    return path


@pytest.mark.parametrize("name", [None, "sums"])
async def test_an_export_with_ids_is_imported_with_them(
    settings: Settings, tmp_path: Path, name: str | None
) -> None:
    board = None if name is None else await make(settings, name, keeps="sum", ties="first")
    season = None if name is None else SeasonRef(name)
    names = [f"user {n}" for n in range(len(IDS))]
    rows = [(user, 50 - n, neutral(each)) for n, (user, each) in enumerate(zip(names, IDS, strict=True))]
    assert counts(await run(settings, write(tmp_path, *rows), board=board))[1] == len(IDS)
    assert {user: row[0] or "" for user, row in users(settings).items()} == dict(zip(names, IDS, strict=True))
    first = await exported(settings, season, tmp_path / "first.csv")
    sql(settings, "DELETE FROM users")
    assert counts(await run(settings, first, board=board))[1] == len(IDS)
    assert (await exported(settings, season, tmp_path / "second.csv")).read_bytes() == first.read_bytes()
    # Users who have other names by now are the same users.
    sql(settings, "UPDATE users SET user_name = 'new ' || user_name WHERE external_id IS NOT NULL")
    again = await run(settings, first, UPDATE, board=board)
    assert (again.imported, again.rejected) == (0, 0)
    assert sql(settings, "SELECT count(*) FROM users")[0][0] == len(IDS)


async def test_an_export_without_ids_has_no_column_for_them(settings: Settings, tmp_path: Path) -> None:
    sql(settings, "INSERT INTO users (user_name) VALUES ('ada')")
    path = await exported(settings, None, tmp_path / "plain.csv")
    assert path.read_text() == "username,score,imageUrl\nada,0,\n"


async def test_a_user_who_is_renamed_during_an_import_is_skipped(settings: Settings) -> None:
    sql(settings, "INSERT INTO users (user_name, external_id) VALUES ('ada', 'x')")

    def rename() -> None:
        sql(settings, "UPDATE users SET user_name = 'was ada' WHERE external_id = 'x'")
        sql(settings, "INSERT INTO users (user_name) VALUES ('ada')")

    async with app.database_from(settings).importing(None) as importer:
        await importer.begin()
        await importer.load([(2, "ada", 5, None, "x")])
        await importer.drop_repeated(lambda _: None)
        await asyncio.to_thread(rename)
        await importer.write(UPDATE, has_images=False, report=lambda _: None)
    assert users(settings) == {"was ada": ("x", 0), "ada": (None, 0)}
