"""Paging: the pages are the board, in order and without duplicates; invalid query strings are refused.

A cursor is the place (score, id) of the last user shown, not an offset: concurrent writes change ranks, but not
the place where the next page begins.
"""

import random
import re
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from struct import pack
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.http.paging import MAX_PAGE_SIZE
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN
from tests.http.board import Row, flat, true_board
from tests.http.contract import Answer, Caller, exchange
from tests.http.corpus import BAD_NAMES, BAD_NUMBERS, STRANGE_NAMES
from tests.http.ledger import Ledger, refused, short
from tests.system import eventually, sql

Asking = dict[str, Any]

SCORES = [
    SCORE_MAX,
    SCORE_MAX,
    SCORE_MAX - 1,
    7,
    *[5] * 9,
    1,
    0,
    0,
    -1,
    *[-5] * 4,
    SCORE_MIN + 1,
    SCORE_MIN,
    SCORE_MIN,
]
"""Ties longer than a page, and the extremes."""


@pytest.fixture
def board(module_settings: Settings) -> list[Row]:
    """A board of SCORES, with the greatest and the smallest id, but for them in no order that ids would tell."""
    scores = SCORES[:]
    random.Random(1).shuffle(scores)
    ids = [INT32_MAX, *range(1, len(SCORES))]
    sql(module_settings, "DELETE FROM users")
    sql(module_settings, "SELECT setval('users_user_id_seq', 1000)")
    sql(
        module_settings,
        "INSERT INTO users (user_id, user_name, total_score)"
        " SELECT id, 'user ' || id, score FROM unnest($1::integer[], $2::bigint[]) AS u (id, score)",
        ids,
        scores,
    )
    return true_board(module_settings)


def page(caller: Caller, **asking: object) -> tuple[list[Row], int, str | None]:
    """Returns the standings, the total and the cursor of a page."""
    answer = caller.get("/leaderboard" + (f"?{urlencode(asking)}" if asking else ""))
    assert answer.status == 200, answer
    assert list(answer.json()) == ["users", "total", "next"]
    assert "age" not in answer.headers
    users, total, cursor = answer.json().values()
    standings = [flat(user) for user in users]
    # Every page is in order, and its ranks have no gaps.
    assert [place(standing) for standing in standings] == sorted(map(place, standings))
    assert len({rank - n for n, (rank, *_) in enumerate(standings)}) <= 1
    return standings, total, cursor


def place(standing: Row) -> tuple[int, int]:
    """Returns the sort key of a standing."""
    return -standing[4], standing[1]


def pages(caller: Caller, **asking: object) -> Iterator[tuple[list[Row], int]]:
    """Yields page after page, from the given one to the last."""
    shown: set[object] = set()
    while True:
        standings, total, cursor = page(caller, **asking)
        yield standings, total
        if cursor is None:
            return
        assert cursor not in shown
        shown.add(cursor)
        asking.pop("around_rank", None)
        asking["after"] = cursor


# From the first page to the last


@pytest.mark.parametrize(
    "limit", [1, 2, 3, 4, 6, 7, 8, len(SCORES) - 1, len(SCORES), len(SCORES) + 1, MAX_PAGE_SIZE, None]
)
def test_the_pages_are_the_board(caller: Caller, board: list[Row], limit: int | None) -> None:
    found = list(pages(caller, **({} if limit is None else {"limit": limit})))
    assert [standing for standings, _ in found for standing in standings] == board
    assert {total for _, total in found} == {len(board)}
    size = limit or 100
    # No page is empty, also if the total is a multiple of the limit.
    assert [len(standings) for standings, _ in found] == [
        len(board[at : at + size]) for at in range(0, len(board), size)
    ]


@pytest.mark.usefixtures("board")
def test_a_page_has_100_users_by_default_and_1000_at_most(caller: Caller, module_settings: Settings) -> None:
    sql(
        module_settings,
        "INSERT INTO users (user_name, total_score) SELECT 'more ' || n, n % 7 FROM generate_series(1, 2500) AS n",
    )
    board = true_board(module_settings)
    assert page(caller)[0] == board[:100]
    for limit, count in ((None, 26), (999, 3), (MAX_PAGE_SIZE, 3)):
        found = list(pages(caller, **({} if limit is None else {"limit": limit})))
        assert [standing for standings, _ in found for standing in standings] == board
        assert len(found) == count
    for rank in (1, 1263, 2000, 2523, 9999):
        first = max(1, min(rank - 50, len(board) - 99))
        assert page(caller, around_rank=rank)[0] == board[first - 1 :][:100]


