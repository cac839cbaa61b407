"""The handlers of the calls about one board: reading it, and changing its entries."""

import asyncio
from collections.abc import Mapping

import structlog

from leaderboard.board_rules import DEFAULT_BOARD
from leaderboard.errors import BoardNotFound, Unavailable
from leaderboard.http import board_answers, board_bodies, paging, problems, requests, security
from leaderboard.http.access import Access
from leaderboard.http.asgi import AsgiScope, Receive
from leaderboard.http.board_bodies import Change
from leaderboard.http.board_queries import (
    BoardPageParameters,
    RankParameters,
    SeasonParameters,
    board_of,
    parameters,
    season_of,
    with_rank,
)
from leaderboard.http.handlers import JSON, check_creation, once_of, page_response, user_of
from leaderboard.http.read_responses import ReadResponses
from leaderboard.http.response import NoContent, Response
from leaderboard.model import EntrySet, UserRef, encode_json
from leaderboard.queries import SeasonRef
from leaderboard.service.boards import BoardService
from leaderboard.service.entries import EntryWrites
from leaderboard.service.idempotency import Once
from leaderboard.service.reads import Reads
from leaderboard.service.scores import Scores

NO_CONTENT = NoContent(security.encode_headers(None))

_log = structlog.get_logger(__name__)


class BoardHandlers:
    """The handlers of the paths below `/boards/{board}`; `default` answers as without them."""

    def __init__(
        self,
        reads: Reads,
        scores: Scores,
        boards: BoardService,
        entries: EntryWrites,
        responses: ReadResponses,
        access: Access,
        *,
        max_top_n: int,
    ) -> None:
        self._reads = reads
        self._responses = responses
        self._scores = scores
        self._boards = boards
        self._entries = entries
        self._access = access
        self._max_top_n = max_top_n

    # Reading

    async def get_board_top(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The best n users of a board"""
        season = _season(scope)
        n = requests.positive("n", scope["path_params"]["n"], self._max_top_n)
        return self._responses.of(scope, await self._reads.top(n, season))

    async def get_board_context(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A user of a board among the five above and the five below"""
        season = _season(scope)
        return self._responses.of(scope, await self._reads.context(user_of(scope), season))

    async def get_entry(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A user of a board and its rank"""
        season = _season(scope)
        return self._responses.of(scope, await self._reads.standing(user_of(scope), season))

    async def get_board_page(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A page of a board: from the first user on, after another page, around a rank, or of some users"""
        values = parameters(scope, BoardPageParameters)
        query = paging.query_of(values, scope["query_string"], season_of(board_of(scope), values))
        return await page_response(self._reads, self._responses, scope, query)

    # Changing entries

    async def change_entry(self, scope: AsgiScope, receive: Receive) -> Response:
        """Set a user's score on a board, or add to it"""
        body = await requests.read_json(scope["headers"], receive)
        board, user = board_of(scope), user_of(scope)
        shows_rank = with_rank(parameters(scope, RankParameters))
        change = board_bodies.change(body)
        check_creation(self._access, scope, user, change.user_name)
        entry = await self._scores.change(
            board, user, change.number, adds=change.adds, once=once_of(scope), user_name=change.user_name
        )
        if not shows_rank:
            return Response(200, JSON, encode_json(board_answers.changed_entry(entry)))
        rank = await self._scores.rank(board, entry)
        return Response(200, JSON, encode_json(board_answers.changed_entry(entry, rank)))

    async def change_entries(self, scope: AsgiScope, receive: Receive) -> Response:
        """Set up to 1,000 scores of a board, or add to them; each has a result of its own"""
        body = await requests.read_json(scope["headers"], receive, board_bodies.MAX_ITEMS_BYTES)
        board, once = board_of(scope), once_of(scope)
        changes = board_bodies.changes(body)
        if board != DEFAULT_BOARD:
            await self._boards.known(board)
        for user, change in changes.items():
            check_creation(self._access, scope, user, change.user_name)
        writes = [
            self._scores.change(
                board,
                user,
                change.number,
                adds=change.adds,
                once=_once_for(user, once),
                user_name=change.user_name,
            )
            for user, change in changes.items()
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
        return Response(200, JSON, encode_json({"results": _results(changes, results)}))

    async def remove_entry(self, scope: AsgiScope, _receive: Receive) -> Response:
        """Remove a user from a board"""
        await self._entries.remove(board_of(scope), user_of(scope))
        return NO_CONTENT


def _season(scope: AsgiScope) -> SeasonRef | None:
    return season_of(board_of(scope), parameters(scope, SeasonParameters))


def _once_for(user: UserRef, once: Once | None) -> Once | None:
    """Returns the key of one item of a batch, made from the key of the batch, which has no blank."""
    return None if once is None else (once[0], f"{once[1]} {user if isinstance(user, int) else f'@{user}'}")


def _results(
    changes: Mapping[UserRef, Change], results: list[EntrySet | BaseException]
) -> list[EntrySet | board_answers.RefusedEntry]:
    """Returns the results as they are sent. Raises an error that is about no item."""
    failed = [result for result in results if isinstance(result, BaseException)]
    if len(failed) == len(results) and isinstance(failed[0], BoardNotFound | Unavailable):
        raise failed[0]
    sent: list[EntrySet | board_answers.RefusedEntry] = []
    for user, result in zip(changes, results, strict=True):
        if isinstance(result, EntrySet):
            sent.append(result)
            continue
        if not isinstance(result, Exception):
            raise result
        if problems.kind_of(result) is problems.INTERNAL:
            _log.error("an item of a batch failed", exc_info=result)
        error = board_answers.EntryError(*problems.code_and_detail(result))
        if isinstance(user, int):
            sent.append(board_answers.RefusedEntry(userId=user, error=error))
        else:
            sent.append(board_answers.RefusedEntry(externalId=user, error=error))
    return sent
