"""The operations by the API of a running service, with its client for Python.

Imported only with `--url`, because the client is a distribution of its own.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from httpx import InvalidURL
from prometheus_client.parser import text_string_to_metric_families

import leaderboard_client as client
from leaderboard.board_rules import Number
from leaderboard.cli.operations import CacheSummary, IndexSummary, Summary
from leaderboard.errors import InvalidInput, LeaderboardError
from leaderboard.http.board_answers import ChangedEntry, changed_entry
from leaderboard.http.status import Status
from leaderboard.model import Account, Context, EntrySet, Standing, Top, UserRef
from leaderboard.queries import SeasonRef
from leaderboard_client import AsyncLeaderboard, Retry

_RETRY = Retry(attempts=4, total_s=5, most_s=1)
"""Someone waits at the terminal."""
_BOARDS = 1000


class ServiceError(LeaderboardError):
    """The service refused a request, or cannot be reached."""


@asynccontextmanager
async def service_at(url: str, key: str | None) -> AsyncIterator["ServiceOperations"]:
    """Lend the operations of a service.

    The errors of its client become ours: InvalidInput and ServiceError.
    """
    try:
        service = AsyncLeaderboard(url, key=key, retry=_RETRY)
    except (ValueError, InvalidURL) as error:
        raise InvalidInput(f"--url, --key: {error}") from None
    async with service:
        with _our_errors():
            yield ServiceOperations(service, has_key=key is not None)


class ServiceOperations:
    """The operations of one command, by the API."""

    def __init__(self, service: AsyncLeaderboard, *, has_key: bool) -> None:
        self._service = service
        self._has_key = has_key

    async def top(self, n: int, board: str, season: SeasonRef | None) -> Top:
        """Return the best `n` users. Raises InvalidInput, BoardNotFound and SeasonNotFound."""
        number = None if season is None else season.number
        top = await self._service.board(board).top(n, season="previous" if number == 0 else number)
        return Top(list(map(_standing, top)))

    async def find(self, user_name: str) -> Account:
        """Return the user of a name. Raises UserNotFound."""
        return _account(await self._service.find_user(user_name))

    async def account(self, user: UserRef) -> Account:
        """Return a user. Raises UserNotFound, also for a hidden user, whom the API finds by name only."""
        try:
            found = await self._service.standing(_ref(user))
        except client.UserNotFound as error:
            hint = "a hidden user is found with --name, and a key with the scope admin"
            raise ServiceError(f"{error.detail}; {hint}") from None
        names = found.user_id, found.username, found.image_url
        # It is on `default`, as is every user who is not hidden.
        return Account(*names, int(found.score), hidden=False, external_id=found.external_id)

    async def context(self, user: UserRef, board: str) -> Context | None:
        """Return a user with its neighbours, None if it is not on the board. Raises BoardNotFound."""
        try:
            found = await self._service.board(board).context(_ref(user))
        except (client.UserNotFound, client.NotOnBoard):
            return None
        above, below = (list(map(_standing, users)) for users in (found.above, found.below))
        return Context(_standing(found.user), above, below, found.total)

    async def boards_of(self, user: UserRef) -> Sequence[str]:
        """Return the names of the boards that a user is on. Raises UserNotFound."""
        return [name async for name in self._service.user_boards(_ref(user))]

    async def change_score(self, user: UserRef, board: str, number: Number, *, adds: bool) -> ChangedEntry:
        """Set a score, or add to it. Raises InvalidInput for a number that the board does not take."""
        calls = self._service.board(board)
        change = calls.add_score if adds else calls.set_score
        done = await change(_ref(user), number, rank=True)
        names = done.user_id, done.username, done.image_url
        scores = done.score, done.previous_score
        return changed_entry(EntrySet(*names, *scores, done.improved, done.season, done.external_id), done.rank)

    async def set_hidden(self, user: UserRef, *, hidden: bool) -> Account:
        """Hide a user on all boards, or show it again. Raises UserNotFound."""
        return _account(await self._service.update_user(_ref(user), hidden=hidden))

    async def board_names(self) -> Sequence[str]:
        """Return the names of the first 1,000 boards."""
        names: list[str] = []
        async for board in self._service.boards():
            names.append(board.name)
            if len(names) == _BOARDS:
                break
        return names

    async def summary(self) -> Summary:
        """Return what the process says that answers. Without the scope admin it has no metrics."""
        # Here, too, so that a live view can show an error of ours and go on.
        with _our_errors():
            return await self._summary()

    async def _summary(self) -> Summary:
        ready = await self._service.ready()
        health = Status(ready.service, ready.version, ready.status, ready.postgres, ready.redis, ready.writes)
        try:
            metrics = _gauges(await self._service.metrics())
        except (client.Unauthorized, client.Forbidden) as error:
            if self._has_key and isinstance(error, client.Unauthorized):
                raise
            return Summary(source="service", health=health, notes=[f"no metrics: {error.detail}"])
        return Summary(
            source="service",
            health=health,
            cache=CacheSummary(
                int(metrics["leaderboard_cached_users"][""]), int(metrics["leaderboard_cached_seasons"][""])
            ),
            rank_index=IndexSummary(
                metrics["leaderboard_rank_index_up"][""] == 1, int(metrics["leaderboard_rank_index_pending"][""])
            ),
            in_flight=int(metrics["leaderboard_requests_in_flight"][""]),
            queues={queue: int(depth) for queue, depth in metrics["leaderboard_queue_waiting"].items()},
        )


def _gauges(text: str) -> Mapping[str, Mapping[str, float]]:
    """Return the values of the metrics that `summary` shows, by name and by queue, "" without one.

    Raises ServiceError for a text that lacks one.
    """
    names = ("cached_users", "cached_seasons", "rank_index_up", "rank_index_pending", "requests_in_flight")
    found: dict[str, dict[str, float]] = {"leaderboard_queue_waiting": {}}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[sample.labels.get("queue", "")] = sample.value
    except ValueError as error:
        raise ServiceError(f"the metrics of the service cannot be read: {error}") from None
    if missing := [name for name in names if f"leaderboard_{name}" not in found]:
        raise ServiceError(f"the metrics of the service lack {', '.join(missing)}; its version is another one")
    return found


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except client.InvalidField as error:
        fields = "; ".join(f"{field}: {message}" for field, message in error.fields.items())
        raise InvalidInput(fields or error.detail) from None
    except client.InvalidInput as error:
        raise InvalidInput(error.detail) from None
    except client.AccessDenied as error:
        raise ServiceError(f"{error.detail}; --key or LEADERBOARD_KEY is the key to send") from None
    except (client.NotFound, client.Conflict) as error:
        raise ServiceError(str(error) if isinstance(error, client.PathNotFound) else error.detail) from None
    except client.LeaderboardError as error:
        unknown = "; the change may have been done or not" if error.outcome_unknown else ""
        raise ServiceError(f"{error}{unknown}") from None


def _ref(user: UserRef) -> client.UserRef:
    return user if isinstance(user, int) else client.ExternalId(user)


def _standing(found: client.Standing) -> Standing:
    names = found.user_id, found.username, found.image_url
    return Standing(found.rank, *names, found.score, found.external_id)  # type: ignore[arg-type]  # as `standings_of`


def _account(found: client.Account) -> Account:
    names = found.user_id, found.username, found.image_url
    return Account(*names, found.score, found.hidden, found.external_id)