def test_a_cursor_can_be_used_again_with_another_limit(caller: Caller, board: list[Row]) -> None:
    _, _, cursor = page(caller, limit=5)
    for limit in (1, 3, 3, len(board), len(board) - 5):
        standings, total, following = page(caller, limit=limit, after=cursor)
        assert (standings, total) == (board[5 : 5 + limit], len(board))
        assert (following is None) == (5 + limit >= len(board))


# While others write


def change(settings: Settings, how: str, shown: list[Row]) -> None:
    """A change made after a page was shown."""
    last = shown[-1][1]
    match how:
        case "the last that was shown rises":
            sql(settings, "UPDATE users SET total_score = 2000000000 WHERE user_id = $1", last)
        case "the last that was shown falls":
            sql(settings, "UPDATE users SET total_score = -2000000000 WHERE user_id = $1", last)
        case "the last that was shown is deleted":
            sql(settings, "DELETE FROM users WHERE user_id = $1", last)
        case "all that were shown are deleted":
            sql(settings, "DELETE FROM users WHERE user_id = ANY ($1)", [standing[1] for standing in shown])
        case "all that were not shown are deleted":
            sql(settings, "DELETE FROM users WHERE user_id <> ALL ($1)", [standing[1] for standing in shown])
        case "others come in above":
            sql(
                settings,
                "INSERT INTO users (user_name, total_score)"
                " SELECT 'above ' || n, 2000000000 FROM generate_series(1, 30) AS n",
            )
        case "others come in behind":
            sql(
                settings,
                "INSERT INTO users (user_id, user_name, total_score) VALUES (1000000, 'behind', $1)",
                shown[-1][4],
            )
        case "the board is emptied":
            sql(settings, "TRUNCATE users CASCADE")


@pytest.mark.parametrize(
    "how",
    [
        "the last that was shown rises",
        "the last that was shown falls",
        "the last that was shown is deleted",
        "all that were shown are deleted",
        "all that were not shown are deleted",
        "others come in above",
        "others come in behind",
        "the board is emptied",
    ],
)
@pytest.mark.parametrize("limit", [1, 4, 10, 16])
@pytest.mark.usefixtures("board")
def test_the_next_page_begins_after_the_last_user_shown(
    caller: Caller, module_settings: Settings, how: str, limit: int
) -> None:
    shown, _, cursor = page(caller, limit=limit)
    change(module_settings, how, shown)
    now = true_board(module_settings)
    following = [standing for standing in now if place(standing) > place(shown[-1])]
    standings, total, further = page(caller, limit=limit, after=cursor)
    assert standings == following[:limit]
    assert total == len(now)
    assert (further is None) == (len(following) <= limit)


@pytest.mark.usefixtures("board")
def test_walking_the_pages_shows_each_unmoved_user_once_at_its_rank(
    caller: Caller, module_settings: Settings
) -> None:
    sql(
        module_settings,
        "INSERT INTO users (user_name, total_score)"
        " SELECT 'more ' || n, CASE WHEN n > 2000 THEN -6 ELSE n % 6 END FROM generate_series(1, 2200) AS n",
    )
    board = true_board(module_settings)
    movers = [user_id for _, user_id, _, _, score in board if score == -6]
    stay = {user_id: rank for rank, user_id, *_ in board if user_id not in movers}
    eventually(lambda: sql(module_settings, "SELECT FROM rank_index WHERE cardinality(keys) > 5"))
    risen = {"begun": 0, "done": 0}

    def rise() -> None:
        for user_id in movers:
            risen["begun"] += 1
            sql(module_settings, "UPDATE users SET total_score = 6 WHERE user_id = $1", user_id)
            risen["done"] += 1

    def check(standings: list[Row], at_least: int) -> list[int]:
        """The ids of those on the page who stay, all of them overtaken by the same number of movers or by none."""
        met = [standing for standing in standings if standing[1] in stay]
        overtaken = {rank - stay[user_id] for rank, user_id, *_, score in met if -6 < score < 6}
        assert len(overtaken) <= 1
        assert all(at_least <= number <= risen["begun"] for number in overtaken)
        assert all(rank == stay[user_id] for rank, user_id, *_, score in met if not -6 < score < 6)
        return [user_id for _, user_id, *_ in met]

    thread = threading.Thread(target=rise)
    thread.start()
    try:
        for limit in (29, 97, 500, MAX_PAGE_SIZE) * 100:
            met: list[int] = []
            walk = pages(caller, limit=limit)
            while True:
                at_least = risen["done"]
                found = next(walk, None)
                if found is None:
                    break
                assert found[1] == len(board)
                met += check(found[0], at_least)
            assert met == list(stay)
            for rank in range(1, len(board), 500):
                at_least = risen["done"]
                check(page(caller, limit=limit, around_rank=rank)[0], at_least)
            if not thread.is_alive():
                break
    finally:
        thread.join()
    assert risen["done"] == len(movers)


