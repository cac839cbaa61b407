"""Python and SQL compute the same place for a user, and places sort as the board does."""

from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.config import Settings
from leaderboard.model import INT32_MAX, INT32_MIN
from leaderboard.ordering import place, score_and_id
from tests.system import sql

scores = st.sampled_from([INT32_MIN, INT32_MIN + 1, -1, 0, 1, INT32_MAX]) | st.integers(INT32_MIN, INT32_MAX)
ids = st.sampled_from([1, 2, INT32_MAX - 1, INT32_MAX]) | st.integers(1, INT32_MAX)
users = st.lists(st.tuples(scores, ids), min_size=1, max_size=300)
"""Scores and ids, with many ties."""


@given(users)
def test_places_sort_as_the_board_does(board: list[tuple[int, int]]) -> None:
    by_place = sorted(board, key=lambda user: place(*user))
    assert by_place == sorted(board, key=lambda user: (-user[0], user[1]))


@given(scores, ids)
def test_a_place_contains_its_score_and_id(total_score: int, user_id: int) -> None:
    assert score_and_id(place(total_score, user_id)) == (total_score, user_id)


@settings(max_examples=10)
@given(board=users)
def test_a_place_is_the_same_number_in_sql(module_settings: Settings, board: list[tuple[int, int]]) -> None:
    rows = sql(
        module_settings,
        "SELECT place, score_of(place) AS total_score, user_id_of(place) AS user_id"
        " FROM unnest($1::integer[], $2::integer[]) WITH ORDINALITY AS users (total_score, user_id, n),"
        " LATERAL place(total_score, user_id) AS place ORDER BY n",
        [total_score for total_score, _ in board],
        [user_id for _, user_id in board],
    )
    assert [row["place"] for row in rows] == [place(*user) for user in board]
    assert [(row["total_score"], row["user_id"]) for row in rows] == board
    assert [score_and_id(row["place"]) for row in rows] == board


def test_no_user_is_before_the_first_place_or_after_the_last(module_settings: Settings) -> None:
    (row,) = sql(module_settings, "SELECT first_place() AS first, last_place() AS last")
    assert row["first"] == place(INT32_MAX, 1)
    assert row["last"] > place(INT32_MIN, INT32_MAX)
