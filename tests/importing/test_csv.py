"""Reading CSV: a bad row is rejected alone, with its line; a bad header stops the import."""
# ruff: noqa: RUF001 - the tests use digits that look like others

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.database.importer import Row
from leaderboard.importing import Rejected, UnusableFile, rejection_reason
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
        "0" * 90 + "1": 1,
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
        "9" * 99: "the number is out of range", "9" * 5000: "is not a number in plain digits",
    }.items(),
    ids=lambda text: text[:12],
)  # fmt: skip
def test_bad_scores(cell: str, reason: str) -> None:
    reason = f"score: {reason}; whole numbers from -9007199254740991 to 9007199254740991 are allowed"
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
        "whole numbers from -9007199254740991 to 9007199254740991 are allowed",
        b"bob,x,ftp://x": "score: is not a number in plain digits; "
        "whole numbers from -9007199254740991 to 9007199254740991 are allowed; "
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
    with pytest.raises(UnusableFile) as error:
        read(data)
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