def test_a_page_shows_what_was_just_written(caller: Caller, board: list[Row]) -> None:
    for number in range(20):
        user_id = caller.create(f"new {number}", 6)
        standings, total, _ = page(caller, limit=30)
        assert user_id in [standing[1] for standing in standings]
        assert caller.post(f"/users/{user_id}/score", {"score": -6}).status == 200
        around, total_again, _ = page(caller, around_rank=total, limit=30)
        assert (user_id, f"new {number}", None, -6) in [standing[1:] for standing in around]
        assert total == total_again == len(board) + number + 1


# Around a rank


@pytest.mark.parametrize("limit", [1, 2, 5, 6, len(SCORES) - 1, len(SCORES), len(SCORES) + 1, MAX_PAGE_SIZE])
def test_a_page_around_a_rank_has_it_in_the_middle(caller: Caller, board: list[Row], limit: int) -> None:
    for rank in range(1, len(board) + 1):
        # At the ends of the board the page is full too.
        first = max(1, min(rank - limit // 2, len(board) - limit + 1))
        standings, total, _ = page(caller, around_rank=rank, limit=limit)
        assert (standings, total) == (board[first - 1 :][:limit], len(board))
        assert board[rank - 1] in standings


@pytest.mark.parametrize("rank", [len(SCORES) + 1, len(SCORES) + 500, INT32_MAX])
@pytest.mark.parametrize("limit", [1, 5, len(SCORES), MAX_PAGE_SIZE])
def test_around_a_rank_beyond_the_last_is_the_last_page(
    caller: Caller, board: list[Row], rank: int, limit: int
) -> None:
    assert page(caller, around_rank=rank, limit=limit) == (board[-limit:], len(board), None)


def test_the_page_around_a_rank_has_a_cursor(caller: Caller, board: list[Row]) -> None:
    found = [standing for standings, _ in pages(caller, around_rank=10, limit=5) for standing in standings]
    assert found == board[7:]


# Invalid query strings


def ask(caller: Caller, query: str) -> Answer:
    """Requests a page with exactly this query string. Fails unless HEAD is answered like GET."""
    answer = caller.get(f"/leaderboard?{query}")
    head = caller.send("HEAD", f"/leaderboard?{query}")
    assert (head.status, head.headers["content-type"]) == (answer.status, answer.headers["content-type"])
    return answer


LIMITS = f"limit is {{}}, must be an integer from 1 to {MAX_PAGE_SIZE}"
RANKS = f"around_rank is {{}}, must be an integer from 1 to {INT32_MAX}"
NAMES = "a parameter is {}, must be one of limit, after, around_rank, users"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        *(
            (f"limit={text}", LIMITS.format(repr(said)))
            for text, said in (
                *((number, number) for number in ("0", "1001", "-1", "05", "ten", "", "5.0", "1e2", str(2**31))),
                ("+5", " 5"),
                ("%2B5", "+5"),
                ("5%0A", "5\n"),
                ("5%00", "5\0"),
                ("5;after=x", "5;after=x"),
                ("%D9%A3", "٣"),
                ("\xd9\xa3", "٣"),
                ("%D9", "\ufffd"),
                ("%ED%A0%80", "\ufffd\ufffd\ufffd"),
                ("%", "%"),
                ("%5", "%5"),
                ("%u0035", "%u0035"),
                ("%2535", "%35"),
                ("9" * 60_000, "9" * 40 + "…"),
            )
        ),
        ("limit", LIMITS.format("''")),
        ("limit=5=", LIMITS.format("'5='")),
        *(
            (f"around_rank={text}", RANKS.format(repr(text)))
            for text in ("0", "-1", "05", "ten", "", str(INT32_MAX + 1), str(2**63), "1.5")
        ),
        ("limit=5&limit=5", "limit is '5', must be given once"),
        ("limit=5&lim%69t=6", "limit is '6', must be given once"),
        ("after=&after=", "after is '', must be given once"),
        ("around_rank=1&limit=2&around_rank=2", "around_rank is '2', must be given once"),
        ("after=AgAAAAAAAAAFAAAAAQ&around_rank=3", "around_rank is '3', must be given without `after`"),
        ("around_rank=3&after=", "around_rank is '3', must be given without `after`"),
        ("offset=5", NAMES.format("'offset'")),
        ("limit=5&Limit=5", NAMES.format("'Limit'")),
        ("limit%20=5", NAMES.format("'limit '")),
        ("limit[]=5", NAMES.format("'limit[]'")),
        ("aroundRank=5", NAMES.format("'aroundRank'")),
        ("=", NAMES.format("''")),
        ("=5", NAMES.format("''")),
        ("%FF=%FF", NAMES.format("'\ufffd'")),
        ("\xc3\xbf", NAMES.format("'ÿ'")),
        ("?limit=5", NAMES.format("'?limit'")),
        ("{}", NAMES.format("'{}'")),
        ("x" * 60_000, NAMES.format(f"'{'x' * 40}…'")),
        ("a=b&" * 15_000, NAMES.format("'a'")),
    ],
    ids=short,
)  # fmt: skip
def test_an_invalid_query_string_is_refused_with_what_is_allowed(caller: Caller, query: str, detail: str) -> None:
    answer = ask(caller, query)
    refused(answer, "invalid_parameter")
    assert answer.status == 422
    assert answer.json()["detail"] == detail


