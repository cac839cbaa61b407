"""The table that maps each error to its HTTP response: problem details (RFC 9457)."""

from dataclasses import dataclass

import msgspec

from leaderboard import errors
from leaderboard.http import access, hosts, requests, router, security
from leaderboard.http.response import Headers, Response
from leaderboard.http.strict_json import MalformedJson

_MAX_TEXT = 500
"""Characters of a text that may quote the request; a longer one is cut."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem. `code` never changes; programs may rely on it."""

    code: str
    status: int
    title: str
    headers: Headers = ()


_PROBLEM_HEADERS = security.encode_headers("application/problem+json")
_RETRY_1_S: Headers = ((b"retry-after", b"1"),)
# Idempotency keys are deleted once a minute.
_RETRY_60_S: Headers = ((b"retry-after", b"60"),)

INTERNAL = Kind("internal_error", 500, "Internal error")

# The kind of an error is the first row whose type it is an instance of.
TABLE: tuple[tuple[type[Exception], Kind], ...] = (
    (MalformedJson, Kind("malformed_json", 400, "The body is not valid JSON")),
    (requests.ClientGone, Kind("client_gone", 400, "The request is incomplete")),
    (hosts.InvalidHost, Kind("invalid_host", 400, "The header Host is missing, repeated or invalid")),
    # Not 400: the request is as it must be. It was for another host (RFC 9110, section 15.5.20).
    (access.MisdirectedRequest, Kind("misdirected_request", 421, "This service does not serve that host")),
    (errors.InvalidField, Kind("invalid_field", 422, "A field is invalid")),
    (errors.InvalidParameter, Kind("invalid_parameter", 422, "A parameter is invalid")),
    (
        access.Unauthorized,
        Kind("unauthorized", 401, "A key is required", ((b"www-authenticate", b"Bearer"),)),
    ),
    (access.Forbidden, Kind("forbidden", 403, "This key does not allow the request")),
    (access.CrossOriginWrite, Kind("cross_origin_write", 403, "Pages of other sites may not write")),
    (access.RateLimited, Kind("rate_limited", 429, "Too many requests from this caller", _RETRY_1_S)),
    (errors.UserNotFound, Kind("user_not_found", 404, "The user does not exist")),
    (errors.BoardNotFound, Kind("board_not_found", 404, "The board does not exist")),
    (errors.SeasonNotFound, Kind("season_not_found", 404, "The board has no such season")),
    (errors.NotOnBoard, Kind("not_on_board", 404, "The user is not on the board")),
    (errors.BoardInUse, Kind("board_in_use", 409, "The board cannot be changed like this")),
    (errors.UsernameTaken, Kind("username_taken", 409, "The username is taken")),
    (errors.ExternalIdTaken, Kind("external_id_taken", 409, "Another user has the external id")),
    (errors.ExternalIdFixed, Kind("external_id_fixed", 409, "The user has another external id")),
    (
        errors.IdempotencyKeyReused,
        Kind("idempotency_key_reused", 422, "The idempotency key was used for another request"),
    ),
    (
        errors.IdempotencyKeyInUse,
        Kind("idempotency_key_in_use", 409, "A request with this idempotency key is in progress"),
    ),
    (
        errors.TooManyIdempotencyKeys,
        Kind("too_many_idempotency_keys", 429, "This caller has too many idempotency keys", _RETRY_60_S),
    ),
    (
        errors.IdempotencyKeysFull,
        Kind("idempotency_keys_full", 503, "Too many idempotency keys are stored", _RETRY_60_S),
    ),
    (
        requests.BodyTooSlow,
        Kind("request_timeout", 408, "The body did not arrive in time", ((b"connection", b"close"),)),
    ),
    (requests.BodyTooLarge, Kind("body_too_large", 413, "The body is too large")),
    (requests.UnsupportedMediaType, Kind("unsupported_media_type", 415, "The body must be JSON")),
    (
        requests.UnsupportedEncoding,
        Kind("unsupported_encoding", 415, "The body must not be compressed", ((b"accept-encoding", b"identity"),)),
    ),
    (errors.Overloaded, Kind("overloaded", 503, "Too many requests are waiting", _RETRY_1_S)),
    (
        errors.OutcomeUnknown,
        Kind("outcome_unknown", 503, "The write may or may not have been done", _RETRY_1_S),
    ),
    (errors.DatabaseUnavailable, Kind("unavailable", 503, "The database cannot be reached", _RETRY_1_S)),
    (router.NoSuchPath, Kind("not_found", 404, "There is no such path")),
    (router.MethodNotAllowed, Kind("method_not_allowed", 405, "The path does not allow this method")),
)

KINDS = (*(kind for _, kind in TABLE), INTERNAL)


class FieldProblem(msgspec.Struct, frozen=True):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error response."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldProblem] | None = None


def kind_of(error: Exception) -> Kind:
    """Returns the kind of `error` in the table; INTERNAL if it is not there, which is a bug."""
    return next((kind for type_, kind in TABLE if isinstance(error, type_)), INTERNAL)


def code_and_detail(error: Exception) -> tuple[str, str]:
    """Returns the code and the detail of the problem for `error`, for an answer about several things."""
    kind = kind_of(error)
    return kind.code, _printable(_detail(error, kind, ""))


def response(error: Exception, root_path: str = "") -> Response:
    """Returns the response for `error`. Paths in it begin with `root_path`."""
    kind = kind_of(error)
    fields = None
    if isinstance(error, errors.InvalidField):
        fields = [FieldProblem(_printable(field), _printable(text)) for field, text in error.errors.items()]
    problem = Problem(
        type=f"{root_path}/docs#{kind.code}",
        title=kind.title,
        status=kind.status,
        code=kind.code,
        detail=_printable(_detail(error, kind, root_path)),
        errors=fields,
    )
    return Response(kind.status, (*_PROBLEM_HEADERS, *_headers(error, kind)), msgspec.json.encode(problem))


def _headers(error: Exception, kind: Kind) -> Headers:
    if isinstance(error, access.RateLimited):
        return ((b"retry-after", str(error.retry_after_s).encode()),)
    if isinstance(error, router.MethodNotAllowed):
        return ((b"allow", error.allowed.encode()),)
    return kind.headers


def _detail(error: Exception, kind: Kind, root_path: str) -> str:
    if kind is INTERNAL:
        return "the cause is in the server's log"
    if isinstance(error, errors.DatabaseUnavailable):
        # The error names the host and the cause. They are in the log, and not for clients.
        return "PostgreSQL cannot be reached; nothing was changed"
    if isinstance(error, router.NoSuchPath):
        return f"no route has this path; {root_path}/docs lists the routes"
    return str(error)


def _printable(text: str) -> str:
    """Cuts a long text, and escapes what UTF-8 cannot encode: it may quote the request."""
    shown = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return shown.encode("utf-8", "backslashreplace").decode()
