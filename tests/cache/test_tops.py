"""Encoded tops take a bounded number of bytes. The least recently used top is dropped first."""

from hypothesis import given
from hypothesis import strategies as st

from leaderboard.cache.tops import EncodedTops
from leaderboard.model import EncodedTop

SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60), st.booleans()), max_size=60)


@given(SIZES)
def test_encoded_tops_never_take_more_than_their_limit(requests: list[tuple[int, int, bool]]) -> None:
    tops = EncodedTops(100)
    kept: dict[int, EncodedTop] = {}
    for n, size, changed in requests:
        if changed:
            tops.clear()
            kept.clear()
        top = tops.get(n)
        assert top == kept.pop(n, None)
        if top is None:
            top = EncodedTop(b"x" * size, b"")
            tops.put(n, top)
        kept[n] = top
        while sum(len(each.body) for each in kept.values()) > 100:
            del kept[next(iter(kept))]


def test_a_top_larger_than_the_limit_is_not_kept() -> None:
    tops = EncodedTops(100)
    tops.put(1, EncodedTop(b"x" * 100, b""))
    tops.put(2, EncodedTop(b"x" * 101, b""))
    assert tops.get(1) is not None
    assert tops.get(2) is None