@pytest.mark.parametrize(
    "query",
    ["", "&", "&&limit=5&&", "limit=%35", "lim%69t=5", "around%5Frank=3", "limit=5&after=%41gAAAAAAAAAFAAAAAQ"],
)
def test_equivalent_query_strings(caller: Caller, query: str) -> None:
    assert ask(caller, query).status == 200


@pytest.mark.parametrize("name", ["limit", "around_rank", "after"])
def test_numbers_are_checked_as_in_paths(caller: Caller, name: str) -> None:
    for text in BAD_NUMBERS:
        # A valid rank.
        if (name, text) != ("around_rank", str(10**5)):
            refused(ask(caller, f"{name}={text}"), "invalid_parameter")


@pytest.mark.parametrize("text", [*BAD_NAMES, *STRANGE_NAMES], ids=short)
def test_other_texts_are_refused_as_parameters(caller: Caller, text: str) -> None:
    encoded = quote(text.encode("utf-8", "surrogatepass"), safe="")
    for query in (f"limit={encoded}", f"after={encoded}", f"around_rank={encoded}", f"{encoded}=1", f"{encoded}="):
        refused(ask(caller, query), "invalid_parameter")


def cursor(version: int, score: int, user_id: int, encode: Callable[[bytes], bytes] = urlsafe_b64encode) -> str:
    """Returns a cursor, by an implementation of its own."""
    return encode(pack(">Bqi", version, score, user_id)).decode().rstrip("=")


def test_a_cursor_is_the_place_of_the_last_user(caller: Caller, board: list[Row]) -> None:
    for limit in range(1, len(board)):
        last = board[limit - 1]
        assert page(caller, limit=limit)[2] == cursor(2, last[4], last[1])


@pytest.mark.parametrize("score", [SCORE_MIN, SCORE_MIN + 1, -(2**31) - 1, -1, 0, 5, 6, 2**31, SCORE_MAX])
@pytest.mark.parametrize("user_id", [1, 13, 1_000_000, INT32_MAX])
def test_a_cursor_need_not_be_the_place_of_a_user(
    caller: Caller, board: list[Row], score: int, user_id: int
) -> None:
    following = [standing for standing in board if place(standing) > (-score, user_id)]
    standings, total, further = page(caller, limit=4, after=cursor(2, score, user_id))
    assert (standings, total) == (following[:4], len(board))
    assert (further is None) == (len(following) <= 4)


