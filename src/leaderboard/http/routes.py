"""The route table: every path, what it takes and returns, and the problems it may answer with.

The router, the OpenAPI document and the tests are made from it.
"""

from functools import partial

from leaderboard.http.bodies import CreateUser, SetScore
from leaderboard.http.handlers import Handlers
from leaderboard.http.paging import PageAnswer, PageParameters
from leaderboard.http.route import Parameter, Route
from leaderboard.http.status import Status
from leaderboard.model import Context, ScoreSet, Standing, Top, User

# Groups of problem codes.
LIMITED = ("rate_limited",)
ACCESS = ("unauthorized", "forbidden", *LIMITED)
READ = (*ACCESS, "overloaded", "unavailable")
READ_BY_NUMBER = ("invalid_parameter", *READ)
READ_USER = ("invalid_parameter", "user_not_found", *READ)
BODY = (
    *("malformed_json", "invalid_field", "request_timeout", "body_too_large"),
    *("unsupported_media_type", "unsupported_encoding"),
)
WRITE = (
    *BODY,
    *("idempotency_key_reused", "idempotency_key_in_use", "too_many_idempotency_keys", "idempotency_keys_full"),
    *(*ACCESS, "cross_origin_write", "overloaded", "unavailable", "outcome_unknown"),
)
SET_SCORE = ("invalid_parameter", "user_not_found", *WRITE)
CREATE_USER = ("invalid_parameter", "username_taken", *WRITE)
HOME = (*LIMITED, "overloaded", "unavailable")

TOP_N = Parameter("n", example=10, maximum_setting="max_top_n")
USER_ID = Parameter("id", example=1)

_public = partial(Route, "GET")
_read = partial(Route, "GET", needs="read", may_be_stale=True)
_write = partial(Route, "POST", needs="write")
_admin = partial(Route, "GET", needs="admin")

# Path, handler, answer, problems, path parameters.
ROUTES: tuple[Route, ...] = (
    _read("/leaderboard/top/{n}", Handlers.get_top, Top, READ_BY_NUMBER, (TOP_N,)),
    _read("/leaderboard/user/{id}/context", Handlers.get_context, Context, READ_USER, (USER_ID,)),
    _read("/leaderboard", Handlers.get_page, PageAnswer, READ_BY_NUMBER, query=PageParameters, may_be_stale=False),
    _write(
        "/users/{id}/score", Handlers.set_score, ScoreSet, SET_SCORE, (USER_ID,), body=SetScore, own_user_only=True
    ),
    _read("/users/{id}", Handlers.get_user, Standing, READ_USER, (USER_ID,)),
    _write("/users", Handlers.create_user, User, CREATE_USER, body=CreateUser, status=201),
    _public("/", Handlers.root, Status, HOME, media_types=("text/html",), may_be_stale=True),
    _public("/livez", Handlers.livez, "application/json", limited=False),
    _public("/readyz", Handlers.readyz, Status, other_responses={503: Status}, limited=False),
    _admin("/metrics", Handlers.get_metrics, "text/plain", ACCESS),
    _public("/openapi.json", Handlers.openapi, "application/json", LIMITED),
    _public("/docs", Handlers.docs, "text/html", LIMITED),
    _public("/assets/{name}", Handlers.asset, "text/css", LIMITED, documented=False),
)
