"""Reading CSV: every oddity costs its own row and is reported on the right line; broken files are refused."""
# ruff: noqa: RUF001 - digits that look like others are what this is about

import csv
import gzip
import io
import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard import importing
from leaderboard.database.importer import Row
from leaderboard.importing import CsvUsers, Rejected, UnusableFile

HEADER = b"username,score,imageUrl\n"


def read(data: bytes) -> list[Row | Rejected]:
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
    return list(CsvUsers(text))


def brief(rows: list[Row | Rejected]) -> list[object]:
    """Good rows as they are, of rejected ones the line and the reason."""
    return [(row.line, row.reason) if isinstance(row, Rejected) else row for row in rows]


@pytest.mark.parametrize(
    ("data", "rows"),
    {
        HEADER: [],
        b"username,score,imageUrl": [],
        HEADER + b"bob,5,\n": [(2, "bob", 5, None)],
        HEADER + b"bob,5,": [(2, "bob", 5, None)],
        HEADER + b"bob,5,https://example.com/b.png\n": [(2, "bob", 5, "https://example.com/b.png")],
        HEADER + b" bob , 5 , https://example.com/ \n": [(2, "bob", 5, "https://example.com/")],
        b"username,score\nbob,5\n": [(2, "bob", 5, None)],
        b"score,imageUrl,username\n5,,bob\n": [(2, "bob", 5, None)],
        b" username, score\nbob,5\n": [(2, "bob", 5, None)],
        b"line,reason,username,score,imageUrl\n7,bad,bob,5,\n": [(2, "bob", 5, None)],
        b"\xef\xbb\xbf" + HEADER + b"bob,5,\n": [(2, "bob", 5, None)],
        b"\xef\xbb\xbf" + b'"username","score"\n"bob","5"\n': [(2, "bob", 5, None)],
        b"username,score\r\nbob,5\r\namy,6\r\n": [(2, "bob", 5, None), (3, "amy", 6, None)],
        b"username,score\rbob,5\ramy,6": [(2, "bob", 5, None), (3, "amy", 6, None)],
        b"username,score\n\n\r\nbob,5\n\namy,6\n\n": [(4, "bob", 5, None), (6, "amy", 6, None)],
        b'username,score\n"Smith, ""Bob""",5\n': [(2, 'Smith, "Bob"', 5, None)],
        b'username,score\nBob "B" Smith,5\n': [(2, 'Bob "B" Smith', 5, None)],
        b'username,score\n"\nbob\n",5\namy,6\n': [(2, "bob", 5, None), (5, "amy", 6, None)],
        "username,score\ne\u0301ric,5\n".encode(): [(2, "éric", 5, None)],
        "username,score\na\u2028,5\nb\x0bc,5\nd,6\n".encode(): [
            (2, "a", 5, None),
            (3, "username: contains U+000B, a control character; none is allowed in a username"),
            (4, "d", 6, None),
        ],
    }.items(),
)
def test_good_files(data: bytes, rows: list[object]) -> None:
    assert brief(read(data)) == rows


@pytest.mark.parametrize(
    ("cell", "score"),
    {
        "0": 0, "-0": 0, "007": 7, " 5 ": 5, "-5": -5, "2147483647": 2147483647, "-2147483648": -2147483648,
        "0" * 90 + "1": 1,
    }.items(),
)  # fmt: skip
def test_good_scores(cell: str, score: int) -> None:
    assert read(f"username,score\nbob,{cell}\n".encode()) == [(2, "bob", score, None)]


@pytest.mark.parametrize(
    ("cell", "reason"),
    {
        "": "is missing", "  ": "is missing",
        "2147483648": "2147483648 is out of range", "-2147483649": "-2147483649 is out of range",
        "9" * 99: "the number is out of range", "9" * 5000: "is not a number in plain digits",
    }.items(),
    ids=lambda text: text[:12],
)  # fmt: skip
def test_bad_scores(cell: str, reason: str) -> None:
    reason = f"score: {reason}; whole numbers from -2147483648 to 2147483647 are allowed"
    assert read(f"username,score\nbob,{cell}\n".encode()) == [Rejected(2, reason, "bob", cell)]


