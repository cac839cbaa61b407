"""JSON Lines: an object on each line; a bad one is rejected alone."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.board_rules import BoardRules
from leaderboard.config import Settings
from leaderboard.importing import ColumnOptions, Options, Rejected, UnusableFile
from leaderboard.number_formats import NumberOptions
from tests.importing.boards import UPDATE, board, counts, run
from tests.importing.rows import rows_of

BOB = b'{"username": "bob", "score": 5}\n'
WHOLE = "whole numbers from -9007199254740991 to 9007199254740991 are allowed"


@pytest.mark.parametrize("name", ["in.jsonl", "IN.NDJSON", "in.jsonl.gz", "in"])
def test_the_name_or_the_option_says_that_a_file_is_json_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(BOB) if name.endswith(".gz") else BOB)
    assert rows_of(path, Options(format=None if "." in name else "jsonl")) == [(1, "bob", 5, None)]
    with pytest.raises(UnusableFile, match="give --format jsonl"):
        rows_of(path, Options(format="csv"))


@pytest.mark.parametrize(
    ("line", "row"),
    {
        '{"username": " J\\u00fcrgen ", "score": -12.0, "imageUrl": "https://x"}': ("Jürgen", -12, "https://x"),
        '{"score": 1.5e3, "more": {"a": [1]}, "username": "=1", "imageUrl": null}': ("=1", 1500, None),
        '{"score": 1.000, "username": "\'=1"}': ("'=1", 1, None),
        '{"score": 9007199254740991, "username": "x"}': ("x", 2**53 - 1, None),
        '{"score": 9007199254740993.0, "username": "x"}': f"score: 9007199254740993.0 is out of range; {WHOLE}",
        '{"score": 5.5, "username": "x"}': f"score: has 1 decimals; {WHOLE}",
        '{"score": "5", "username": "x"}': "score: must be a number, not in quotes",
        '{"score": true, "username": "x"}': "score: must be a number, not in quotes",
        '{"score": null, "username": 7}': f"username: must be a string; score: is missing; {WHOLE}",
        '{"score": 1, "imageUrl": []}': "username: is missing; imageUrl: must be a string or null",
        '{"score": 1, "username": "\\ud800"}': "username: contains U+D800, half of a surrogate pair",
        '{"score": 1, "score": 2, "username": "x"}': "not a JSON object on one line: it has a key twice",
        '{"score": NaN, "username": "x"}': "not a JSON object on one line: NaN is not JSON",
        '["x", 1]': "not a JSON object on one line: it is not an object",
        "[" * 100_000: "not a JSON object on one line: it is nested too deep",
        '{"username": "x",': "not a JSON object on one line: Expecting property name enclosed in double quotes at"
        " character 18",
        '{"a": "' + "x" * 2**20 + '"}': "not a JSON object on one line: more than 1048576 characters",
    }.items(),
    ids=lambda text: str(text)[:60],
)
def test_lines(tmp_path: Path, line: str, row: tuple[str, int, str | None] | str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n" + BOB + line.encode() + b"\r\n\n" + b'{"username": "zoe", "score": 7}')
    first, second, third = rows_of(path)
    assert (first, third) == ((2, "bob", 5, None), (5, "zoe", 7, None))
    if isinstance(row, str):
        assert isinstance(second, Rejected)
        assert (second.line, second.reason[: len(row)]) == (3, row)
    else:
        assert second == (3, *row)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", Options(), "the file is empty"),
        (
            b'[{"username": "bob", "score": 5}]',
            Options(),
            "the file is a JSON array; write one object on each line",
        ),
        (b"\n{\n", Options(), "line 2 is not a JSON object on one line"),
        (b"username,score\n", Options(), "line 1 is not a JSON object on one line"),
        (b'{"id": 1}\n', Options(), "line 1: no column is known as username"),
        (
            BOB + '{"username": "Jürgen", "score": 5}'.encode("cp1252"),
            Options(),
            "line 2 is not UTF-8: byte 0xFC; give",
        ),
        (BOB, Options(separator=";"), "--separator, --decimal and --thousands are for CSV"),
        (BOB, Options(numbers=NumberOptions(",")), "--separator, --decimal and --thousands are for CSV"),
    ],
)
def test_a_file_that_is_refused(tmp_path: Path, data: bytes, options: Options, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    with pytest.raises(UnusableFile) as error:
        rows_of(path, options)
    assert str(error.value).startswith(message)


def test_an_encoding_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(BOB + '{"username": "Jürgen", "score": 5}'.encode("cp1252"))
    assert rows_of(path, Options(encoding="cp1252")) == [(1, "bob", 5, None), (2, "Jürgen", 5, None)]
    assert [isinstance(row, Rejected) for row in rows_of(path, Options(encoding="utf-8"))] == [False, True]


def test_keys_are_found_in_the_first_object(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"player": "bob", "points": 5}\n{"points": 6, "player": "amy", "imageUrl": "https://x"}\n')
    assert rows_of(path) == [(1, "bob", 5, None), (2, "amy", 6, "https://x")]
    path.write_text('{"a": "bob", "b": 5, "c": 6, "avatar": "x"}\n')
    options = Options(columns=ColumnOptions.parse("username=a,score=c,imageUrl="))
    assert rows_of(path, options) == [(1, "bob", 6, None)]


@given(st.integers(1 - 2**52, 2**52 - 1), st.integers(0, 6))
def test_scores_are_exact(tmp_path_factory: pytest.TempPathFactory, value: int, decimals: int) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.jsonl"
    sign, digits = "-" if value < 0 else "", str(abs(value)).rjust(decimals + 1, "0")
    at = len(digits) - decimals
    number = sign + digits[:at] + (f".{digits[at:]}" if decimals else "")
    path.write_text(f'{{"username": "x", "score": {number}}}\n')
    assert rows_of(path, rules=BoardRules(decimals=decimals)) == [(1, "x", value, None)]


@pytest.mark.anyio
async def test_rejected_objects_can_be_mended_and_imported(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    users = [
        {"username": "bob", "score": 5, "imageUrl": "https://x"},
        {"username": "=amy", "score": "6"},
        {"username": "zoe\ud800", "score": 1},
        {"username": "bob", "score": 7},
    ]
    path.write_text("".join(f"{json.dumps(user)}\n" for user in users))
    report = await run(settings, path)
    assert counts(report) == (4, 1, 0, 0, 3)
    assert report.rejected_path is not None
    text = report.rejected_path.read_text()
    header, *lines = text.splitlines()
    assert header == "line,reason,username,score,imageUrl,externalId"
    assert [line.split(",")[-4:-1] for line in lines] == [["'=amy", "6", ""], ["", "1", ""], ["bob", "7", ""]]
    report.rejected_path.write_text(text.replace(",,1,", ",zoe,1,"))
    assert counts(await run(settings, report.rejected_path, UPDATE)) == (3, 2, 1, 0, 0)
    assert board(settings) == {"bob": (7, None), "=amy": (6, None), "zoe": (1, None)}
