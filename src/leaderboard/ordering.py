"""The order of a board: score descending, then user id ascending.

A *place* is a position in that order as one number, ascending from the best. Only the cache (its floor and
replicas) and the audits use it. It has up to 86 bits, too many for a bigint: the rank index stores scores and ids
in two arrays. Redis has the order in another form: `cache/format.py`.
"""

_ID_BITS = 32


def place(total_score: int, user_id: int) -> int:
    """Return the place of a user, for any score and any positive int32 as id.

    The complement of the score reverses its order; the id is in the low 32 bits.
    """
    return (~total_score << _ID_BITS) | user_id
