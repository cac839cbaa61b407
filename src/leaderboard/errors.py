"""Our exceptions. `http/problems.py` maps them to HTTP.

LeaderboardError
│
│ The request cannot be done. Nothing was changed.
│
├── InvalidInput
│   ├── InvalidField
│   └── InvalidParameter
├── UserNotFound
│   ├── UsernameNotFound
│   └── ExternalIdNotFound
├── UsernameTaken
├── ExternalIdTaken
├── ExternalIdFixed
├── BoardNotFound
├── SeasonNotFound
├── NotOnBoard
├── BoardInUse
├── IdempotencyKeyReused
├── IdempotencyKeyInUse
├── TooManyIdempotencyKeys
│
│ The same request may succeed later.
│
├── Unavailable
│   ├── Overloaded
│   │   └── LockedOut
│   ├── IdempotencyKeysFull
│   ├── DatabaseUnavailable
│   │   └── DatabaseReadOnly
│   └── OutcomeUnknown
│
│ An operator has to act.
│
├── DatabaseRefused
│   └── UsernamesDiffer
├── SchemaOutdated
│
│ The cache cannot be used. Not sent to callers: reads go to PostgreSQL.
│
└── CacheError
    ├── CacheUnavailable
    │   └── CacheHangs
    ├── CacheDamaged
    ├── CacheUnsupported
    └── CacheRefused
"""


class LeaderboardError(Exception):
    """The base class of all exceptions of this service."""


# The request cannot be done. Nothing was changed.


class InvalidInput(LeaderboardError):
    """The input is not valid."""


class InvalidField(InvalidInput):
    """Fields of a record are not valid. `errors` says for each what is wrong and what is allowed."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors.items()))
        self.errors = errors


class InvalidParameter(InvalidInput):
    """A path or query parameter is not valid. The message has its name, its value and what is allowed."""

    def __init__(self, name: str, value: str, allowed: str) -> None:
        shown = value if len(value) <= 40 else value[:40] + "…"
        super().__init__(f"{name} is {shown!r}, must be {allowed}")
        self.name = name


class UserNotFound(LeaderboardError):
    """No user has this id."""

    def __init__(self, user_id: int) -> None:
        super().__init__(f"no user has the id {user_id}")
        self.user_id = user_id


class UsernameNotFound(UserNotFound):
    """No user has this username, or one that is hidden from the caller."""

    def __init__(self, user_name: str) -> None:
        LeaderboardError.__init__(self, f"no user has the username {user_name!r}")


class ExternalIdNotFound(UserNotFound):
    """No user has this external id, or one that is hidden from the caller."""

    def __init__(self, external_id: str) -> None:
        LeaderboardError.__init__(self, f"no user has the external id {external_id!r}")


class UsernameTaken(LeaderboardError):
    """Another user has this username."""

    def __init__(self, user_name: str) -> None:
        super().__init__(f"the username {user_name!r} is taken")
        self.user_name = user_name


class ExternalIdTaken(LeaderboardError):
    """Another user has this external id."""

    def __init__(self, external_id: str) -> None:
        super().__init__(f"another user has the external id {external_id!r}")


class ExternalIdFixed(LeaderboardError):
    """The user has another external id, which cannot be changed."""


class BoardNotFound(LeaderboardError):
    """No board has this name."""

    def __init__(self, board: str) -> None:
        super().__init__(f"no board has the name {board!r}")
        self.board = board


class SeasonNotFound(LeaderboardError):
    """The board has no such season, or does not keep it any more."""

    def __init__(self, board: str, number: int) -> None:
        which = f"the board {board!r} has no season {number}"
        super().__init__(which if number else f"no season of the board {board!r} has ended")
        self.board = board
        self.number = number


class NotOnBoard(LeaderboardError):
    """The user has no entry in this season, or does not exist."""

    def __init__(self, user: int | str, board: str) -> None:
        """`user` is the id of the user, or `@` with its external id."""
        super().__init__(f"the user {user} is not on the board {board!r}")
        self.board = board


class BoardInUse(LeaderboardError):
    """The board cannot be changed like this, because of its entries or because it is `default`."""


class IdempotencyKeyReused(LeaderboardError):
    """The idempotency key was used for another request."""


class IdempotencyKeyInUse(LeaderboardError):
    """A request with the same idempotency key is in progress."""


class TooManyIdempotencyKeys(LeaderboardError):
    """The caller has reached its limit of idempotency keys."""


# The same request may succeed later.


class Unavailable(LeaderboardError):
    """The service cannot do this now."""


class Overloaded(Unavailable):
    """A queue is full. Nothing was changed."""


class LockedOut(Overloaded):
    """Another transaction holds a lock on the row or the username. Nothing was changed."""


class IdempotencyKeysFull(Unavailable):
    """All callers together have reached the limit of idempotency keys. Nothing was changed."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached. Nothing was changed."""


class DatabaseReadOnly(DatabaseUnavailable):
    """PostgreSQL is a standby or refuses writes. Nothing was changed."""


class OutcomeUnknown(Unavailable):
    """The connection broke during a write. It was done completely or not at all."""


# An operator has to act.


class DatabaseRefused(LeaderboardError):
    """PostgreSQL refused a statement, for example by a constraint of the operator's. Nothing was changed."""


class UsernamesDiffer(DatabaseRefused):
    """The database compares usernames in another way than USERNAMES says. Nothing was changed."""


class SchemaOutdated(LeaderboardError):
    """The database's schema is older than this program: run `leaderboard migrate`."""


# The cache cannot be used. Not sent to callers: reads go to PostgreSQL.


class CacheError(LeaderboardError):
    """The cache cannot be used now."""


class CacheUnavailable(CacheError):
    """Redis did not answer."""


class CacheHangs(CacheUnavailable):
    """Redis did not answer in time. It may still execute the command."""


class CacheDamaged(CacheError):
    """Redis holds data that this program did not write. The cache has been deleted; the message says why."""


class CacheUnsupported(CacheError):
    """The server that REDIS_URL names can never be the cache: it is too old, or of another kind."""


class CacheRefused(CacheError):
    """Redis answered with an error, such as out of memory or read only."""
