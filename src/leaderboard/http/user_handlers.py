"""The handlers of users as such: create, find, change and erase them, and list their boards."""

from collections.abc import Mapping

from leaderboard import rules
from leaderboard.errors import InvalidParameter, UsernameNotFound
from leaderboard.http import board_answers, board_bodies, bodies, requests
from leaderboard.http.access import Access
from leaderboard.http.asgi import AsgiScope, Receive
from leaderboard.http.board_handlers import NO_CONTENT
from leaderboard.http.board_queries import (
    BoardListParameters,
    FindParameters,
    after_of,
    limit_of,
    parameters,
)
from leaderboard.http.handlers import JSON, once_of, user_of
from leaderboard.http.response import Response
from leaderboard.model import User, encode_json
from leaderboard.service.boards import BoardService
from leaderboard.service.users import UserService
from leaderboard.service.writes import Writes


class UserHandlers:
    """The handlers of users, whether or not they are on a board."""

    def __init__(
        self, users: UserService, writes: Writes, boards: BoardService, access: Access, *, root_path: str
    ) -> None:
        self._users = users
        self._writes = writes
        self._boards = boards
        self._access = access
        self._root_path = root_path

    async def find_users(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The user of a name, or the users with a prefix; hidden ones are found with the admin scope only"""
        values = parameters(scope, FindParameters)
        sees_hidden = self._access.has_scope("admin", scope)
        if "prefix" in values:
            return Response(200, JSON, encode_json(await self._with_prefix(values, sees_hidden=sees_hidden)))
        for name in ("after", "limit"):
            if name in values:
                raise InvalidParameter(name, values[name], "given with `prefix`")
        text = values.get("username", "")
        try:
            username = rules.clean_username(text)
        except ValueError:
            allowed = f"a username, 1 to {rules.MAX_NAME} characters; or give `prefix`"
            raise InvalidParameter("username", text, allowed) from None
        account = await self._users.find(username)
        if account is None or (account.hidden and not sees_hidden):
            raise UsernameNotFound(username)
        return Response(200, JSON, encode_json(account))

    async def _with_prefix(self, values: Mapping[str, str], *, sees_hidden: bool) -> board_answers.FoundUsers:
        if "username" in values:
            raise InvalidParameter("username", values["username"], "given without `prefix`")
        try:
            prefix = rules.clean_prefix(values["prefix"])
        except ValueError:
            allowed = f"the beginning of a username, up to {rules.MAX_NAME} characters"
            raise InvalidParameter("prefix", values["prefix"], allowed) from None
        after, limit = values.get("after", ""), limit_of(values)
        if "\0" in after:
            raise InvalidParameter("after", after, "the `next` of a list")
        found = await self._users.with_prefix(prefix, after, limit + 1, hidden=sees_hidden)
        users = list(found[:limit])
        return board_answers.FoundUsers(users, users[-1].user_name if len(found) > limit else None)

    async def create_user(self, scope: AsgiScope, receive: Receive) -> Response:
        """Create a user"""
        body = await requests.read_json(scope["headers"], receive)
        name, score, image_url, external_id = bodies.create_user(body)
        user = await self._writes.create_user(name, image_url, score, once_of(scope), external_id)
        return self._created(user)

    async def put_user(self, scope: AsgiScope, receive: Receive) -> Response:
        """Create the user with an external id, or set its name and image"""
        body = await requests.read_json(scope["headers"], receive)
        external_id = user_of(scope)
        if isinstance(external_id, int):
            raise InvalidParameter("id", str(external_id), "@ and an external id; PATCH changes any user")
        user, created = await self._users.put(external_id, *bodies.put_user(body))
        return self._created(user) if created else Response(200, JSON, encode_json(user))

    def _created(self, user: User) -> Response:
        location = f"{self._root_path}/users/{user.user_id}"
        return Response(201, (*JSON, (b"location", location.encode())), encode_json(user))

    async def update_user(self, scope: AsgiScope, receive: Receive) -> Response:
        """Rename, hide or show a user, or change its image"""
        body = await requests.read_json(scope["headers"], receive)
        user = user_of(scope)
        account = await self._users.update(user, **board_bodies.update_user(body))
        return Response(200, JSON, encode_json(account))

    async def erase_user(self, scope: AsgiScope, _receive: Receive) -> Response:
        """Erase a user from all boards"""
        await self._users.erase(user_of(scope))
        return NO_CONTENT

    async def get_user_boards(self, scope: AsgiScope, _receive: Receive) -> Response:
        """The names of the boards that a user is on"""
        values = parameters(scope, BoardListParameters)
        limit = limit_of(values)
        names = await self._boards.of_user(user_of(scope), after_of(values), limit + 1)
        more = names[limit - 1] if len(names) > limit else None
        return Response(200, JSON, encode_json(board_answers.UserBoards(list(names[:limit]), more)))
