"""The route table: every path, what it takes and returns, and the problems it may answer with.

The router, the OpenAPI document and the tests are made from it.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from leaderboard.board_rules import BOARD_NAME_PATTERN
from leaderboard.http.board_answers import (
    BoardAnswer,
    BoardContext,
    BoardPage,
    BoardsAnswer,
    BoardStanding,
    BoardTop,
    ChangedEntry,
    EntryResults,
    FoundUsers,
    SeasonAnswer,
    SeasonsAnswer,
    UserBoards,
)
from leaderboard.http.board_bodies import ChangeEntries, ChangeEntry, EndSeason, Rules, UpdateUser
from leaderboard.http.board_handlers import BoardHandlers
from leaderboard.http.board_queries import (
    BoardListParameters,
    BoardPageParameters,
    FindParameters,
    RankParameters,
    SeasonListParameters,
    SeasonParameters,
)
from leaderboard.http.bodies import CreateUser, PutUser, SetScore
from leaderboard.http.handlers import Handlers
from leaderboard.http.paging import PageAnswer, PageParameters
from leaderboard.http.registry_handlers import RegistryHandlers
from leaderboard.http.route import Parameter, Route, TextParameter, UserParameter
from leaderboard.http.status import Status
from leaderboard.http.user_handlers import UserHandlers
from leaderboard.model import Account, Context, ScoreSet, Standing, Top, User
from leaderboard.rules import EXTERNAL_ID_PATTERN

# Groups of problem codes.
LIMITED = ("rate_limited",)
ACCESS = ("unauthorized", "forbidden", *LIMITED)
READ = (*ACCESS, "overloaded", "unavailable")
READ_BY_NUMBER = ("invalid_parameter", *READ)
READ_USER = ("invalid_parameter", "user_not_found", *READ)
READ_BOARD = ("invalid_parameter", "board_not_found", *READ)
READ_SEASON = (*READ_BOARD, "season_not_found")
READ_ENTRY = (*READ_SEASON, "user_not_found", "not_on_board")
BODY = (
    *("malformed_json", "invalid_field", "request_timeout", "body_too_large"),
    *("unsupported_media_type", "unsupported_encoding"),
)
CHANGE = ("invalid_parameter", *ACCESS, "cross_origin_write", "overloaded", "unavailable", "outcome_unknown")
ONCE = ("idempotency_key_reused", "idempotency_key_in_use", "too_many_idempotency_keys", "idempotency_keys_full")
WRITE = (*BODY, *ONCE, *CHANGE)
SET_SCORE = ("user_not_found", "username_taken", *WRITE)
CREATE_USER = ("username_taken", "external_id_taken", *WRITE)
PUT_USER = ("username_taken", *BODY, *CHANGE)
CHANGE_BOARD = ("board_not_found", *CHANGE)
CHANGE_ENTRY = ("board_not_found", *SET_SCORE)
CHANGE_ENTRIES = (*BODY, *ONCE, *CHANGE_BOARD)
REMOVE_ENTRY = ("not_on_board", "board_in_use", *CHANGE_BOARD)
PUT_BOARD = ("board_in_use", *BODY, *CHANGE)
DELETE_BOARD = ("board_in_use", *CHANGE_BOARD)
END_SEASON = ("season_not_found", *BODY, *DELETE_BOARD)
UPDATE_USER = ("user_not_found", "username_taken", "external_id_taken", "external_id_fixed", *BODY, *CHANGE)
ERASE_USER = ("user_not_found", *CHANGE)
HOME = (*LIMITED, "overloaded", "unavailable")

TOP_N = Parameter("n", example=10, maximum_setting="max_top_n")
USER_ID = UserParameter("id", example=1)
EXTERNAL_ID = TextParameter("id", example="@steam:76561198000000001", pattern=f"@{EXTERNAL_ID_PATTERN}")
BOARD = TextParameter("board", example="default", pattern=BOARD_NAME_PATTERN)

_public = partial(Route, "GET")
_read = partial(Route, "GET", needs="read", may_be_stale=True)
_read_season = partial(_read, query=SeasonParameters)
_list = partial(Route, "GET", needs="read")
_write = partial(Route, "POST", needs="write")
_write_once = partial(_write, takes_key=True)
_admin = partial(Route, needs="admin")
_delete = partial(Route, "DELETE", answer=None, status=204)


def _below(path: str, parameter: TextParameter, routes: Iterable[Route]) -> tuple[Route, ...]:
    """Returns the routes below a path that ends with a parameter."""
    return tuple(
        replace(route, path=path + route.path, parameters=(parameter, *route.parameters)) for route in routes
    )


def _on_default(*routes: Route) -> tuple[Route, ...]:
    """Returns the routes, which are about the board `default`."""
    return tuple(replace(route, on_default=True) for route in routes)


# Path, handler, answer, problems, path parameters.
ROUTES: tuple[Route, ...] = (
    # The board `default`.
    *_on_default(
        _read("/leaderboard/top/{n}", Handlers.get_top, Top, READ_BY_NUMBER, (TOP_N,)),
        _read("/leaderboard/user/{id}/context", Handlers.get_context, Context, READ_USER, (USER_ID,)),
        _list("/leaderboard", Handlers.get_page, PageAnswer, READ_BY_NUMBER, query=PageParameters),
        _write_once(
            "/users/{id}/score",
            Handlers.set_score,
            ScoreSet,
            SET_SCORE,
            (USER_ID,),
            body=SetScore,
            own_user_only=True,
        ),
        _write_once("/users", UserHandlers.create_user, User, CREATE_USER, body=CreateUser, status=201),
        _list(
            "/users",
            UserHandlers.find_users,
            Account,
            READ_USER,
            query=FindParameters,
            other_answers=(FoundUsers,),
        ),
        _read("/users/{id}", Handlers.get_user, Standing, READ_USER, (USER_ID,)),
        # Not only for admins, as PATCH is: it creates a user, and changes only users of the caller's own ids.
        Route(
            "PUT",
            "/users/{id}",
            UserHandlers.put_user,
            User,
            PUT_USER,
            (EXTERNAL_ID,),
            needs="write",
            body=PutUser,
            other_responses={201: User},
        ),
    ),
    # Users on all boards.
    _admin("PATCH", "/users/{id}", UserHandlers.update_user, Account, UPDATE_USER, (USER_ID,), body=UpdateUser),
    _delete("/users/{id}", UserHandlers.erase_user, problems=ERASE_USER, parameters=(USER_ID,), needs="admin"),
    _list(
        "/users/{id}/boards",
        UserHandlers.get_user_boards,
        UserBoards,
        READ_USER,
        (USER_ID,),
        query=BoardListParameters,
    ),
    # Boards.
    _list("/boards", RegistryHandlers.list_boards, BoardsAnswer, READ_BY_NUMBER, query=BoardListParameters),
    *_below(
        "/boards/{board}",
        BOARD,
        (
            _list("", RegistryHandlers.get_board, BoardAnswer, READ_BOARD),
            _admin(
                "PUT",
                "",
                RegistryHandlers.put_board,
                BoardAnswer,
                PUT_BOARD,
                body=Rules,
                other_responses={201: BoardAnswer},
            ),
            _delete("", RegistryHandlers.delete_board, problems=DELETE_BOARD, needs="admin"),
            _list(
                "/seasons", RegistryHandlers.list_seasons, SeasonsAnswer, READ_BOARD, query=SeasonListParameters
            ),
            _admin("POST", "/seasons", RegistryHandlers.end_season, SeasonAnswer, END_SEASON, body=EndSeason),
            _read_season("/leaderboard/top/{n}", BoardHandlers.get_board_top, BoardTop, READ_SEASON, (TOP_N,)),
            _read_season(
                "/leaderboard/user/{id}/context",
                BoardHandlers.get_board_context,
                BoardContext,
                READ_ENTRY,
                (USER_ID,),
            ),
            _list("/leaderboard", BoardHandlers.get_board_page, BoardPage, READ_SEASON, query=BoardPageParameters),
            _read_season("/users/{id}", BoardHandlers.get_entry, BoardStanding, READ_ENTRY, (USER_ID,)),
            _delete(
                "/users/{id}",
                BoardHandlers.remove_entry,
                problems=REMOVE_ENTRY,
                parameters=(USER_ID,),
                needs="write",
            ),
            _write_once(
                "/users/{id}/score",
                BoardHandlers.change_entry,
                ChangedEntry,
                CHANGE_ENTRY,
                (USER_ID,),
                body=ChangeEntry,
                query=RankParameters,
                own_user_only=True,
            ),
            _write_once("/scores", BoardHandlers.change_entries, EntryResults, CHANGE_ENTRIES, body=ChangeEntries),
        ),
    ),
    # The process.
    _public("/", Handlers.root, Status, HOME, media_types=("text/html",), may_be_stale=True),
    _public("/livez", Handlers.livez, "application/json", limited=False),
    _public("/readyz", Handlers.readyz, Status, other_responses={503: Status}, limited=False),
    _admin("GET", "/metrics", Handlers.get_metrics, "text/plain", ACCESS),
    _public("/openapi.json", Handlers.openapi, "application/json", LIMITED),
    _public("/docs", Handlers.docs, "text/html", LIMITED),
    _public("/assets/{name}", Handlers.asset, "text/css", LIMITED, documented=False),
)
