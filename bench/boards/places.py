"""Which users are on which board, and how requests are spread over boards."""

import random
from collections.abc import Sequence


def board_name(number: int) -> str:
    """Returns the name of a board. Numbers count from 1."""
    return f"board-{number}"


def board_path(number: int) -> str:
    """Returns the beginning of the paths of the calls about a board."""
    return f"/boards/{board_name(number)}"


def user_id(board: int, entry: int, entries: int, users: int) -> int:
    """Returns the user of an entry, which counts from 0. The same as in the statement `add_entries`.

    The users of one board are far apart, because those of a real one are not neighbours in the table either.
    """
    return 1 + (board + entry * (users // entries)) % users


def user_ids(board: int, entries: int, users: int) -> list[int]:
    """Returns the users of a board."""
    return [user_id(board, entry, entries, users) for entry in range(entries)]


def places(
    boards: int, entries: int, users: int, *, zipf: bool, seed: int, count: int
) -> Sequence[tuple[int, int]]:
    """Returns `count` boards with users on them, at random, as often as a request is about them.

    By Zipf's law the second board gets half as many as the first, the third a third. Otherwise all get as many.
    """
    chosen = random.Random(seed)
    numbers = range(1, boards + 1)
    weights = [1 / number for number in numbers] if zipf else None
    return [
        (board, user_id(board, chosen.randrange(entries), entries, users))
        for board in chosen.choices(numbers, weights, k=count)
    ]


def lines(found: Sequence[tuple[int, int]]) -> str:
    """Returns the places as work.lua reads them."""
    return "".join(f"{board_path(board)} {user}\n" for board, user in found)
