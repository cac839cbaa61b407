"""A failed batch is split until its bad items are known."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.batching import isolate_failures

pytestmark = pytest.mark.anyio


class BadItem(Exception):
    """Raised for a batch that contains a bad item."""


async def isolated(items: Sequence[int], handle: Callable[[Sequence[int]], Awaitable[list[Any]]]) -> list[Any]:
    """Returns the result or the error of each item."""
    results: list[Any] = []
    for part, result in await isolate_failures(items, handle, (BadItem,)):
        results += [result] * len(part) if isinstance(result, Exception) else result
    return results


@given(st.integers(1, 60), st.frozensets(st.integers(0, 59), max_size=5))
async def test_bad_items_are_found_and_all_others_are_handled_once(size: int, bad: frozenset[int]) -> None:
    calls: list[list[int]] = []
    done: list[int] = []

    async def handle(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        if bad & set(items):
            raise BadItem
        done.extend(items)
        return [10 * item for item in items]

    results = await isolated(range(size), handle)
    found = {item for item, result in enumerate(results) if isinstance(result, BadItem)}
    assert found == {item for item in bad if item < size}
    assert [result for result in results if not isinstance(result, BadItem)] == [10 * item for item in done]
    assert done == [item for item in range(size) if item not in bad]
    assert len(calls) <= 1 + 2 * len(found) * size.bit_length()


async def test_an_error_that_no_item_can_cause_is_raised() -> None:
    calls = []

    async def handle(items: Sequence[int]) -> list[int]:
        calls.append(items)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await isolated(range(10), handle)
    assert len(calls) == 1


@pytest.mark.parametrize("failing", [0, 1])
async def test_the_results_of_one_half_are_kept_when_the_other_half_fails(failing: int) -> None:
    """One half may have been committed, so its callers must not get an error that says otherwise."""

    async def handle(items: Sequence[int]) -> list[str]:
        if len(items) > 1:
            raise BadItem
        if items[0] == failing:
            raise ConnectionError("lost")
        return [f"done {items[0]}"]

    results = await isolated([0, 1], handle)
    assert [str(result) for result in results] == [
        "lost" if item == failing else f"done {item}" for item in (0, 1)
    ]
