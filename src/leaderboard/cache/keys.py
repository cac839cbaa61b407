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
SEASONS = "{leaderboard}:seasons"
"""Hash: name of a cached season → its entry. See `CachedSeason`."""
PENDING = "{leaderboard}:pending"
"""Hash: name of a season → a load of it that the next catching up admits. See `PendingLoad`."""
READS = "{leaderboard}:reads"
"""Hash: name of a season → how often it was read of late, and when that was noted."""
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
        "seasons": SEASONS,
        "pending": PENDING,
        "reads": READS,
        "lease": LEASE,
        "claim": CLAIM,
    }
)
"""The keys by the names that the scripts declare."""


def loading(nonce: str) -> dict[str, str]:
    """Return the keys into which the rebuild `nonce` loads, by the names that the scripts declare."""
    prefix = f"{{leaderboard}}:loading:{nonce}"
    return {"loading_scores": f"{prefix}:scores", "loading_metadata": f"{prefix}:metadata"}


def loading_season(load: str, name: str) -> dict[str, str]:
    """Return the keys of one load of a season, and the claim of that season.

    The keys carry the id of the load, which no other load has: what is written for one never reaches another.
    """
    prefix = f"{{leaderboard}}:load:{load}"
    return {
        "loading_scores": f"{prefix}:scores",
        "loading_metadata": f"{prefix}:metadata",
        "claim": f"{{leaderboard}}:claim:{name}",
    }
