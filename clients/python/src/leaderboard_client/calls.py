"""The calls of the API as values: what to send, how to read the answer, whether to send it again.

There is no I/O here. A call without a board is about `default`, by the short paths where these can do it.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

import httpx

from leaderboard_client import errors, exact_json, model, users
from leaderboard_client.model import Number, SeasonRef
from leaderboard_client.users import ExternalId, UserRef

T = TypeVar("T")

MAX_ITEMS = 1000
"""Most scores of one request."""
MAX_ITEMS_BYTES = 128 * 1024
"""Most bytes of a request with many scores."""
_MAX_CHANGES_BYTES = MAX_ITEMS_BYTES - len('{"scores":[]}')

IdempotencyKey = str | Literal[False] | None
"""A key of the caller's; None makes a new one for each call, False sends none."""

Changes = (
    Mapping[int, Number]
    | Mapping[ExternalId, Number]
    | Mapping[UserRef, Number]
    | Iterable[tuple[UserRef, Number] | tuple[ExternalId, Number, str]]
)
"""Users with a number each, and perhaps with the name for a user who has to be created.

Three mappings, because the type of a mapping's keys is invariant.
"""

Change = Mapping[str, Any]
"""One of many changes, as it is sent."""

_JSON = "application/json"


class Unchanged:
    """The type of UNCHANGED."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()
"""What an argument has that is not given, where None is a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request, and what becomes of the answer.

    Attributes:
        path: percent-encoded, with the query string.
        read: makes the result of a successful response. Raises ValueError, TypeError or LookupError for a response
            of another form.
        body: JSON, None without a body.
        idempotency_key: the key of the call, None if it sends none.
        key_suffix: what the key of this request has more, if the call has several requests.
        repeatable: may be sent again when it is not known whether it was done.
        done_if: codes of errors that mean, for a repeated request, that an earlier one has done it.
        statuses: statuses with a result, besides 2xx.
        rest: returns the call for that part of a result that was refused for now, None if there is none.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: bytes | None = None
    idempotency_key: str | None = None
    key_suffix: str = ""
    repeatable: bool = True
    done_if: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    accept: str = _JSON
    rest: Callable[[T], "Call[T] | None"] = field(default=lambda _: None)

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.method != "GET"

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the request, without those that all requests have."""
        headers = {"Accept": self.accept}
        if self.body is not None:
            headers["Content-Type"] = _JSON
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key + self.key_suffix
        return headers


def _get(path: str, read: Callable[[httpx.Response], T], **query: str | int | None) -> Call[T]:
    return Call(method="GET", path=path + _query(query), read=read)


def _post_once(
    path: str, members: Mapping[str, Any], read: Callable[[httpx.Response], T], key: IdempotencyKey
) -> Call[T]:
    """Returns a call that the service does once for each key. Without a key it is not repeatable."""
    used = new_key(key)
    return Call(
        method="POST",
        path=path,
        read=read,
        body=exact_json.encode(members),
        idempotency_key=used,
        repeatable=used is not None,
    )


def new_key(key: IdempotencyKey) -> str | None:
    """Returns the idempotency key that a call sends."""
    if key is False:
        return None
    return str(uuid.uuid4()) if key is None else key


# One board


def top(board: str | None, n: int, season: SeasonRef | None) -> Call[model.Top]:
    """The best n users."""

    def read(response: httpx.Response) -> model.Top:
        return model.Top(model.standings(_members(response)["users"]), _age_s(response))

    return _get(f"{_below(board, long=season is not None)}/leaderboard/top/{n:d}", read, season=season)


def standing(board: str | None, user: UserRef, season: SeasonRef | None) -> Call[model.Standing]:
    """A user with its rank."""

    def read(response: httpx.Response) -> model.Standing:
        return model.standing(_members(response), _age_s(response))

    return _get(f"{_below(board, long=season is not None)}/users/{users.in_path(user)}", read, season=season)


def context(board: str | None, user: UserRef, season: SeasonRef | None) -> Call[model.Context]:
    """A user with its neighbours."""

    def read(response: httpx.Response) -> model.Context:
        return model.context(_members(response), _age_s(response))

    path = f"{_below(board, long=season is not None)}/leaderboard/user/{users.in_path(user)}/context"
    return _get(path, read, season=season)


def page(
    board: str | None,
    season: SeasonRef | None,
    *,
    limit: int | None = None,
    after: str | None = None,
    around_rank: int | None = None,
) -> Call[model.Page]:
    """A page of the board."""
    path = f"{_below(board, long=season is not None)}/leaderboard"
    return _get(path, _reads(model.page), limit=limit, after=after, around_rank=around_rank, season=season)


def standings_of(
    board: str | None, of: Iterable[UserRef], season: SeasonRef | None
) -> Call[tuple[model.Standing, ...]]:
    """The standings of some users."""

    def read(response: httpx.Response) -> tuple[model.Standing, ...]:
        found: list[model.Members] = _members(response)["users"]
        return model.standings(found)

    ids = ",".join(map(users.in_list, of))
    return _get(f"{_below(board, long=season is not None)}/leaderboard", read, users=ids, season=season)


def change_score(
    board: str | None, user: UserRef, change: Change, username: str | None, key: IdempotencyKey, *, rank: bool
) -> Call[model.ScoreChange]:
    """Sets a score, or adds to it. `username` is the name of the user if it has to be created."""
    below = _below(board, long=rank or "increment" in change)
    path = f"{below}/users/{users.in_path(user)}/score{'?rank=true' if rank else ''}"
    members = change if username is None else {**change, "username": username}
    return _post_once(path, members, _reads(model.score_change), key)


def change_scores(
    board: str | None, changes: Sequence[bytes], key: str | None, position: int = 0
) -> Call[list[model.ScoreResult]]:
    """Changes up to 1,000 entries. `changes` are encoded; each has a result, in order.

    `position` is that of this request among those with the same key, which have different changes.

    What was refused for now is sent again alone, with the same key: the service makes a key for each user from it.
    """

    def read(response: httpx.Response) -> list[model.ScoreResult]:
        results = [model.score_result(each) for each in _members(response)["results"]]
        if len(results) != len(changes):
            raise ValueError
        return results

    def rest(results: list[model.ScoreResult]) -> Call[list[model.ScoreResult]] | None:
        again = [at for at, result in enumerate(results) if _refused_for_now(result, key)]
        if not again:
            return None
        inner = change_scores(board, [changes[at] for at in again], key, position)

        def merged(found: list[model.ScoreResult]) -> list[model.ScoreResult]:
            all_results = results.copy()
            for at, result in zip(again, found, strict=True):
                all_results[at] = result
            return all_results

        return replace(inner, read=lambda response: merged(inner.read(response)), rest=rest)

    return Call(
        method="POST",
        path=f"{_board(board)}/scores",
        read=read,
        body=b'{"scores":[' + b",".join(changes) + b"]}",
        idempotency_key=key,
        key_suffix=f"-{position}",
        repeatable=key is not None,
        rest=rest,
    )


def _refused_for_now(result: model.ScoreResult, key: str | None) -> bool:
    if not isinstance(result, model.RefusedScore) or not errors.is_temporary(result.code):
        return False
    return key is not None or result.code not in errors.OUTCOME_UNKNOWN


def batches(member: Literal["score", "increment"], changes: Changes) -> Iterator[Sequence[bytes]]:
    """Yields the encoded changes of each request: up to 1,000, and each user once. The order stays."""
    batch: list[bytes] = []
    in_batch: set[UserRef] = set()
    size = 0
    pairs: Any = changes.items() if isinstance(changes, Mapping) else changes
    for user, number, *name in pairs:
        members = {**users.in_body(user), member: number, **({"username": name[0]} if name else {})}
        encoded = exact_json.encode(members)
        # With the comma.
        length = len(encoded) + 1
        if batch and (len(batch) >= MAX_ITEMS or size + length > _MAX_CHANGES_BYTES or user in in_batch):
            yield batch
            batch, size = [], 0
            in_batch.clear()
        batch.append(encoded)
        in_batch.add(user)
        size += length
    if batch:
        yield batch


def remove(board: str | None, user: UserRef) -> Call[None]:
    """Removes a user from the board.

    Not repeatable: between two requests the user may have got a new score, which the second would remove.
    """
    return Call(
        method="DELETE", path=f"{_board(board)}/users/{users.in_path(user)}", read=_nothing, repeatable=False
    )


# Boards and seasons


def board_info(board: str | None) -> Call[model.BoardInfo]:
    """A board with its rules."""
    return _get(_board(board), _reads(model.board_info))


def put_board(board: str | None, rules: model.Rules) -> Call[model.BoardInfo]:
    """Creates a board, or sets its rules. Repeatable: it sets all rules to the same values again."""
    return Call(
        method="PUT",
        path=_board(board),
        read=_reads(model.board_info),
        body=exact_json.encode(model.rules_to_send(rules)),
    )


def delete_board(board: str | None) -> Call[None]:
    """Deletes a board.

    Not repeatable: between two requests a board of that name may have been created, which the second would delete.
    """
    return Call(method="DELETE", path=_board(board), read=_nothing, repeatable=False)


def boards(after: str | None, limit: int) -> Call[tuple[Sequence[model.BoardInfo], str | None]]:
    """Boards by name, and the `after` of what follows."""
    return _get("/boards", _list("boards", model.board_info), after=after, limit=limit)


def end_season(board: str | None, number: int) -> Call[model.Season]:
    """Ends the season of that number. Repeatable: a season that has ended stays as it is."""
    return Call(
        method="POST",
        path=f"{_board(board)}/seasons",
        read=_reads(model.season),
        body=exact_json.encode({"season": number}),
    )


def seasons(board: str | None, before: int | None, limit: int) -> Call[tuple[Sequence[model.Season], int | None]]:
    """The seasons of a board, newest first, and the `before` of what follows."""
    return _get(f"{_board(board)}/seasons", _list("seasons", model.season), before=before, limit=limit)


# Users


def create_user(
    username: str, score: int, image_url: str | None, external_id: ExternalId | None, key: IdempotencyKey
) -> Call[model.User]:
    """Creates a user."""
    members: dict[str, str | int] = {"username": username, "score": score}
    if image_url is not None:
        members["imageUrl"] = image_url
    if external_id is not None:
        members |= users.in_body(external_id)
    return _post_once("/users", members, _reads(model.user), key)


def put_user(user: ExternalId, username: str, image_url: str | None) -> Call[model.User]:
    """Creates the user of an external id, or changes it. Repeatable: it sets the same values again."""
    return Call(
        method="PUT",
        path=f"/users/{users.in_path(user)}",
        read=_reads(model.user),
        body=exact_json.encode({"username": username, "imageUrl": image_url}),
    )


def find_user(username: str) -> Call[model.Account]:
    """The user of a name."""
    return _get("/users", _reads(model.account), username=username)


def find_users(prefix: str, after: str | None, limit: int) -> Call[tuple[Sequence[model.Account], str | None]]:
    """The users whose names begin with a text, and the `after` of what follows."""
    return _get("/users", _list("users", model.account), prefix=prefix, after=after, limit=limit)


def update_user(
    user: UserRef,
    username: str | Unchanged,
    image_url: str | Unchanged | None,
    hidden: bool | Unchanged,
    external_id: ExternalId | Unchanged,
) -> Call[model.Account]:
    """Changes a user. Repeatable: it sets the same values again."""
    given = {"username": username, "imageUrl": image_url, "hidden": hidden}
    members: dict[str, object] = {name: value for name, value in given.items() if not isinstance(value, Unchanged)}
    if not isinstance(external_id, Unchanged):
        members |= users.in_body(external_id)
    return Call(
        method="PATCH",
        path=f"/users/{users.in_path(user)}",
        read=_reads(model.account),
        body=exact_json.encode(members),
    )


def erase_user(user: UserRef) -> Call[None]:
    """Erases a user. Repeatable: numbers of users are not used again, so it meets the same user or none."""
    return Call(
        method="DELETE",
        path=f"/users/{users.in_path(user)}",
        read=_nothing,
        repeatable=isinstance(user, int),
        done_if=frozenset({"user_not_found"}),
    )


def user_boards(user: UserRef, after: str | None, limit: int) -> Call[tuple[Sequence[str], str | None]]:
    """The names of the boards that a user is on, and the `after` of what follows."""
    return _get(f"/users/{users.in_path(user)}/boards", _list("boards", str), after=after, limit=limit)


# The process


def status() -> Call[model.Status]:
    """The status of the process that answers."""
    return _get("/", _reads(model.status))


def ready() -> Call[model.Status]:
    """The status of the process; "unavailable" and "stopping" are results as well, not errors."""
    return replace(_get("/readyz", _reads(model.status)), statuses=frozenset({503}))


def alive() -> Call[None]:
    """Whether the process answers."""
    return _get("/livez", _nothing)


def metrics() -> Call[str]:
    """The metrics for Prometheus."""
    return replace(_get("/metrics", lambda response: response.text), accept="text/plain")


def openapi() -> Call[Mapping[str, Any]]:
    """The OpenAPI document."""
    return _get("/openapi.json", _members)


# Paths and answers


def _board(board: str | None) -> str:
    return f"/boards/{quote(board or 'default', safe='')}"


def _below(board: str | None, *, long: bool) -> str:
    """Returns what a path begins with. `long`: the short path of `default` cannot do it."""
    return "" if board is None and not long else _board(board)


def _query(parameters: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _members(response: httpx.Response) -> Any:
    members = exact_json.decode(response.content)
    if isinstance(members, dict):
        return members
    raise TypeError


def _reads(make: Callable[[model.Members], T]) -> Callable[[httpx.Response], T]:
    return lambda response: make(_members(response))


def _list(name: str, make: Callable[[Any], T]) -> Callable[[httpx.Response], tuple[Sequence[T], Any]]:
    def read(response: httpx.Response) -> tuple[Sequence[T], Any]:
        members = _members(response)
        return [make(each) for each in members[name]], members["next"]

    return read


def _nothing(_response: httpx.Response) -> None:
    return None


def _age_s(response: httpx.Response) -> int | None:
    age = response.headers.get("age")
    return None if age is None else int(age)
