"""Opening the file that is imported: plain or gzipped, from a path or standard input."""

import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import leaderboard
from leaderboard.importing import CsvUsers, Rejected, UnusableFile, open_source
from tests.importing.rows import HEADER, SCORES, rows_of


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv", "a"])
def test_gzip_is_detected_by_its_content(tmp_path: Path, name: str) -> None:
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
        "from leaderboard.importing import CsvUsers, open_source\nfrom tests.importing.rows import SCORES\n"
        "with open_source('-') as s: print(list(CsvUsers(s.text, SCORES)), s.size, s.position())"
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
            good = sum(not isinstance(row, Rejected) for row in CsvUsers(source.text, SCORES))
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
