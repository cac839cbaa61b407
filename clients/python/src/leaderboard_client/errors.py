"""The exceptions of the client.

LeaderboardError
├── ApiError                     the service refused the request
│   ├── InvalidInput
│   │   ├── InvalidField
│   │   └── InvalidParameter
│   ├── NotFound
│   │   ├── UserNotFound
│   │   ├── BoardNotFound
│   │   ├── SeasonNotFound
│   │   ├── NotOnBoard
│   │   └── PathNotFound
│   ├── Conflict
│   │   ├── UsernameTaken
│   │   ├── ExternalIdTaken
│   │   ├── ExternalIdFixed
│   │   ├── BoardInUse
│   │   ├── IdempotencyKeyReused
│   │   └── IdempotencyKeyInUse
│   ├── AccessDenied
│   │   ├── Unauthorized
│   │   └── Forbidden
│   ├── RateLimited
│   │   └── TooManyIdempotencyKeys
│   ├── Unavailable
│   │   ├── Overloaded
│   │   ├── OutcomeUnknown
│   │   └── IdempotencyKeysFull
│   ├── UnreadableRequest        the service could not read the request
│   └── InternalError
├── UnexpectedAnswer             an answer that is not the service's, such as a proxy's page
└── TransportError               no complete answer
    ├── ConnectFailed            the request was not sent
    ├── ConnectionLost
    └── TimedOut
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from leaderboard_client import exact_json

_SHOWN = 200
"""Characters of an unexpected answer that its error shows."""


@dataclass(frozen=True, slots=True)
class Request:
    """The request that an error is about. It has no credentials, so that the error may be logged."""

    method: str
    url: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What the service says about an error.

    `fields` has the message for each wrong field. `retry_after_s` is None if the service named no time.
    """

    status: int
    code: str
    title: str
    detail: str
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None


class LeaderboardError(Exception):
    """A call failed.

    Attributes:
        request: the request that was sent last.
        attempts: how often it was sent.
        temporary: the same request may succeed later.
        outcome_unknown: the request changes something, and that may have been done or not. To find out and do it
            once, call again with `idempotency_key=error.request.idempotency_key`.
    """

    temporary: bool = False
    outcome_unknown: bool = False
    attempts: int = 1

    def __init__(self, message: str, request: Request) -> None:
        super().__init__(message, request)
        self.request = request

    def __str__(self) -> str:
        return f"{self.request.method} {self.request.url}: {self.args[0]}"

    @property
    def retry_after_s(self) -> float | None:
        """How long to wait before another attempt, in seconds; None if the service named no time."""
        return None


class ApiError(LeaderboardError):
    """The service refused the request. A code that this version does not know has this class itself.

    Attributes:
        status: the HTTP status.
        code: what is wrong, for programs. docs/errors.md lists all codes.
        detail: what is wrong, for people.
        fields: the message for each wrong field.
    """

    def __init__(self, problem: Problem, request: Request) -> None:
        super().__init__(f"{problem.code}: {problem.detail}", request)
        # What pickle calls the class with.
        self.args = (problem, request)
        self.problem = problem
        self.temporary = problem.code in _TEMPORARY or (problem.code not in CODES and problem.status in {429, 503})
        self.outcome_unknown = problem.code in OUTCOME_UNKNOWN or (
            problem.code not in CODES and problem.status >= 500
        )

    def __str__(self) -> str:
        return f"{self.request.method} {self.request.url}: {self.status} {self.code}: {self.detail}"

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def detail(self) -> str:
        return self.problem.detail

    @property
    def fields(self) -> Mapping[str, str]:
        return self.problem.fields

    @property
    def retry_after_s(self) -> float | None:
        return self.problem.retry_after_s


class InvalidInput(ApiError):
    """A value is not allowed. Nothing was changed."""


class InvalidField(InvalidInput):
    """A member of the body is not allowed; `fields` has a message for each."""


class InvalidParameter(InvalidInput):
    """A value in the path, in the query string or in a header is not allowed."""


class NotFound(ApiError):
    """What the request names does not exist."""


class UserNotFound(NotFound):
    """No user has this id or name."""


class BoardNotFound(NotFound):
    """No board has this name."""


class SeasonNotFound(NotFound):
    """The board has no such season, or does not keep it any more."""


class NotOnBoard(NotFound):
    """The user has no entry in this season of the board."""


class PathNotFound(NotFound):
    """The service has no such call. The address of the service may be wrong, or its version older."""


class Conflict(ApiError):
    """The request does not fit to the present state. Nothing was changed."""


class UsernameTaken(Conflict):
    """Another user has this name."""


class ExternalIdTaken(Conflict):
    """Another user has this external id."""


class ExternalIdFixed(Conflict):
    """The user has another external id, which cannot be changed."""


class BoardInUse(Conflict):
    """The board cannot be changed like this, because of its entries or because it is `default`."""


class IdempotencyKeyReused(Conflict):
    """The idempotency key was used for another request."""


class IdempotencyKeyInUse(Conflict):
    """A request with the same idempotency key is in progress."""


class AccessDenied(ApiError):
    """The caller may not do this. Nothing was changed."""


class Unauthorized(AccessDenied):
    """The key is missing, unknown or expired."""


class Forbidden(AccessDenied):
    """The key does not allow this call."""


class RateLimited(ApiError):
    """The caller has sent too many requests; `retry_after_s` says when to go on."""


class TooManyIdempotencyKeys(RateLimited):
    """The caller has as many idempotency keys as one caller may."""


