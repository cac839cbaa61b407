"""The names of the keys, and how a place on the board is spelled in them.

All names share one hash tag, so that they live in one slot of a Redis Cluster. A member of the sorted set is
the user's id padded with zeros and its score is the user's negated, so that Redis's own order, ascending by
score and then by bytes, is the board's: score descending, id ascending.
"""

import re

from leaderboard.model import INT32_MAX, INT32_MIN

SCORES = "{leaderboard}:scores"
METADATA = "{leaderboard}:users:metadata"
STATE = "{leaderboard}:state"
LEASE = "{leaderboard}:lease"
CLAIM = "{leaderboard}:claim"
MOVES = "{leaderboard}:moves"


_MEMBER = re.compile(rb"[0-9]{10}")


def loading(nonce: str) -> tuple[str, str]:
    """Where the rebuild named `nonce` loads its scores and its metadata."""
    return f"{{leaderboard}}:loading:{nonce}:scores", f"{{leaderboard}}:loading:{nonce}:metadata"


def member(user_id: int) -> str:
    """The member of the sorted set, and field of the hash, that stands for a user."""
    return f"{user_id:010d}"


def user_id(member: bytes) -> int:
    """The user that a member stands for. Raises ValueError for what is no member of ours."""
    if _MEMBER.fullmatch(member) and 1 <= (found := int(member)) <= INT32_MAX:
        return found
    raise ValueError(f"the member {member!r} is no user id of ten digits")


def total_score(stored: bytes) -> int:
    """A user's score, of which the sorted set has the negative. Raises ValueError for what is no score of ours."""
    try:
        score = -int(stored)
    except ValueError:
        score = INT32_MAX + 1
    if not INT32_MIN <= score <= INT32_MAX:
        raise ValueError(f"{stored!r} is no score from {INT32_MIN} to {INT32_MAX}, negated")
    return score
