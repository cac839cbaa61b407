"""Places sort as the board does."""

from hypothesis import given
from hypothesis import strategies as st

from leaderboard.model import INT32_MAX, SCORE_MAX, SCORE_MIN
from leaderboard.ordering import place

EDGES = [SCORE_MIN, SCORE_MIN + 1, -(2**31), -1, 0, 1, 2**31, SCORE_MAX - 1, SCORE_MAX]
scores = st.sampled_from(EDGES) | st.integers(SCORE_MIN, SCORE_MAX)
ids = st.sampled_from([1, 2, INT32_MAX - 1, INT32_MAX]) | st.integers(1, INT32_MAX)
users = st.lists(st.tuples(scores, ids), min_size=1, max_size=300)
"""Scores and ids, with many ties."""


@given(users)
def test_places_sort_as_the_board_does(board: list[tuple[int, int]]) -> None:
    by_place = sorted(board, key=lambda user: place(*user))
    assert by_place == sorted(board, key=lambda user: (-user[0], user[1]))
