"""The names of the keys, and how a place on the board is spelled in them.

All names share one hash tag, so that they live in one slot of a Redis Cluster. A member of the sorted set is
the user's id padded with zeros and its score is the user's negated, so that Redis's own order, ascending by
score and then by bytes, is the board's: score descending, id ascending.
"""

SCORES = "{leaderboard}:scores"
METADATA = "{leaderboard}:users:metadata"
STATE = "{leaderboard}:state"
LEASE = "{leaderboard}:lease"
CLAIM = "{leaderboard}:claim"
MOVES = "{leaderboard}:moves"


def loading(nonce: str) -> tuple[str, str]:
    """Where the rebuild named `nonce` loads its scores and its metadata."""
    return f"{{leaderboard}}:loading:{nonce}:scores", f"{{leaderboard}}:loading:{nonce}:metadata"


def member(user_id: int) -> str:
    """The member of the sorted set, and field of the hash, that stands for a user."""
    return f"{user_id:010d}"