@pytest.mark.parametrize(
    "cell",
    [
        "5.0",
        "+5",
        "٣",
        "５",
        "²",
        "1e3",
        "0x10",
        "1_000",
        '"1,000"',
        "--5",
        "- 5",
        "5\t",
        "5\xa0",
        "\0005",
        "NaN",
        "true",
        "−5",
    ],
)
def test_a_score_is_plain_digits(cell: str) -> None:
    (row,) = read(f"username,score\nbob,{cell}\n".encode())
    assert isinstance(row, Rejected)
    assert row.line == 2
    assert row.reason.startswith("score: is not a number in plain digits")


@pytest.mark.parametrize(
    ("line", "reason"),
    {
        b"bob": "has 1 fields, the header has 3",
        b"bob,5": "has 2 fields, the header has 3",
        b"bob,5,,": "has 4 fields, the header has 3",
        b"   ": "has 1 fields, the header has 3",
        b",,": "username: is empty; 1 to 128 characters are allowed; score: is missing; "
        "whole numbers from -2147483648 to 2147483647 are allowed",
        b"bob,x,ftp://x": "score: is not a number in plain digits; "
        "whole numbers from -2147483648 to 2147483647 are allowed; "
        "imageUrl: does not start with http:// or https://; an absolute http or https URL is allowed",
        b"b\0b,5,": "username: contains U+0000, a control character; none is allowed in a username",
        b"b\xe9b,5,": "username: not UTF-8: byte 0xE9",
        b"\xed\xa0\x80,5,": "username: not UTF-8: byte 0xED",
        b"bob,5\xff,": "score: not UTF-8: byte 0xFF",
        b"bob,5,http://x/\xff": "imageUrl: not UTF-8: byte 0xFF",
        b'"bob"x,5,': "not valid CSV: ',' expected after '\"'",
        b"x" * 200_000 + b",5,": "not valid CSV: field larger than field limit (131072)",
        b"x," * 1_000_000: "not valid CSV: more than 1048576 characters",
        b'"x",' * 5_000_000: "not valid CSV: more than 1048576 characters",
    }.items(),
    ids=lambda text: repr(text)[:40],
)  # fmt: skip
def test_a_bad_row_costs_itself_alone(line: bytes, reason: str) -> None:
    rows = read(HEADER + b"amy,1,\n" + line + b"\nzoe,2,\n")
    assert brief(rows) == [(2, "amy", 1, None), (3, reason), (4, "zoe", 2, None)]


def test_a_rejected_row_keeps_its_cells() -> None:
    assert read(b"score,imageUrl,username\nx,y,\n1,2\n") == [
        Rejected(2, read_reason("", "x", "y"), "", "x", "y"),
        Rejected(3, "has 2 fields, the header has 3", "", "1", "2"),
    ]


def read_reason(*cells: str) -> str:
    return importing._reason(*cells)


def test_a_quote_left_open_is_reported_with_the_lines_it_swallowed() -> None:
    rows = read(HEADER + b'"bob,1,\n' + b"amy,1,\n" * 3)
    assert brief(rows) == [(2, "not valid CSV up to line 5: unexpected end of data")]

    rows = read(HEADER + b'"bob,1,\n' + b"amy,1,\n" * 100_000)
    reported = rows[0]
    assert isinstance(reported, Rejected)
    assert reported.reason == "not valid CSV up to line 18726: field larger than field limit (131072)"
    assert rows[1] == (18727, "amy", 1, None)
    assert rows[-1] == (100_002, "amy", 1, None)


