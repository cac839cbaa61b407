"""The one table from what can go wrong to how HTTP says it, as problem details (RFC 9457)."""

from dataclasses import dataclass

import msgspec

from leaderboard import errors
from leaderboard.http import access, hosts, router, security, wire
from leaderboard.http.call import Headers

RETRY_AFTER_S = 1
_KEYS_RETRY_AFTER_S = 60
"""Idempotency keys are forgotten once a minute."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem. `code` never changes; programs may rely on it."""

    code: str
    status: int
    title: str
    headers: Headers = ()


_ALWAYS = security.wire("application/problem+json")
_LATER: Headers = ((b"retry-after", str(RETRY_AFTER_S).encode()),)
_WHEN_FORGOTTEN: Headers = ((b"retry-after", str(_KEYS_RETRY_AFTER_S).encode()),)

INTERNAL = Kind("internal_error", 500, "Something went wrong on our side")

# The first row that an error is an instance of is its kind.
TABLE: tuple[tuple[type[Exception], Kind], ...] = (
    (wire.MalformedJson, Kind("malformed_json", 400, "The body is not valid JSON")),
    (wire.ClientGone, Kind("client_gone", 400, "The request was cut short")),
    (hosts.InvalidHost, Kind("invalid_host", 400, "The header Host is missing, repeated or invalid")),
    # Not 400: the request is as it must be. It was for another host (RFC 9110, section 15.5.20).
    (access.MisdirectedRequest, Kind("misdirected_request", 421, "This service does not answer for that host")),
    (errors.InvalidField, Kind("invalid_field", 422, "A field is not acceptable")),
    (errors.InvalidParameter, Kind("invalid_parameter", 422, "A parameter is not acceptable")),
    (
        access.Unauthorized,
        Kind("unauthorized", 401, "A key is needed", ((b"www-authenticate", b"Bearer"),)),
    ),
    (access.Forbidden, Kind("forbidden", 403, "This key is not good for that")),
    (access.CrossOriginWrite, Kind("cross_origin_write", 403, "Another site's page may not write here")),
    (access.RateLimited, Kind("rate_limited", 429, "Too many requests from this caller", _LATER)),
    (errors.UserNotFound, Kind("user_not_found", 404, "There is no such user")),
    (errors.UsernameTaken, Kind("username_taken", 409, "The username is taken")),
    (
        errors.IdempotencyKeyReused,
        Kind("idempotency_key_reused", 422, "The idempotency key belongs to another request"),
    ),
    (
        errors.IdempotencyKeyInUse,
        Kind("idempotency_key_in_use", 409, "A request with this idempotency key is under way"),
    ),
    (
        errors.TooManyIdempotencyKeys,
        Kind("too_many_idempotency_keys", 429, "This caller has too many idempotency keys", _WHEN_FORGOTTEN),
    ),
    (
        errors.IdempotencyKeysFull,
        Kind("idempotency_keys_full", 503, "There are too many idempotency keys", _WHEN_FORGOTTEN),
    ),
    (
        wire.BodyTooSlow,
        Kind("request_timeout", 408, "The body did not arrive in time", ((b"connection", b"close"),)),
    ),
    (wire.BodyTooLarge, Kind("body_too_large", 413, "The body is too large")),
    (wire.UnsupportedMediaType, Kind("unsupported_media_type", 415, "The body must be JSON")),
    (
        wire.UnsupportedEncoding,
        Kind("unsupported_encoding", 415, "The body must not be compressed", ((b"accept-encoding", b"identity"),)),
    ),
    (errors.Overloaded, Kind("overloaded", 503, "Too many requests are waiting", _LATER)),
    (errors.OutcomeUnknown, Kind("outcome_unknown", 503, "The write may or may not have been done", _LATER)),
    (errors.DatabaseUnavailable, Kind("unavailable", 503, "The database cannot be reached", _LATER)),
    (router.NoSuchPath, Kind("not_found", 404, "There is nothing here")),
    (router.MethodNotAllowed, Kind("method_not_allowed", 405, "This method is not allowed here")),
)

KINDS = (*(kind for _, kind in TABLE), INTERNAL)


class FieldProblem(msgspec.Struct, frozen=True):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every refusal."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldProblem] | None = None


def kind_of(error: Exception) -> Kind:
    """The row of the table for `error`; INTERNAL for what is in none, which is a bug."""
    return next((kind for type_, kind in TABLE if isinstance(error, type_)), INTERNAL)


def render(error: Exception, root_path: str = "") -> tuple[int, Headers, bytes]:
    """Status, headers and body for `error`, whose addresses begin with `root_path`.

    The details of an internal error are left out.
    """
    kind = kind_of(error)
    headers = (*_ALWAYS, *kind.headers)
    if isinstance(error, access.RateLimited):
        headers = (*_ALWAYS, (b"retry-after", str(error.retry_after_s).encode()))
    elif isinstance(error, router.MethodNotAllowed):
        headers = (*_ALWAYS, (b"allow", error.allowed.encode()))
    detail = str(error)
    if kind is INTERNAL:
        detail = "the server's log says what"
    elif isinstance(error, errors.DatabaseUnavailable):
        # The log says which host and why; that is nobody else's business.
        detail = "PostgreSQL cannot be asked just now; nothing was changed"
    elif isinstance(error, router.NoSuchPath):
        detail = f"no call has this path; {root_path}/docs shows those there are"
    fields = None
    if isinstance(error, errors.InvalidField):
        fields = [FieldProblem(_printable(field), _printable(text)) for field, text in error.errors.items()]
    problem = Problem(
        f"{root_path}/docs#{kind.code}", kind.title, kind.status, kind.code, _printable(detail), fields
    )
    return kind.status, headers, msgspec.json.encode(problem)


def _printable(text: str) -> str:
    """`text` without what UTF-8 cannot carry, and not without end: it may quote what a client sent."""
    shown = text if len(text) <= 500 else text[:500] + "…"
    return shown.encode("utf-8", "backslashreplace").decode()
