"""Hooks for Schemathesis, which expects every request that matches the document to be accepted.

JSON Schema cannot express all rules. A refusal of such a body is right only if it names exactly the fields that
the rules refuse. A refusal of such a query string is right only if its parameters do not fit each other, or if one
is a cursor or a name that does not exist.
"""

import json
from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import urlencode

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

from leaderboard.errors import InvalidField, InvalidParameter
from leaderboard.http import board_bodies
from leaderboard.http.paging import page_query
from leaderboard.rules import check_external_id, clean_image_url, clean_prefix, clean_username

_numbers = count()
_CURSOR = "AgAAAAAAAAAFAAAAAQ"
_PARSERS: dict[str, Callable[[bytes], object]] = {
    # A time zone, a cron expression, two bounds that fit each other.
    "PUT /boards/{board}": board_bodies.board_rules,
    # A user that is there once.
    "POST /boards/{board}/scores": board_bodies.changes,
}
_CHANGE_ENTRY = "POST /boards/{board}/users/{id}/score"
_REMOVE_ENTRY = "DELETE /boards/{board}/users/{id}"
LEAVERS = range(101, 301)
"""The ids of users of the board `left`, each of which leaves it once."""
_leavers = iter(LEAVERS)


def _refused(rule: Callable[[str], str], text: object) -> bool:
    try:
        return isinstance(text, str) and not rule(text)
    except ValueError:
        return True


def _unsayable(label: str, body: dict[str, Any]) -> set[str]:
    """Returns the fields that match the document, but may be refused."""
    if label == _CHANGE_ENTRY:
        # By the rules of the board.
        return set(body)
    if label in _PARSERS:
        try:
            _PARSERS[label](json.dumps(body).encode())
        except InvalidField as error:
            return set(error.errors)
        return set()
    fields = {
        # A pattern cannot express assigned characters, nor the length after normalisation.
        "username": _refused(clean_username, body.get("username")),
        # A complete pattern, with ports and IPv6, would be unreadable.
        "imageUrl": _refused(clean_image_url, body.get("imageUrl")),
        # A pattern counts characters and not bytes.
        "externalId": _refused(check_external_id, body.get("externalId")),
    }
    return {name for name, refused in fields.items() if refused}


def _no_query(label: str, query: dict[str, Any]) -> bool:
    """Returns True for a query string that matches the document, but may be refused."""
    if label == "GET /users":
        # Exactly one of the two, and what belongs to it.
        if ("username" in query) == ("prefix" in query):
            return True
        if "username" in query:
            return bool({"after", "limit"} & set(query)) or _refused(clean_username, query["username"])
        try:
            clean_prefix(str(query["prefix"]))
        except ValueError:
            return True
        return "\0" in str(query.get("after", ""))
    if not label.endswith("/leaderboard"):
        return False
    # The schema of one parameter cannot mention another.
    if "users" in query and {"limit", "after", "around_rank"} & set(query):
        return True
    if "users" in query:
        # An external id may have more than 128 bytes.
        return any(_refused(check_external_id, user[1:]) for user in str(query["users"]).split(",") if user[1:])
    if "after" not in query:
        return False
    try:
        page_query(urlencode({"after": query["after"]}).encode())
    except InvalidParameter:
        # Only the `next` of a page is valid.
        return True
    return "around_rank" in query


@schemathesis.hook
def before_call(_context: object, case: Any, _kwargs: dict[str, Any]) -> None:
    """Makes most valid requests acceptable, with new names: otherwise hardly any would succeed."""
    number = next(_numbers)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    label = case.operation.label
    if label.endswith("/score") and not str(case.path_parameters["id"]).startswith("@"):
        # A name is for external ids.
        case.body = {name: value for name, value in case.body.items() if name != "username"}
    if number % 4 == 0:
        return
    if case.headers and "Idempotency-Key" in case.headers:
        # It generates few keys and many bodies.
        case.headers["Idempotency-Key"] = f"key-{number}"
    if label == "GET /users" and _no_query(label, case.query or {}):
        case.query = {"prefix": "user"} if number % 2 else {"username": "ada"}
    if case.query and _no_query(label, case.query):
        others = {name: value for name, value in case.query.items() if name not in {"around_rank", "users"}}
        case.query = others | ({"after": _CURSOR} if "after" in others else {})
    if label == _REMOVE_ENTRY:
        case.path_parameters = {"board": "left", "id": next(_leavers, 1)}
    if label == _CHANGE_ENTRY:
        # The first hundred users exist; few texts are external ids of users.
        case.path_parameters = {"board": "default", "id": number % 100 + 1}
        case.body = {"score": number}
    elif isinstance(case.body, dict):
        unsayable = _unsayable(label, case.body)
        acceptable = {"username": f"user {number}", "imageUrl": None, "externalId": f"id {number}"}
        new = {"username": f"{case.body['username'][:100]} {number}"} if "username" in case.body else {}
        if "externalId" in case.body:
            new["externalId"] = f"id {number}"
        case.body = case.body | new | {name: acceptable.get(name) for name in unsayable if "[" not in name}


@schemathesis.hook
def filter_failure(_context: object, failure: Exception, case: Any, response: Any) -> bool:
    """Returns False for a failure that is expected."""
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 422:
        return True
    if response.json()["code"] == "idempotency_key_reused":
        return "Idempotency-Key" not in case.headers
    label = case.operation.label
    named = {error["field"] for error in response.json().get("errors", ())}
    user = str(case.path_parameters.get("id", ""))
    if not named:
        return not (_no_query(label, case.query or {}) or (user and _refused(check_external_id, user[1:])))
    if named == {"username"} and label.endswith("/score"):
        # It is for external ids.
        return user.startswith("@")
    return named != _unsayable(label, case.body)
