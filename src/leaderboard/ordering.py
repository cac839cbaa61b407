"""The order of a board: score descending, then user id ascending.

A *place* is a position in that order as one number, ascending from the best. Python, PostgreSQL (`place` in the
migrations) and the rank index use the same number. Redis has the order in another form: `cache/format.py`.
"""

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1


def place(total_score: int, user_id: int) -> int:
    """Return the place of a user. As `place` in SQL.

    The complement of the score negates it without overflow; the id is in the low 32 bits.
    """
    return (~total_score << _ID_BITS) | user_id


def score_and_id(place: int) -> tuple[int, int]:
    """Return the score and the user id of a place. As `score_of` and `user_id_of` in SQL."""
    return ~(place >> _ID_BITS), place & _ID_MASK
