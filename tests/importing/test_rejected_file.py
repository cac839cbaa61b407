"""The file of rejected rows: where it is written, what it may replace, and who can read it."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.importing import ColumnOptions, ImportReport, Rejected, UnusableFile
from leaderboard.importing.rejected_file import RejectedFile
from leaderboard.importing.understanding import Options, understand
from tests.importing.rows import HEADER, read, rows_of

UNDERSTOOD = understand(HEADER.decode(), "csv", Options())


def test_rejected_rows_are_written_as_they_were_read(tmp_path: Path) -> None:
    reported: list[Rejected] = []
    row = Rejected(3, 'why, "really"', "b\udce9\nb", "5.0", "")
    path = tmp_path / "in.csv"
    with RejectedFile(str(path), reported.append, UNDERSTOOD) as rejects:
        assert rejects.report(0).rejected_path is None
        assert list(tmp_path.iterdir()) == []
        rejects.add(row)
    assert reported == [row]
    assert rejects.report(1) == ImportReport(1, rejected=1, rejected_path=tmp_path / "in.csv.rejected.csv")
    written = (tmp_path / "in.csv.rejected.csv").read_bytes()
    assert written == b'line,reason,username,score,imageUrl\r\n3,"why, ""really""","b\xe9\nb",5.0,\r\n'
    assert [row.user_name for row in read(written) if isinstance(row, Rejected)] == ["b\udce9\nb"]


CELLS = st.lists(st.sampled_from([*"=+-@'\"aü€,;\t\r\n |"])).map("".join)


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "windows-1252"]),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["username{}score{}imageUrl", "Bild{}'=Name{}-Wert"]),
)
def test_rejected_rows_are_read_with_the_same_options_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[tuple[str, str, str]],
    encoding: str,
    separator: str,
    header: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "in.csv"
    columns = ColumnOptions.parse("username==Name,score=-Wert,imageUrl=Bild" if "Bild" in header else "")
    options = Options(encoding=encoding, separator=separator, columns=columns)
    understood = understand(header.format(separator, separator), "csv", options)
    with RejectedFile(str(path), lambda _: None, understood, encoding) as rejects:
        for name, score, image in cells:
            rejects.add(Rejected(2, "why", name, f"{score}x", image))
    read = rows_of(path.with_name("in.csv.rejected.csv"), options)
    assert [(row.user_name, row.score, row.image_url) for row in read if isinstance(row, Rejected)] == [
        (name, f"{score}x", image) for name, score, image in cells
    ]


def test_rejected_rows_go_to_the_current_folder_when_the_folder_of_the_file_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, expected in {"/proc/in.csv": "in.csv.rejected.csv", "-": "stdin.rejected.csv"}.items():
        with RejectedFile(path, lambda _: None, UNDERSTOOD) as rejects:
            rejects.add(Rejected(2, "x"))
        assert rejects.report(1).rejected_path == Path(expected)
        assert (tmp_path / expected).exists()
    (tmp_path / "blocked.csv.rejected.csv").mkdir()
    with (
        RejectedFile("/proc/blocked.csv", lambda _: None, UNDERSTOOD) as rejects,
        pytest.raises(UnusableFile, match=r"cannot write rejected rows to blocked\.csv\.rejected\.csv: it is not"),
    ):
        rejects.add(Rejected(2, "x"))


def put(kind: str, place: Path, other: Path) -> None:
    match kind:
        case "symlink":
            place.symlink_to(other)
        case "dangling symlink":
            place.symlink_to(other.with_name("made"))
        case "symlink to a folder":
            place.symlink_to(other.parent)
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "hard link":
            place.hardlink_to(other)
        case _:
            place.write_text("older")
            place.chmod(0o666)


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "symlink to a folder", "pipe", "folder"])
def test_links_pipes_and_folders_in_the_place_of_the_file_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In /tmp another user may have put it there."""
    current, other = tmp_path / "current", tmp_path / "elsewhere" / "other"
    for path in (current, other.parent):
        path.mkdir()
    other.write_text("other")
    monkeypatch.chdir(current)
    beside = tmp_path / "in.csv.rejected.csv"
    put(kind, beside, other)
    mode = beside.lstat().st_mode
    with RejectedFile(str(tmp_path / "in.csv"), lambda _: None, UNDERSTOOD) as rejects:
        rejects.add(Rejected(2, "x"))
    assert rejects.report(1).rejected_path == Path("in.csv.rejected.csv")
    assert (current / "in.csv.rejected.csv").read_text().endswith("2,x,,,\n")
    assert beside.lstat().st_mode == mode

    (current / "in.csv.rejected.csv").unlink()
    put(kind, current / "in.csv.rejected.csv", other)
    why = "a symbolic link" if "symlink" in kind else "not a regular file"
    with (
        RejectedFile(str(tmp_path / "in.csv"), lambda _: None, UNDERSTOOD) as rejects,
        pytest.raises(UnusableFile, match=rf"cannot write rejected rows to in\.csv\.rejected\.csv: it is {why}"),
    ):
        rejects.add(Rejected(2, "x"))
    assert [path.name for path in other.parent.iterdir()] == ["other"]
    assert other.read_text() == "other"


@pytest.mark.parametrize("kind", ["hard link", "older file"])
def test_rejected_rows_replace_an_older_file_and_are_readable_by_their_owner_only(
    tmp_path: Path, kind: str
) -> None:
    """Its other hard links, and processes that have it open, keep the old content."""
    other, place = tmp_path / "other", tmp_path / "in.csv.rejected.csv"
    other.write_text("other")
    put(kind, place, other)
    with place.open() as older, RejectedFile(str(tmp_path / "in.csv"), lambda _: None, UNDERSTOOD) as rejects:
        rejects.add(Rejected(2, "x"))
        assert older.read() == ("other" if kind == "hard link" else "older")
    assert place.read_text().endswith("2,x,,,\n")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert other.read_text() == "other"
