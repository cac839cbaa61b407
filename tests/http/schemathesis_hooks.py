"""Hooks for Schemathesis, which expects every request that matches the document to be accepted.

JSON Schema cannot express all rules. A refusal of such a body is right only if it names exactly the fields that
the rules refuse, and a refusal of such a query string only because of its cursor.
"""

from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import urlencode

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

from leaderboard.errors import InvalidParameter
from leaderboard.http.paging import page_query
from leaderboard.rules import clean_image_url, clean_username

_numbers = count()
_CURSOR = "AgAAAAAAAAAFAAAAAQ"


def _refused(rule: Callable[[str], str], text: object) -> bool:
    try:
        return isinstance(text, str) and not rule(text)
    except ValueError:
        return True


def _unsayable(body: dict[str, Any]) -> set[str]:
    """Returns the fields that match the document, but may be refused."""
    fields = {
        # A pattern cannot express assigned characters, nor the length after normalisation.
        "username": _refused(clean_username, body.get("username")),
        # A complete pattern, with ports and IPv6, would be unreadable.
        "imageUrl": _refused(clean_image_url, body.get("imageUrl")),
    }
    return {name for name, refused in fields.items() if refused}


def _no_place(query: dict[str, Any]) -> bool:
    """Returns True if there is an `after` that may be refused."""
    if "after" not in query:
        return False
    try:
        page_query(urlencode({"after": query["after"]}).encode())
    except InvalidParameter:
        # Only the `next` of a page is valid.
        return True
    # The schema of one parameter cannot mention another.
    return "around_rank" in query


@schemathesis.hook
def before_call(_context: object, case: Any, _kwargs: dict[str, Any]) -> None:
    """Makes most valid requests acceptable, with new names: otherwise hardly any would succeed."""
    number = next(_numbers)
    if case.meta is None or not case.meta.generation.mode.is_positive or number % 4 == 0:
        return
    if case.query and _no_place(case.query):
        case.query = {name: value for name, value in case.query.items() if name != "around_rank"}
        case.query["after"] = _CURSOR
    if isinstance(case.body, dict):
        acceptable = {"username": f"user {number}", "imageUrl": None}
        new = {"username": f"{case.body['username'][:100]} {number}"} if "username" in case.body else {}
        case.body = case.body | new | {name: acceptable[name] for name in _unsayable(case.body)}


@schemathesis.hook
def filter_failure(_context: object, failure: Exception, case: Any, response: Any) -> bool:
    """Returns False for a failure that is expected."""
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 422:
        return True
    if response.json()["code"] == "idempotency_key_reused":
        # It generates few keys and many bodies.
        return "Idempotency-Key" not in case.headers
    if case.query:
        return not _no_place(case.query)
    named = {error["field"] for error in response.json().get("errors", ())}
    return not named or named != _unsayable(case.body)
