"""Reading CSV: a bad row is rejected alone, with its line; a bad header stops the import."""
# ruff: noqa: RUF001 - the tests use digits that look like others

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.database.importer import Row
from leaderboard.importing import Options, Rejected, UnusableFile, rejection_reason
from tests.importing.rows import HEADER, SCORES, read


def brief(rows: list[Row | Rejected]) -> list[object]:
    """Return good rows as they are, and the line and reason of rejected ones."""
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
        b"\n \n" + HEADER + b"bob,5,\n": [(4, "bob", 5, None)],
        b"\xef\xbb\xbfsep=;\r\nusername;score\r\nbob;5\r\n": [(3, "bob", 5, None)],
        b"Rank;NAME ; Total Score;Avatar_URL;\n1;bob;5;https://x;\n": [(2, "bob", 5, "https://x")],
        b"player\tpoints\nbob\t5\n\t\n": [(2, "bob", 5, None)],
        b'"user\nname"|score\nbob|5\n': [(3, "bob", 5, None)],
        HEADER + b"bob,5,\n  \n,,\n , ,,,\namy,6,\n": [(2, "bob", 5, None), (6, "amy", 6, None)],
        b"username,score\n'=1+1,'-5\n'tis,5\n''@x,6\n": [
            (2, "=1+1", -5, None),
            (3, "'tis", 5, None),
            (4, "'@x", 6, None),
        ],
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
        "0": 0, "-0": 0, "007": 7, " 5 ": 5, "-5": -5, "2147483648": 2147483648,
        "9007199254740991": 2**53 - 1, "-9007199254740991": 1 - 2**53, "0009007199254740991": 2**53 - 1,
        "0" * 90 + "1": 1, "5.0": 5, "5.00": 5, "-12.0000": -12,
        "1e3": 1000, "1.5E+3": 1500, "12000e-3": 12, "0.000": 0,
        "9.007199254740991e15": 2**53 - 1,
    }.items(),
)  # fmt: skip
def test_good_scores(cell: str, score: int) -> None:
    assert read(f"username,score\nbob,{cell}\n".encode()) == [(2, "bob", score, None)]


@pytest.mark.parametrize(
    ("cell", "reason"),
    {
        "": "is missing", "  ": "is missing",
        "9007199254740992": "9007199254740992 is out of range",
        "-9007199254740992": "-9007199254740992 is out of range",
        "9007199254740993": "9007199254740993 is out of range",
        "9" * 99: "the number is out of range", "9" * 5000: "is not a number such as 1234",
        "1e999": "the number is out of range", "1e16": "1e16 is out of range", "5.5": "has 1 decimals",
        "1e-999": "has 999 decimals", "12.3456": "has 4 decimals", "0.001": "has 3 decimals",
    }.items(),
    ids=lambda text: text[:12],
)  # fmt: skip
def test_bad_scores(cell: str, reason: str) -> None:
    reason = f"score: {reason}; whole numbers from -9007199254740991 to 9007199254740991 are allowed"
    assert read(f"username,score\nbob,{cell}\n".encode()) == [Rejected(2, reason, "bob", cell)]