class Unavailable(ApiError):
    """The service cannot do this now."""


class Overloaded(Unavailable):
    """Too many requests are waiting. Nothing was changed."""


class OutcomeUnknown(Unavailable):
    """The service lost PostgreSQL during the write. It was done completely or not at all."""


class IdempotencyKeysFull(Unavailable):
    """All callers together have as many idempotency keys as may be. Nothing was changed."""


class UnreadableRequest(ApiError):
    """The service could not read the request, or does not serve this host. Nothing was changed."""


class InternalError(ApiError):
    """A bug in the service, or a statement that PostgreSQL refused. A write may have been done or not."""


class UnexpectedAnswer(LeaderboardError):
    """The answer is not one of the service, such as a page of a proxy or a redirect.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, what: str, request: Request, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {what}", request)
        self.args = (status, what, request, retry_after_s)
        self.status = status
        self._retry_after_s = retry_after_s
        # A proxy that answers 5xx may have passed the request on.
        self.temporary = status in {429, 502, 503, 504}
        self.outcome_unknown = status >= 500 or status < 300

    def __str__(self) -> str:
        return f"{self.request.method} {self.request.url}: unexpected answer {self.status}: {self.args[1]}"

    @property
    def retry_after_s(self) -> float | None:
        return self._retry_after_s


class TransportError(LeaderboardError):
    """No complete answer arrived. The cause is an exception of httpx."""


class ConnectFailed(TransportError):
    """No connection could be opened, or none was free. The request was not sent."""

    temporary = True


class ConnectionLost(TransportError):
    """The connection ended before the answer was complete."""

    temporary = True
    outcome_unknown = True


class TimedOut(TransportError):
    """The answer did not arrive in time."""

    temporary = True
    outcome_unknown = True


CODES: Mapping[str, type[ApiError]] = {
    "malformed_json": UnreadableRequest,
    "client_gone": UnreadableRequest,
    "invalid_host": UnreadableRequest,
    "misdirected_request": UnreadableRequest,
    "invalid_field": InvalidField,
    "invalid_parameter": InvalidParameter,
    "unauthorized": Unauthorized,
    "forbidden": Forbidden,
    "cross_origin_write": Forbidden,
    "rate_limited": RateLimited,
    "user_not_found": UserNotFound,
    "board_not_found": BoardNotFound,
    "season_not_found": SeasonNotFound,
    "not_on_board": NotOnBoard,
    "board_in_use": BoardInUse,
    "username_taken": UsernameTaken,
    "external_id_taken": ExternalIdTaken,
    "external_id_fixed": ExternalIdFixed,
    "idempotency_key_reused": IdempotencyKeyReused,
    "idempotency_key_in_use": IdempotencyKeyInUse,
    "too_many_idempotency_keys": TooManyIdempotencyKeys,
    "idempotency_keys_full": IdempotencyKeysFull,
    "request_timeout": UnreadableRequest,
    "body_too_large": UnreadableRequest,
    "unsupported_media_type": UnreadableRequest,
    "unsupported_encoding": UnreadableRequest,
    "overloaded": Overloaded,
    "outcome_unknown": OutcomeUnknown,
    "unavailable": Unavailable,
    "not_found": PathNotFound,
    "method_not_allowed": UnreadableRequest,
    "internal_error": InternalError,
}
"""The class of each code of the service."""

OUTCOME_UNKNOWN = frozenset({"outcome_unknown", "idempotency_key_in_use", "internal_error"})
"""The codes with which a write may have been done."""
_TEMPORARY = frozenset(
    {
        *("client_gone", "request_timeout", "rate_limited", "too_many_idempotency_keys"),
        *("idempotency_keys_full", "idempotency_key_in_use", "overloaded", "outcome_unknown", "unavailable"),
    }
)

_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


def is_temporary(code: str) -> bool:
    """Returns whether the same request may succeed later."""
    return code in _TEMPORARY


def refusal(response: httpx.Response, request: Request) -> LeaderboardError:
    """Returns the error that a response with an error status says."""
    retry_after_s = _retry_after_s(response)
    try:
        members = exact_json.decode(response.content)
        problem = Problem(
            response.status_code,
            _text(members["code"]),
            _text(members["title"]),
            _text(members["detail"]),
            {_text(each["field"]): _text(each["message"]) for each in members.get("errors", ())},
            retry_after_s,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return UnexpectedAnswer(response.status_code, _beginning(response), request, retry_after_s)
    return CODES.get(problem.code, ApiError)(problem, request)


def unexpected(response: httpx.Response, request: Request) -> UnexpectedAnswer:
    """Returns the error for a response that is not of the documented form."""
    return UnexpectedAnswer(response.status_code, _beginning(response), request)


def transport_error(error: httpx.RequestError, request: Request) -> TransportError:
    """Returns our error for one of httpx, which becomes its cause."""
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    class_: type[TransportError] = ConnectionLost
    if isinstance(error, _NOT_SENT):
        class_ = ConnectFailed
    elif isinstance(error, httpx.TimeoutException):
        class_ = TimedOut
    ours = class_(message, request)
    ours.__cause__ = error
    # A request that httpx cannot send will not become another one.
    ours.temporary = not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
    return ours


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("not a string")


def _beginning(response: httpx.Response) -> str:
    if response.has_redirect_location:
        return f"moved to {response.headers['location']}"
    return repr(response.text[:_SHOWN])


def _retry_after_s(response: httpx.Response) -> float | None:
    """Returns the header Retry-After in seconds: a number or, from some proxies, a date."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
