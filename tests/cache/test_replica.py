"""A replica that applies the deltas of the cache gives the same results as a simple model."""

from hypothesis import given
from hypothesis import strategies as st

from leaderboard.cache.format import Delta
from leaderboard.cache.replica import Replica
from leaderboard.model import SCORE_MAX, SCORE_MIN, Context, EncodedTop, Top, User, ranked

ids = st.integers(1, 30)
scores = st.integers(-2, 2) | st.sampled_from([SCORE_MIN, SCORE_MIN + 1, SCORE_MAX - 1, SCORE_MAX])
external_ids = st.sampled_from([None, "x"])
rows = st.tuples(ids, st.sampled_from(["a", "b"]), st.none(), scores, external_ids)
users = st.builds(User, ids, st.sampled_from(["a", "b"]), st.none(), scores, external_ids)
deltas = st.builds(Delta, st.sampled_from([5, 12, 40]), st.lists(ids, max_size=4), st.lists(rows, max_size=6))


@given(
    st.lists(users, max_size=30, unique_by=lambda user: user.user_id), st.lists(deltas, max_size=8), st.booleans()
)
def test_a_replica_gives_the_results_of_the_model_after_any_deltas(
    first: list[User], applied: list[Delta], complete: bool
) -> None:
    replica = Replica(b"token", first)
    model = {user.user_id: user for user in first}
    for delta in applied:
        replica.top(3)
        replica.apply(delta)
        for user_id in delta.deleted:
            model.pop(user_id, None)
        model |= {row[0]: User(*row) for row in delta.changed}
        model = {user.user_id: user for user in in_order(model)[: delta.keep]}
    replica.set_state(b"token", 99, complete=complete)

    board = [ranked(rank, user) for rank, user in enumerate(in_order(model), 1)]
    assert replica.users() == in_order(model)
    for n in (1, 3, len(board), len(board) + 1):
        reaches = complete or n <= len(board)
        assert replica.top(n) == (EncodedTop.of(Top(board[:n])) if reaches else None)
    for user_id in range(1, 32):
        index = next((i for i, standing in enumerate(board) if standing.user_id == user_id), None)
        assert replica.standing(user_id) == (None if index is None else board[index])
        context = None
        if index is not None and (complete or index + 5 < len(board)):
            context = Context(board[index], board[max(0, index - 5) : index], board[index + 1 : index + 6], 99)
        assert replica.context(user_id) == context


def in_order(model: dict[int, User]) -> list[User]:
    return sorted(model.values(), key=lambda user: (-user.total_score, user.user_id))


def test_a_top_is_encoded_once_until_a_delta() -> None:
    replica = Replica(b"token", [User(1, "a", None, 1), User(2, "b", None, 2)])
    replica.set_state(b"token", 2, complete=True)
    top = replica.top(2)
    assert replica.top(2) is top
    replica.apply(Delta(10, [], [(1, "a", None, 3, None)]))
    changed = replica.top(2)
    assert changed is not None
    assert [standing.user_id for standing in changed.decode().users] == [1, 2]
