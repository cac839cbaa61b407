"""How a call names a user: by its number, or by the caller's own id."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class ExternalId:
    """A user's id in the caller's own system."""

    value: str


UserRef = int | ExternalId
"""A user: the number that the service gave it, or the caller's own id."""


def in_path(user: UserRef) -> str:
    """Returns the user as a segment of a path. Raises TypeError."""
    if isinstance(user, ExternalId):
        return f"@{quote(user.value, safe='')}"
    return str(_number(user))


def in_body(user: UserRef) -> Mapping[str, int | str]:
    """Returns the member of a JSON object that names the user. Raises TypeError."""
    if isinstance(user, ExternalId):
        return {"externalId": user.value}
    return {"userId": _number(user)}


def in_list(user: UserRef) -> str:
    """Returns the user as a part of a list in a query string, where a comma of an external id is doubled."""
    if isinstance(user, ExternalId):
        return f"@{user.value.replace(',', ',,')}"
    return str(_number(user))


def _number(user: object) -> int:
    # A name in place of a number would otherwise be part of the path.
    if isinstance(user, int) and not isinstance(user, bool):
        return int(user)
    raise TypeError(f"a user is {user!r}, must be an int or an ExternalId")
