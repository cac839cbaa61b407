"""A process's copy of the cache is moved as the cache is: whatever the moves, its answers are the board's."""

from hypothesis import given
from hypothesis import strategies as st

from leaderboard.cache.replica import Copy, Move
from leaderboard.model import (
    INT32_MAX,
    INT32_MIN,
    Context,
    ContextQuery,
    EncodedTop,
    StandingQuery,
    Top,
    TopQuery,
    User,
    ranked,
)

ids = st.integers(1, 30)
scores = st.integers(-2, 2) | st.sampled_from([INT32_MIN, INT32_MAX])
users = st.builds(User, ids, st.sampled_from(["a", "b"]), st.none(), scores)
moves = st.builds(Move, st.sampled_from([5, 12, 40]), st.lists(ids, max_size=4), st.lists(users, max_size=6))


@given(
    st.lists(users, max_size=30, unique_by=lambda user: user.user_id), st.lists(moves, max_size=8), st.booleans()
)
def test_after_any_moves_it_answers_as_the_board_does(first: list[User], done: list[Move], everyone: bool) -> None:
    copy = Copy(b"token", first)
    model = {user.user_id: user for user in first}
    for move in done:
        copy.answer(TopQuery(3))
        copy.move(move)
        for user_id in move.gone:
            model.pop(user_id, None)
        model |= {user.user_id: user for user in move.changed}
        model = {user.user_id: user for user in in_order(model)[: move.keep]}
    copy.everyone, copy.total = everyone, 99

    board = [ranked(rank, user) for rank, user in enumerate(in_order(model), 1)]
    assert copy.users() == in_order(model)
    for n in (1, 3, len(board), len(board) + 1):
        whole = everyone or n <= len(board)
        assert copy.answer(TopQuery(n)) == (EncodedTop.of(Top(board[:n])) if whole else None)
    for user_id in range(1, 32):
        index = next((i for i, standing in enumerate(board) if standing.user_id == user_id), None)
        assert copy.answer(StandingQuery(user_id)) == (None if index is None else board[index])
        context = None
        if index is not None and (everyone or index + 5 < len(board)):
            context = Context(board[index], board[max(0, index - 5) : index], board[index + 1 : index + 6], 99)
        assert copy.answer(ContextQuery(user_id)) == context


def in_order(model: dict[int, User]) -> list[User]:
    return sorted(model.values(), key=lambda user: (-user.total_score, user.user_id))


def test_a_top_is_made_once_and_anew_after_a_move() -> None:
    copy = Copy(b"token", [User(1, "a", None, 1), User(2, "b", None, 2)])
    copy.everyone = True
    top = copy.answer(TopQuery(2))
    assert copy.answer(TopQuery(2)) is top
    copy.move(Move(10, [], [User(1, "a", None, 3)]))
    moved = copy.answer(TopQuery(2))
    assert isinstance(moved, EncodedTop)
    assert [standing.user_id for standing in moved.decode().users] == [1, 2]
