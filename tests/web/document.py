"""The OpenAPI document that the pages show."""

from typing import Any

from leaderboard.credentials import KeyRing, parse_keys
from leaderboard.http import openapi
from leaderboard.http.access import Access
from leaderboard.http.routes import ROUTES

KEY = "a-key-of-more-than-16-characters"


def document(root_path: str = "") -> dict[str, Any]:
    """Returns the document of a process with a key."""
    access = Access(KeyRing(parse_keys(KEY)))
    return openapi.document(ROUTES, "1.2.3", access, settings={"max_top_n": 100}, root_path=root_path)