@pytest.mark.parametrize(
    ("data", "message"),
    {
        b"": "line 1 is empty",
        b"\n" + HEADER: "line 1 is empty",
        b"\xef\xbb\xbf": "line 1 is empty",
        b"bob,5\n": "line 1 has no column username: 'bob,5'",
        b"username\n": "line 1 has no column score",
        b"Username,score\n": "line 1 has no column username",
        b"username;score;imageUrl\n": "line 1 has no column username: 'username;score;imageUrl'",
        b"username,score,imageURL\n": "line 1 has an unknown column 'imageURL'",
        b"username,score,score\n": "line 1 names a column twice",
        b'"username,score\nbob,5\n': "line 1 is not valid CSV",
        b"username,score,\xff\n": "line 1 is not UTF-8: byte 0xFF",
        "username,score\n".encode("utf-16"): "line 1 is not UTF-8: byte 0xFF",
        b"\0" * 100: "line 1 has no column username",
        b"x" * 3_000_000: "line 1 is not valid CSV",
    }.items(),
    ids=lambda text: repr(text)[:40],
)
def test_a_file_without_a_good_header_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UnusableFile) as refusal:
        read(data)
    assert str(refusal.value).startswith(message)


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=12), st.integers(-(2**31), 2**31 - 1))),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_csv_writes_is_read_on_the_right_lines(users: list[tuple[str, int]], newline: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=newline, quoting=csv.QUOTE_NONNUMERIC)
    starts = []
    for cells in ("username", "score"), *users:
        starts.append(len(io.StringIO(file.getvalue() + "x", newline="").readlines()))
        writer.writerow(cells)
    rows = read(file.getvalue().encode())
    assert [row.line if isinstance(row, Rejected) else row[0] for row in rows] == starts[1:]
    for row, (name, score) in zip(rows, users, strict=True):
        if isinstance(row, Rejected):
            assert (row.user_name, row.score) == (name, str(score))
        else:
            assert row[2] == score


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    for row in read(HEADER + data):
        assert isinstance(row, Rejected) or row[0] >= 2


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.write(HEADER + b"bob,5,\n" * 20_000)
        # One field, one line and one row that never end.
        file.write(b'"' + (b"x" * 80 + b"\n") * 20_000 + b'"\n' + b"x," * 4_000_000 + b"\n" + b'"x\n",' * 300_000)
    tracemalloc.start()
    try:
        with importing._opened(str(path)) as source:
            good = sum(not isinstance(row, Rejected) for row in CsvUsers(source.text))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert good == 20_000
    assert peak < 16 * 2**20


# Files


def rows_of(path: Path) -> list[Row | Rejected]:
    with importing._opened(str(path)) as source:
        return list(CsvUsers(source.text))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv", "a"])
def test_gzip_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(HEADER + b"bob,5,\n") + gzip.compress(b"amy,6,\n"))
    assert rows_of(path) == [(2, "bob", 5, None), (3, "amy", 6, None)]
    path.write_bytes(HEADER + b"bob,5,\n")
    assert rows_of(path) == [(2, "bob", 5, None)]


def test_a_gzip_cut_short_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    whole = gzip.compress(HEADER + os.urandom(100_000).hex(" ", 3).replace(" ", ",5,\n").encode())
    for cut in (10, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnusableFile, match="cut short"):
            rows_of(path)
    for damage in (len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:damage] + bytes([whole[damage] ^ 0xFF]) + whole[damage + 1 :])
        with pytest.raises(UnusableFile, match="damaged"):
            rows_of(path)
    path.write_bytes(whole + b"rubbish")
    with pytest.raises(UnusableFile, match="damaged"):
        rows_of(path)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match=r"cannot read .*/none.csv: No such file or directory"):
        rows_of(tmp_path / "none.csv")
    with pytest.raises(UnusableFile, match="Is a directory"):
        rows_of(tmp_path)


def test_standard_input_is_read_from_a_pipe_and_from_a_file(tmp_path: Path) -> None:
    program = (
        "from leaderboard import importing\n"
        "with importing._opened('-') as s: print(list(importing.CsvUsers(s.text)), s.size, s.position())"
    )
    data = HEADER + b"bob,5,\n"
    for content in (data, gzip.compress(data)):
        run = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True)
        assert run.stdout == b"[(2, 'bob', 5, None)] None 0\n"
        (tmp_path / "in").write_bytes(content)
        with (tmp_path / "in").open("rb") as file:
            run = subprocess.run([sys.executable, "-c", program], stdin=file, capture_output=True, check=True)
        assert run.stdout == f"[(2, 'bob', 5, None)] {len(content)} {len(content)}\n".encode()


