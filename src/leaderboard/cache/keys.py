"""The names of the keys. They share one hash tag, so that a Redis Cluster keeps them in one slot."""

from types import MappingProxyType

SCORES = "{leaderboard}:scores"
"""Sorted set: padded user id → negated score."""
METADATA = "{leaderboard}:users:metadata"
"""Hash: padded user id → name and image URL as JSON."""
STATE = "{leaderboard}:state"
"""Hash: token, epoch, snapshot, asof, floor, count, total, valid. See `CacheState`."""
DELTAS = "{leaderboard}:deltas"
"""List: what the last changes of the token did, for replicas."""
LEASE = "{leaderboard}:lease"
"""String: which process may catch up, with an expiry."""
CLAIM = "{leaderboard}:claim"
"""String: which process may rebuild, with an expiry."""

BY_NAME = MappingProxyType(
    {
        "scores": SCORES,
        "metadata": METADATA,
        "state": STATE,
        "deltas": DELTAS,
        "lease": LEASE,
        "claim": CLAIM,
    }
)
"""The keys by the names that the scripts declare."""


def loading(nonce: str) -> dict[str, str]:
    """Return the keys into which the rebuild `nonce` loads, by the names that the scripts declare."""
    prefix = f"{{leaderboard}}:loading:{nonce}"
    return {"loading_scores": f"{prefix}:scores", "loading_metadata": f"{prefix}:metadata"}
