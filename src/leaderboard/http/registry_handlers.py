"""The handlers of the registry: boards, their rules and their seasons."""

from leaderboard.http import board_answers, board_bodies, requests
from leaderboard.http.asgi import AsgiScope, Receive
from leaderboard.http.board_handlers import NO_CONTENT
from leaderboard.http.board_queries import (
    BoardListParameters,
    SeasonListParameters,
    after_of,
    board_of,
    limit_of,
    parameters,
)
from leaderboard.http.handlers import JSON
from leaderboard.http.response import Response
from leaderboard.model import encode_json
from leaderboard.service.boards import BoardService


class RegistryHandlers:
    """The handlers of boards and seasons."""

    def __init__(self, boards: BoardService, *, root_path: str) -> None:
        self._boards = boards
        self._root_path = root_path

    async def list_boards(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The boards, by name"""
        values = parameters(scope, BoardListParameters)
        limit = limit_of(values)
        found = await self._boards.list(after_of(values), limit + 1)
        boards = [board_answers.board_answer(board) for board in found[:limit]]
        more = boards[-1].name if len(found) > limit else None
        return Response(200, JSON, encode_json(board_answers.BoardsAnswer(boards, more)))

    async def put_board(self, scope: AsgiScope, receive: Receive) -> Response:
        """Create a board, or change its rules"""
        body = await requests.read_json(scope["headers"], receive)
        name = board_of(scope)
        board, created = await self._boards.configure(name, board_bodies.board_rules(body))
        answer = encode_json(board_answers.board_answer(board))
        if not created:
            return Response(200, JSON, answer)
        location = f"{self._root_path}/boards/{name}"
        return Response(201, (*JSON, (b"location", location.encode())), answer)

    async def get_board(self, scope: AsgiScope, _receive: Receive) -> Response:
        """A board, with its rules and its current season"""
        board = await self._boards.get(board_of(scope))
        return Response(200, JSON, encode_json(board_answers.board_answer(board)))

    async def delete_board(self, scope: AsgiScope, _receive: Receive) -> Response:
        """Delete a board with all its seasons"""
        await self._boards.delete(board_of(scope))
        return NO_CONTENT

    async def list_seasons(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The seasons of a board, newest first"""
        values = parameters(scope, SeasonListParameters)
        limit = limit_of(values)
        before = requests.positive("before", values["before"]) if "before" in values else None
        found = await self._boards.seasons(board_of(scope), before, limit + 1)
        seasons = [board_answers.season_answer(season) for season in found[:limit]]
        more = seasons[-1].number if len(found) > limit else None
        return Response(200, JSON, encode_json(board_answers.SeasonsAnswer(seasons, more)))

    async def end_season(self, scope: AsgiScope, receive: Receive) -> Response:
        """End a season now; if it has ended, nothing changes"""
        body = await requests.read_json(scope["headers"], receive)
        season = await self._boards.end_season(board_of(scope), board_bodies.end_season(body))
        return Response(200, JSON, encode_json(board_answers.season_answer(season)))