def test_rejected_rows_are_written_as_they_came(tmp_path: Path) -> None:
    told: list[Rejected] = []
    row = Rejected(3, 'why, "really"', "b\udce9\nb", "5.0", "")
    path = tmp_path / "in.csv"
    with importing._RejectedFile(str(path), told.append) as rejects:
        assert rejects.report(0).rejected_path is None
        assert list(tmp_path.iterdir()) == []
        rejects.add(row)
    assert told == [row]
    assert rejects.report(1) == importing.ImportReport(
        1, rejected=1, rejected_path=tmp_path / "in.csv.rejected.csv"
    )
    written = (tmp_path / "in.csv.rejected.csv").read_bytes()
    assert written == b'line,reason,username,score,imageUrl\r\n3,"why, ""really""","b\xe9\nb",5.0,\r\n'
    assert [row.user_name for row in read(written) if isinstance(row, Rejected)] == ["b\udce9\nb"]


def test_rejected_rows_go_to_the_current_folder_when_the_file_s_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, expected in {"/proc/in.csv": "in.csv.rejected.csv", "-": "stdin.rejected.csv"}.items():
        with importing._RejectedFile(path, lambda _: None) as rejects:
            rejects.add(Rejected(2, "x"))
        assert rejects.report(1).rejected_path == Path(expected)
        assert (tmp_path / expected).exists()
    (tmp_path / "blocked.csv.rejected.csv").mkdir()
    with (
        importing._RejectedFile("/proc/blocked.csv", lambda _: None) as rejects,
        pytest.raises(UnusableFile, match=r"cannot write rejected rows to blocked\.csv\.rejected\.csv: it is not"),
    ):
        rejects.add(Rejected(2, "x"))


def _plant(kind: str, place: Path, precious: Path) -> None:
    match kind:
        case "symlink":
            place.symlink_to(precious)
        case "dangling symlink":
            place.symlink_to(precious.with_name("made"))
        case "symlink to a folder":
            place.symlink_to(precious.parent)
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "hard link":
            place.hardlink_to(precious)
        case _:
            place.write_text("older")
            place.chmod(0o666)


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "symlink to a folder", "pipe", "folder"])
def test_rejected_rows_are_written_to_nothing_that_was_there_but_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Anybody may have put it there, if the folder is /tmp."""
    current, precious = tmp_path / "current", tmp_path / "elsewhere" / "precious"
    for path in (current, precious.parent):
        path.mkdir()
    precious.write_text("precious")
    monkeypatch.chdir(current)
    beside = tmp_path / "in.csv.rejected.csv"
    _plant(kind, beside, precious)
    mode = beside.lstat().st_mode
    with importing._RejectedFile(str(tmp_path / "in.csv"), lambda _: None) as rejects:
        rejects.add(Rejected(2, "x"))
    assert rejects.report(1).rejected_path == Path("in.csv.rejected.csv")
    assert (current / "in.csv.rejected.csv").read_text().endswith("2,x,,,\n")
    assert beside.lstat().st_mode == mode

    (current / "in.csv.rejected.csv").unlink()
    _plant(kind, current / "in.csv.rejected.csv", precious)
    why = "a symbolic link" if "symlink" in kind else "not a regular file"
    with (
        importing._RejectedFile(str(tmp_path / "in.csv"), lambda _: None) as rejects,
        pytest.raises(UnusableFile, match=rf"cannot write rejected rows to in\.csv\.rejected\.csv: it is {why}"),
    ):
        rejects.add(Rejected(2, "x"))
    assert [path.name for path in precious.parent.iterdir()] == ["precious"]
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("kind", ["hard link", "older file"])
def test_rejected_rows_replace_an_older_file_and_are_for_their_owner(tmp_path: Path, kind: str) -> None:
    """Its other names keep what it was, and so does who has it open."""
    precious, place = tmp_path / "precious", tmp_path / "in.csv.rejected.csv"
    precious.write_text("precious")
    _plant(kind, place, precious)
    with place.open() as older, importing._RejectedFile(str(tmp_path / "in.csv"), lambda _: None) as rejects:
        rejects.add(Rejected(2, "x"))
        assert older.read() == ("precious" if kind == "hard link" else "older")
    assert place.read_text().endswith("2,x,,,\n")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert precious.read_text() == "precious"


def test_the_example_board_is_clean() -> None:
    rows = rows_of(Path(importing.__file__).with_name("example.csv"))
    good = [row for row in rows if isinstance(row, tuple)]
    assert len(good) == len(rows) == len({row[1] for row in good}) == 1000
    assert good == sorted(good, key=lambda row: (-row[2], row[1]))
    assert [row[1:3] for row in good[:1]] == [("debug", 2069940879)]
