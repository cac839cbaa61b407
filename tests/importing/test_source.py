"""Opening the file that is imported: plain or gzipped, from a path or standard input."""

import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import leaderboard
from leaderboard.importing import CsvUsers, Options, Rejected, UnusableFile, open_source, understand
from tests.importing.rows import HEADER, SCORES, rows_of


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv", "a"])
def test_gzip_is_detected_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(HEADER + b"bob,5,\n") + gzip.compress(b"amy,6,\n"))
    assert rows_of(path) == [(2, "bob", 5, None), (3, "amy", 6, None)]
    path.write_bytes(HEADER + b"bob,5,\n")
    assert rows_of(path) == [(2, "bob", 5, None)]


def test_bytes_are_decoded_by_their_mark_or_as_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = "username,score\nJürgen €,5\n"
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(codec))
        assert rows_of(path) == [(2, "Jürgen €", 5, None)]
    path.write_bytes(b"\xfe\xff" + text.encode("utf-16-be"))
    assert rows_of(path) == rows_of(path, Options(encoding="UTF-16")) == [(2, "Jürgen €", 5, None)]
    for codec in ("windows-1252", "utf-16-le", "iso8859-15", "utf8"):
        path.write_bytes(text.encode(codec))
        assert rows_of(path, Options(encoding=codec)) == [(2, "Jürgen €", 5, None)]


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (b"PK\x03\x04...", None, "the file is a ZIP archive, as .xlsx and .ods files are; save it as CSV"),
        (b"PK\x03\x04...", "windows-1252", "the file is a ZIP archive"),
        (b"\xd0\xcf\x11\xe0...", None, "the file is an older Excel workbook"),
        ("\ufeffusername,score\n".encode(), "cp1252", "the file has the byte order mark of UTF-8, but --enc"),
        ("\ufeffusername,score\n".encode("utf-16-le"), "utf-8", "the file has the byte order mark of UTF-16, but"),
        ("\ufeffusername,score\na,\ud800\n".encode("utf-16-le", "surrogatepass"), None, "the file is not UTF-16"),
    ],
)  # fmt: skip
def test_what_is_no_text_in_the_encoding_is_refused(
    tmp_path: Path, data: bytes, encoding: str | None, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(UnusableFile) as error:
        rows_of(path, Options(encoding=encoding))
    assert str(error.value).startswith(message)


def test_utf_16_that_is_damaged_after_its_beginning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(("username,score\n" + "bob,5\n" * 20_000).encode("utf-16") + b"x")
    with pytest.raises(UnusableFile, match=r"not utf-16\S* after line 2\d{4}: truncated data"):
        rows_of(path)


def test_a_long_file_is_read_whole_after_its_beginning_was_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for codec in ("utf-8", "utf-16"):
        lines = (f"üser {number},{number}\r\n" for number in range(20_000))
        path.write_bytes(
            "username,score\r\n".encode(codec) + "".join(lines).encode(codec).removeprefix(b"\xff\xfe")
        )
        assert rows_of(path) == [(number + 2, f"üser {number}", number, None) for number in range(20_000)]


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
        "from leaderboard.importing import *\nfrom tests.importing.rows import SCORES\n"
        "with open_source('-') as s:\n"
        "    users = CsvUsers(s.text, understand(s.beginning, 'csv', Options()), SCORES)\n"
        "    print(list(users), s.size, s.position())"
    )
    data = HEADER + b"bob,5,\n"
    for content in (data, gzip.compress(data)):
        run = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True)
        assert run.stdout == b"[(2, 'bob', 5, None)] None 0\n"
        (tmp_path / "in").write_bytes(content)
        with (tmp_path / "in").open("rb") as file:
            run = subprocess.run([sys.executable, "-c", program], stdin=file, capture_output=True, check=True)
        assert run.stdout == f"[(2, 'bob', 5, None)] {len(content)} {len(content)}\n".encode()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.write(HEADER + b"bob,5,\n" * 20_000)
        # One endless field, one endless line and one endless row.
        file.write(b'"' + (b"x" * 80 + b"\n") * 20_000 + b'"\n' + b"x," * 4_000_000 + b"\n" + b'"x\n",' * 300_000)
    tracemalloc.start()
    try:
        with open_source(str(path)) as source:
            users = CsvUsers(source.text, understand(source.beginning, "csv", Options()), SCORES)
            good = sum(not isinstance(row, Rejected) for row in users)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert good == 20_000
    assert peak < 16 * 2**20


def test_the_example_board_is_clean() -> None:
    rows = rows_of(Path(leaderboard.__file__).with_name("example.csv"))
    good = [row for row in rows if isinstance(row, tuple)]
    assert len(good) == len(rows) == len({row[1] for row in good}) == 1000
    assert good == sorted(good, key=lambda row: (-row[2], row[1]))
    assert [row[1:3] for row in good[:1]] == [("debug", 2069940879)]
