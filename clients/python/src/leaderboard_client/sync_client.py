"""The synchronous client. Made from `async_client.py` by `make client`; change that file."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self, TypeVar

import httpx

from leaderboard_client import calls, model
from leaderboard_client.calls import UNCHANGED, Call, Changes, IdempotencyKey, Unchanged
from leaderboard_client.model import Number, SeasonRef
from leaderboard_client.retries import Attempts, Retry
from leaderboard_client.service import Service
from leaderboard_client.users import ExternalId, UserRef

T = TypeVar("T")


class Sender:
    """Sends calls, and repeats those that failed for now."""

    def __init__(self, service: Service, http: httpx.Client, retry: Retry) -> None:
        self.url = service.url
        self._service = service
        self._http = http
        self._retry = retry

    def send(self, call: Call[T]) -> T:
        """Returns the result of a call. Raises LeaderboardError."""
        attempts = Attempts(call, self.url, self._retry)
        while True:
            request = self._http.build_request(
                attempts.call.method,
                self.url + attempts.call.path,
                content=attempts.call.body,
                headers=self._service.headers(attempts.call.headers),
            )
            try:
                response = self._http.send(request)
            except httpx.RequestError as error:
                pause = attempts.failed(error)
            else:
                answered = attempts.answered(response)
                if answered is None:
                    return attempts.result
                pause = answered
            time.sleep(pause)


class BoardCalls:
    """The calls about one board.

    `season` is the number of a season, or "previous"; by default the current one. All of them raise
    LeaderboardError. `idempotency_key` is explained in the README.
    """

    def __init__(self, sender: Sender, board: str | None) -> None:
        """`board` is None for `default`."""
        self._sender = sender
        self._board = board

    def top(self, n: int = 10, *, season: SeasonRef | None = None) -> model.Top:
        """Returns the best n users, best first."""
        return self._sender.send(calls.top(self._board, n, season))

    def standing(self, user: UserRef, *, season: SeasonRef | None = None) -> model.Standing:
        """Returns a user with its rank. Raises UserNotFound, NotOnBoard."""
        return self._sender.send(calls.standing(self._board, user, season))

    def context(self, user: UserRef, *, season: SeasonRef | None = None) -> model.Context:
        """Returns a user with up to five above and five below. Raises UserNotFound, NotOnBoard."""
        return self._sender.send(calls.context(self._board, user, season))

    def standings_of(
        self, users: Iterable[UserRef], *, season: SeasonRef | None = None
    ) -> tuple[model.Standing, ...]:
        """Returns those of up to 100 users that are on the board, best first, with their ranks among all."""
        return self._sender.send(calls.standings_of(self._board, users, season))

    def page(self, *, limit: int = 100, after: str | None = None, season: SeasonRef | None = None) -> model.Page:
        """Returns the first page of up to `limit` users, or the one after the page whose `next` is `after`."""
        return self._sender.send(calls.page(self._board, season, limit=limit, after=after))

    def page_around(self, rank: int, *, limit: int = 100, season: SeasonRef | None = None) -> model.Page:
        """Returns the page of up to `limit` users with this rank in its middle."""
        return self._sender.send(calls.page(self._board, season, limit=limit, around_rank=rank))

    def standings(self, *, page_size: int = 1000, season: SeasonRef | None = None) -> Iterator[model.Standing]:
        """Yields all users, best first, page by page; each rank is that of the moment its page was read.

        The season is chosen once: if it ends meanwhile, the rest comes from its archive.
        """
        if self._board is not None and not isinstance(season, int):
            info = self._sender.send(calls.board_info(self._board))
            current = info.current_season.number
            # Without an earlier season the service refuses `previous`.
            season = current if season is None else current - 1 or season
        after: str | None = None
        while True:
            page = self._sender.send(calls.page(self._board, season, limit=page_size, after=after))
            for standing in page.standings:
                yield standing
            if page.next is None:
                return
            after = page.next

    def set_score(
        self,
        user: UserRef,
        score: Number,
        *,
        username: str | None = None,
        rank: bool = False,
        idempotency_key: IdempotencyKey = None,
    ) -> model.ScoreChange:
        """Sets a score. With `rank`, the result has the rank as well.

        With `username`, the user of an external id that no user has is created with that name.
        Raises UserNotFound, and InvalidField on a board that adds up scores.
        """
        change = {"score": score}
        return self._sender.send(
            calls.change_score(self._board, user, change, username, idempotency_key, rank=rank)
        )

    def add_score(
        self,
        user: UserRef,
        increment: Number,
        *,
        username: str | None = None,
        rank: bool = False,
        idempotency_key: IdempotencyKey = None,
    ) -> model.ScoreChange:
        """Adds to a score, once for each call. With `rank`, the result has the rank as well.

        With `username`, the user of an external id that no user has is created with that name.
        Raises UserNotFound, and InvalidField on `default` and on a board that keeps the best score.
        """
        change = {"increment": increment}
        return self._sender.send(
            calls.change_score(self._board, user, change, username, idempotency_key, rank=rank)
        )

    def set_scores(
        self,
        scores: Changes,
        *,
        idempotency_key: IdempotencyKey = None,
    ) -> list[model.ScoreResult]:
        """Sets many scores, in requests of up to 1,000. Returns a result for each, in order.

        A change that the service refuses is a RefusedScore among the results. If a request fails, the earlier ones
        stay done.
        """
        return self._change("score", scores, idempotency_key)

    def add_scores(
        self,
        increments: Changes,
        *,
        idempotency_key: IdempotencyKey = None,
    ) -> list[model.ScoreResult]:
        """Adds to many scores, as `set_scores` sets them. A user who is there twice gets both increments."""
        return self._change("increment", increments, idempotency_key)

    def _change(
        self,
        member: Literal["score", "increment"],
        changes: Changes,
        idempotency_key: IdempotencyKey,
    ) -> list[model.ScoreResult]:
        key = calls.new_key(idempotency_key)
        results: list[model.ScoreResult] = []
        for position, batch in enumerate(calls.batches(member, changes)):
            of_batch = self._sender.send(calls.change_scores(self._board, batch, key, position))
            results += of_batch
        return results


class Board(BoardCalls):
    """One board of a service: `Leaderboard.board` returns it, without a request."""

    def __init__(self, sender: Sender, name: str) -> None:
        super().__init__(sender, name)
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def info(self) -> model.BoardInfo:
        """Returns the rules of the board and its current season. Raises BoardNotFound."""
        return self._sender.send(calls.board_info(self.name))

    def put(self, rules: model.Rules) -> model.BoardInfo:
        """Creates the board, or sets all its rules. Needs the admin scope. Raises BoardInUse."""
        return self._sender.send(calls.put_board(self.name, rules))

    def delete(self) -> None:
        """Deletes the board with all its seasons. Needs the admin scope. Raises BoardNotFound, BoardInUse.

        It is not repeated if the answer was lost: then it raises an error with `outcome_unknown`.
        """
        self._sender.send(calls.delete_board(self.name))

    def remove(self, user: UserRef) -> None:
        """Removes a user from the board. Raises NotOnBoard, and BoardInUse on `default`.

        It is not repeated if the answer was lost: then it raises an error with `outcome_unknown`.
        """
        self._sender.send(calls.remove(self.name, user))

    def end_season(self, number: int) -> model.Season:
        """Ends the season of that number now, and returns it. Needs the admin scope. Raises SeasonNotFound."""
        return self._sender.send(calls.end_season(self.name, number))

    def seasons(self, *, before: int | None = None, page_size: int = 100) -> Iterator[model.Season]:
        """Yields the seasons before the number `before`, newest first; by default all."""
        while True:
            seasons, before = self._sender.send(calls.seasons(self.name, before, page_size))
            for season in seasons:
                yield season
            if before is None:
                return


class Leaderboard(BoardCalls):
    """A client of the service. Its calls about scores are about the board `default`.

    It may be shared by threads. Close it with `close`, or use it with `with`.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        retry: Retry | None = None,
        timeout_s: float = 10.0,
        http: httpx.Client | None = None,
    ) -> None:
        """`key` is an API key or a user's token, `timeout_s` the longest wait for one attempt's next byte.

        `http` is for proxies, certificates and the like; it has timeouts of its own, and is not closed. Raises
        ValueError for a URL or a key that cannot be right.
        """
        service = Service(url, key)
        self._own_http = httpx.Client(timeout=timeout_s) if http is None else None
        sender = Sender(service, self._own_http or http or httpx.Client(), retry or Retry())
        super().__init__(sender, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._sender.url!r})"

    def close(self) -> None:
        """Closes the connections."""
        if self._own_http is not None:
            self._own_http.close()

    def board(self, name: str) -> Board:
        """Returns a board by its name, without a request."""
        return Board(self._sender, name)

    def boards(self, *, after: str | None = None, page_size: int = 100) -> Iterator[model.BoardInfo]:
        """Yields the boards after the name `after`, by name; by default all."""
        while True:
            boards, after = self._sender.send(calls.boards(after, page_size))
            for board in boards:
                yield board
            if after is None:
                return

    # Users

    def create_user(
        self,
        username: str,
        *,
        score: int = 0,
        image_url: str | None = None,
        external_id: ExternalId | None = None,
        idempotency_key: IdempotencyKey = None,
    ) -> model.User:
        """Creates a user. Raises UsernameTaken, ExternalIdTaken, InvalidField."""
        call = calls.create_user(username, score, image_url, external_id, idempotency_key)
        return self._sender.send(call)

    def put_user(self, user: ExternalId, username: str, *, image_url: str | None = None) -> model.User:
        """Creates the user of an external id, or sets its name and image. Raises UsernameTaken."""
        return self._sender.send(calls.put_user(user, username, image_url))

    def find_user(self, username: str) -> model.Account:
        """Returns the user of a name. Raises UserNotFound. Hidden users are found with the admin scope only."""
        return self._sender.send(calls.find_user(username))

    def find_users(
        self, prefix: str, *, after: str | None = None, page_size: int = 100
    ) -> Iterator[model.Account]:
        """Yields the users whose names begin with `prefix`, by name; with `after`, those after that name."""
        while True:
            users, after = self._sender.send(calls.find_users(prefix, after, page_size))
            for user in users:
                yield user
            if after is None:
                return

    def update_user(
        self,
        user: UserRef,
        *,
        username: str | Unchanged = UNCHANGED,
        image_url: str | Unchanged | None = UNCHANGED,
        hidden: bool | Unchanged = UNCHANGED,
        external_id: ExternalId | Unchanged = UNCHANGED,
    ) -> model.Account:
        """Renames a user, changes its image (None: removes it), hides or shows it. Needs the admin scope.

        `external_id` is for a user who has none. Raises UserNotFound, UsernameTaken, ExternalIdTaken,
        ExternalIdFixed, InvalidField.
        """
        return self._sender.send(calls.update_user(user, username, image_url, hidden, external_id))

    def erase_user(self, user: UserRef) -> None:
        """Erases a user from all boards. Needs the admin scope. Raises UserNotFound."""
        self._sender.send(calls.erase_user(user))

    def user_boards(self, user: UserRef, *, after: str | None = None, page_size: int = 100) -> Iterator[str]:
        """Yields the names of the boards that a user is on; with `after`, those after that name."""
        while True:
            names, after = self._sender.send(calls.user_boards(user, after, page_size))
            for name in names:
                yield name
            if after is None:
                return

    # The process that answers

    def status(self) -> model.Status:
        """Returns the state of the process that answers."""
        return self._sender.send(calls.status())

    def ready(self) -> model.Status:
        """Returns the state of the process, also if it cannot answer calls now."""
        return self._sender.send(calls.ready())

    def alive(self) -> None:
        """Returns if the process answers at all. Raises TransportError otherwise."""
        self._sender.send(calls.alive())

    def metrics(self) -> str:
        """Returns the metrics for Prometheus. Needs the admin scope if there are keys."""
        return self._sender.send(calls.metrics())

    def openapi(self) -> Mapping[str, Any]:
        """Returns the OpenAPI document."""
        return self._sender.send(calls.openapi())