GOOD = cursor(2, -5, 77)
ODD = cursor(2, -(2**40), 0x7FFFFFBF)
BAD_CURSORS = [
    "",
    "null",
    "None",
    "x",
    "0",
    "5,1",
    *(GOOD[:length] for length in range(1, len(GOOD))),
    GOOD + "A",
    GOOD + "AAAA",
    GOOD + "=",
    GOOD + "====",
    "=" + GOOD,
    GOOD[:-1] + "=",
    GOOD + GOOD,
    " " + GOOD,
    GOOD + "\n",
    GOOD[:6] + "\n" + GOOD[6:],
    GOOD[:6] + "." + GOOD[6:],
    GOOD[:6] + "*" + GOOD[7:],
    GOOD[:6] + "\0" + GOOD[7:],
    GOOD[:6] + "é" + GOOD[7:],
    GOOD + "é",
    GOOD[:6] + "\ud800" + GOOD[7:],
    GOOD.swapcase(),
    GOOD.lower(),
    GOOD[::-1],
    cursor(2, -(2**40), 0x7FFFFFBF, b64encode),
    ODD.replace("_", "/", 1),
    *(cursor(version, -5, 77) for version in (0, 1, 3, 127, 129, 255)),
    *(cursor(2, 5, user_id) for user_id in (0, -1, -(2**31))),
    *(cursor(2, score, 77) for score in (SCORE_MIN - 1, SCORE_MAX + 1, -(2**63), 2**63 - 1)),
    pack(">Bqi", 2, -5, 77).hex(),
    *(
        urlsafe_b64encode(pack(layout, version, -5, 77)).decode().rstrip("=")
        for layout in (">Bqq", ">Bii", "<Bqi")
        for version in (1, 2)
    ),
    "A" * 18,
    "_" * 18,
    "A" * 60_000,
]


@pytest.mark.parametrize("text", BAD_CURSORS, ids=short)
def test_an_invalid_cursor_is_refused(caller: Caller, text: str) -> None:
    encoded = quote(text.encode("utf-8", "surrogatepass"), safe="")
    answer = ask(caller, f"limit=2&after={encoded}")
    refused(answer, "invalid_parameter")
    assert answer.status == 422
    assert re.fullmatch(r"after is .{2,300}, must be the `next` of a page", answer.json()["detail"])


def test_the_cursors_that_the_invalid_ones_are_made_from_are_valid(caller: Caller) -> None:
    assert {"-", "_"} & set(ODD), "it has characters of the URL-safe alphabet"
    for text in (GOOD, ODD):
        assert ask(caller, f"after={text}").status == 200


# Random query strings

MANY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = ["limit", "after", "around_rank", GOOD, "5", "0"]
PIECES = [*WORDS, "=", "&", "%", "+", "-", "%C3", "%00", ";", "?", "/", "\xc3\xbf"]
BYTES = st.just(2) | st.integers(0, 255)
SCORES_OF_ANY_SIZE = st.integers(SCORE_MIN - 2, SCORE_MAX + 2) | st.integers(-(2**63), 2**63 - 1)
POSITIVE = st.integers(1, INT32_MAX)
QUERIES = st.lists(st.sampled_from(PIECES) | st.binary(max_size=9).map(quote), max_size=8).map("".join)


@MANY
@given(QUERIES)
def test_any_query_string(caller: Caller, query: str) -> None:
    answer = caller.get(f"/leaderboard?{query}")
    assert answer.code in {"", "invalid_parameter"}


@MANY
@given(st.binary(max_size=20))
def test_any_bytes_in_a_query_string(caller: Caller, noise: bytes) -> None:
    # The server refuses what is invalid in a request line, such as invalid UTF-8.
    line = b"GET /leaderboard?limit=5&after=" + noise
    answer = exchange(caller.api, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer is not None
    assert (answer.status, answer.body) == (400, b"") or answer.code in {"", "invalid_parameter"}


@pytest.mark.parametrize("noise", [b"\xff", b"\xd9", b"5\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_a_query_string_that_is_not_utf_8(caller: Caller, noise: bytes) -> None:
    for query in (b"limit=" + noise, noise + b"=5", noise):
        answer = exchange(caller.api, b"GET /leaderboard?" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer is not None
        assert (answer.status, answer.body) == (400, b"")


@MANY
@given(
    st.binary(min_size=13, max_size=13)
    | st.builds(pack, st.just(">Bqi"), BYTES, SCORES_OF_ANY_SIZE, POSITIVE)
    | st.binary(max_size=16)
)
def test_any_bytes_as_a_cursor(caller: Caller, content: bytes) -> None:
    answer = caller.get(f"/leaderboard?after={urlsafe_b64encode(content).decode().rstrip('=')}")
    good = len(content) == 13 and content[0] == 2 and 0 < int.from_bytes(content[9:]) < 2**31
    good = good and -(2**53) < int.from_bytes(content[1:9], signed=True) < 2**53
    assert answer.status == (200 if good else 422)


def test_there_was_no_server_error(ledger: Ledger) -> None:
    ledger.check_process()