@pytest.mark.parametrize(
    "cell",
    [
        "+5",
        ".5",
        "5.",
        "1e",
        "1e1000",
        "1.2.3",
        "1,5",
        "12,34,567",
        "٣",
        "５",
        "²",
        "0x10",
        "1_000",
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
def test_a_score_is_a_number(cell: str) -> None:
    (row,) = read(f'username,score\nbob,"{cell}"\n'.encode())
    assert isinstance(row, Rejected)
    assert row.line == 2
    assert row.reason.startswith("score: is not a number such as 1234; ")


@pytest.mark.parametrize(
    ("line", "reason"),
    {
        b"bob": "has 1 fields, the header has 3",
        b"bob,5": "has 2 fields, the header has 3",
        b"bob,5,,": "has 4 fields, the header has 3; if all rows end with a separator, write one at the end of the"
        " header too",
        b"bob,5,,x": "has 4 fields, the header has 3",
        b"Smith, Bob,5,x": "has 4 fields, the header has 3",
        b"bob,,": "score: is missing; whole numbers from -9007199254740991 to 9007199254740991 are allowed",
        b",,x": "username: is empty; 1 to 128 characters are allowed; score: is missing; "
        "whole numbers from -9007199254740991 to 9007199254740991 are allowed; "
        "imageUrl: does not start with http:// or https://; an absolute http or https URL is allowed",
        b",0x,": "username: is empty; 1 to 128 characters are allowed; score: is not a number such as 1234; "
        "whole numbers from -9007199254740991 to 9007199254740991 are allowed",
        b"bob,x,ftp://x": "score: is not a number such as 1234; "
        "whole numbers from -9007199254740991 to 9007199254740991 are allowed; "
        "imageUrl: does not start with http:// or https://; an absolute http or https URL is allowed",
        b"b\0b,5,": "username: contains U+0000, a control character; none is allowed in a username",
        b"b\xe9b,5,": "username: not in the encoding of the file: byte 0xE9",
        b"\xed\xa0\x80,5,": "username: not in the encoding of the file: byte 0xED",
        b"bob,5\xff,": "score: not in the encoding of the file: byte 0xFF",
        b"bob,5,http://x/\xff": "imageUrl: not in the encoding of the file: byte 0xFF",
        b'"bob"x,5,': "not valid CSV: ',' expected after '\"'",
        b"x" * 200_000 + b",5,": "not valid CSV: field larger than field limit (131072)",
        b"x," * 1_000_000: "not valid CSV: more than 1048576 characters",
        b'"x",' * 5_000_000: "not valid CSV: more than 1048576 characters",
    }.items(),
    ids=lambda text: repr(text)[:40],
)  # fmt: skip
def test_a_bad_row_is_rejected_alone(line: bytes, reason: str) -> None:
    rows = read(HEADER + b"amy,1,\n" + line + b"\nzoe,2,\n")
    assert brief(rows) == [(2, "amy", 1, None), (3, reason), (4, "zoe", 2, None)]


def test_a_rejected_row_keeps_its_cells() -> None:
    assert read(b"score,imageUrl,username\nx,y,\n1,2\n") == [
        Rejected(2, rejection_reason(SCORES, "", "x", "y"), "", "x", "y"),
        Rejected(3, "has 2 fields, the header has 3", "", "1", "2"),
    ]


def test_an_open_quote_is_reported_with_the_lines_it_includes() -> None:
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
        b"": "the file is empty; its first line must name the columns username and score",
        b"\n \n": "the file is empty",
        b"\xef\xbb\xbf": "the file is empty",
        b"bob,5\n": "line 1: no column is known as username: give its name, as in --columns username=NAME; no"
        " column is known as score: give its name, as in --columns score=NAME. The columns are 'bob', '5'",
        b"username\n": "line 1: no column is known as score",
        b"\nSpieler;Punkte;Land\n": "line 2: no column is known as username",
        b"Name,Username,score\n": "line 1: 'Name', 'Username' may all be username: choose one, as in --columns"
        " username=Name. The columns are 'Name', 'Username', 'score'",
        b"username,score,score\n": "line 1: 2 columns may be score, and some have the same name",
        b"username,score,avatar,image\n": "line 1: 'avatar', 'image' may all be imageUrl",
        b"name,score,a;user;points\n": "line 1 can be separated by commas and semicolons; give --separator",
        b'"username,score\nbob,5\n': "line 1 is not valid CSV",
        b"\0"
        * 100: "line 1: it has NUL characters, as UTF-16 without a byte order mark has: give --encoding utf-16-le",
        "username,score\n".encode("utf-16-le"): "line 1: it has NUL characters",
        b"x" * 3_000_000: "line 1: no column is known as username",
        b"username,score," + b"x," * 100_000: "line 1 is longer than 64 KB",
        b"username,score," + b"x," * 1_000_000: "line 1 is not valid CSV: more than 1048576 characters",
        b'[{"username": "bob", "score": 5}]': "the file is a JSON array; write one object on each line",
        b'\n{"username": "bob", "score": 5}': "the file begins with a JSON object; if it has one on each"
        " line, give --format jsonl",
    }.items(),
    ids=lambda text: repr(text)[:40],
)
def test_a_file_without_a_good_header_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UnusableFile) as error:
        read(data)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    {
        b"username,score\nJ\xfcrgen,5\n": "line 2: the username is not UTF-8: byte 0xFC; give --encoding, such as"
        " windows-1252, or --encoding utf-8 to reject such rows alone",
        b"username,score\namy,1\nbob,5\x80\n": "line 3: the score is not UTF-8: byte 0x80",
        b"username,score,Gr\xf6\xdfe\nbob,5,1\n": "line 1 is not UTF-8: byte 0xF6",
    }.items(),
)
def test_a_file_that_is_not_utf8_is_refused_until_its_encoding_is_said(data: bytes, message: str) -> None:
    with pytest.raises(UnusableFile) as error:
        read(data, options=Options())
    assert str(error.value).startswith(message)


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=12), st.integers(1 - 2**53, 2**53 - 1))),
    st.sampled_from(["\n", "\r\n"]),
)
def test_rows_written_by_csv_are_read_with_their_lines(users: list[tuple[str, int]], newline: str) -> None:
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
