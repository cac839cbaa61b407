"""Makes users and boards over HTTP."""

from itertools import count

from tests.http.contract import Answer, Caller
from tests.http.ledger import refused, short

_numbers = count(1)


def new_user(caller: Caller, score: int = 0) -> int:
    """The id of a new user."""
    return caller.create(f"user {next(_numbers)}", score)


def new_board(caller: Caller, **rules: object) -> str:
    """The path of a new board with these rules."""
    path = f"/boards/board-{next(_numbers)}"
    assert caller.call("PUT", path, rules).status == 201
    return path


def refused_field(answer: Answer, *names: str) -> dict[str, str]:
    """What is said of the bad fields. Fails unless they are these."""
    refused(answer, "invalid_field", *names)
    return answer.fields


def named(value: object) -> str:
    """A short text for the name of a test; "" for a set, whose order is another one in each process."""
    return "" if isinstance(value, set) else short(value)
