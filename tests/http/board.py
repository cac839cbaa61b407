"""Reads the board from the table, in the form of the API's responses."""

from typing import Any

from leaderboard.config import Settings
from tests.system import sql

USER = ["userId", "username", "imageUrl", "score"]
STANDING = ["rank", *USER]
Row = tuple[Any, ...]


def flat(standing: dict[str, Any]) -> Row:
    """Returns the values of a standing. Fails unless it has the documented keys in their order."""
    assert list(standing) == STANDING
    return tuple(standing.values())


def true_board(settings: Settings) -> list[Row]:
    """Returns every standing, best first."""
    rows = sql(
        settings,
        "SELECT row_number() OVER (ORDER BY total_score DESC, user_id), user_id, user_name, image_url, total_score"
        " FROM users ORDER BY 1",
    )
    return [tuple(row) for row in rows]
