"""Python and SQL have the same order of users."""

from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN
from leaderboard.ordering import place
from tests.system import sql

scores = st.sampled_from([SCORE_MIN, SCORE_MIN + 1, -1, 0, 1, SCORE_MAX]) | st.integers(SCORE_MIN, SCORE_MAX)
ids = st.sampled_from([1, 2, INT32_MAX - 1, INT32_MAX]) | st.integers(1, INT32_MAX)
users = st.lists(st.tuples(scores, ids), min_size=1, max_size=300)
"""Scores and ids, with many ties."""


@given(users)
def test_places_sort_as_the_board_does(board: list[tuple[int, int]]) -> None:
    by_place = sorted(board, key=lambda user: place(*user))
    assert by_place == sorted(board, key=lambda user: (-user[0], user[1]))


@settings(max_examples=10)
@given(board=users, asked=users)
def test_sql_has_the_same_order(
    module_settings: Settings, board: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    """`at_or_before` counts the positions that sort before a user or are its own, as places do."""
    board = sorted(set(board), key=lambda user: place(*user))
    rows = sql(
        module_settings,
        "SELECT at_or_before($1, $2, -score, id) AS n FROM unnest($3::bigint[], $4::integer[]) WITH ORDINALITY"
        " AS users (score, id, n) ORDER BY users.n",
        [-score for score, _ in board],
        [user_id for _, user_id in board],
        [score for score, _ in asked],
        [user_id for _, user_id in asked],
    )
    places = [place(*user) for user in board]
    assert [row["n"] for row in rows] == [bisect_right(places, place(*user)) for user in asked]


@pytest.mark.parametrize(("score", "user_id"), [(SCORE_MAX, 1), (SCORE_MIN, INT32_MAX), (2**62, 1), (-(2**62), 1)])
def test_every_position_is_between_the_first_and_the_last(
    module_settings: Settings, score: int, user_id: int
) -> None:
    (row,) = sql(
        module_settings,
        "SELECT at_or_before(ARRAY[first_key(), last_key()], ARRAY[0, 0], -$1::bigint, $2::integer) AS n",
        score,
        user_id,
    )
    assert row["n"] == 1
