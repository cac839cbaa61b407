"""What JSON Schema cannot say of our bodies; Schemathesis takes whatever fits the document for acceptable.

A refusal of such a body stands only if it names exactly the fields that the rules refuse.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

from leaderboard.rules import clean_image_url, clean_username

_numbers = count()


def _refused(rule: Callable[[str], str], text: object) -> bool:
    try:
        return isinstance(text, str) and not rule(text)
    except ValueError:
        return True


def _unsayable(body: dict[str, Any]) -> set[str]:
    """The fields that fit the document, and may be refused all the same."""
    fields = {
        # To JSON Schema 5.0 is an integer; the contract has it that it is none.
        "score": isinstance(body.get("score"), float),
        # No pattern knows which characters Unicode has assigned, nor the length after normalisation.
        "username": _refused(clean_username, body.get("username")),
        # The pattern that says it all, ports and IPv6 too, is one that nobody can read.
        "imageUrl": _refused(clean_image_url, body.get("imageUrl")),
    }
    return {name for name, refused in fields.items() if refused}


@schemathesis.hook
def before_call(_context: object, case: Any, _kwargs: dict[str, Any]) -> None:
    """Have most good bodies be acceptable, and their names new: else hardly a user would be created."""
    number = next(_numbers)
    if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(case.body, dict):
        return
    if number % 4:
        acceptable = {"score": number, "username": f"user {number}", "imageUrl": None}
        new = {"username": f"{case.body['username'][:100]} {number}"} if "username" in case.body else {}
        case.body = case.body | new | {name: acceptable[name] for name in _unsayable(case.body)}


@schemathesis.hook
def filter_failure(_context: object, failure: Exception, case: Any, response: Any) -> bool:
    """Whether a failure is one."""
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 422:
        return True
    if response.json()["code"] == "idempotency_key_reused":
        # It makes up few keys, and many bodies.
        return "Idempotency-Key" not in case.headers
    named = {error["field"] for error in response.json().get("errors", ())}
    return not named or named != _unsayable(case.body)
