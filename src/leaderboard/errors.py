"""What can go wrong, in the words of the domain; how HTTP says it stands in `http/problems.py`.

LeaderboardError
├── InvalidInput               the caller's fault, and nothing was changed
│   ├── InvalidField           fields of a record, each with a message
│   └── InvalidParameter       a path or query parameter
├── UserNotFound
├── UsernameTaken
├── IdempotencyKeyReused       the key belongs to another request
├── IdempotencyKeyInUse        a request with this key is under way
├── TooManyIdempotencyKeys     the caller has as many keys as one caller may have
├── Unavailable                try again
│   ├── Overloaded             more requests are waiting than the bound allows
│   │   └── LockedOut          another transaction holds what this one would change
│   ├── IdempotencyKeysFull    as many keys are kept as may be, of all callers together
│   ├── DatabaseUnavailable       PostgreSQL cannot be used now; nothing was changed
│   │   └── DatabaseReadOnly      it is a standby, or takes no writes
│   └── OutcomeUnknown         PostgreSQL was lost between a write and its answer: done or not, never half
├── DatabaseRefused               PostgreSQL answered with an error that is not the caller's fault
├── SchemaOutdated             the database wants `leaderboard migrate`
└── CacheError                 never reaches a caller: reads go to PostgreSQL instead
    ├── CacheUnavailable       no answer from Redis
    │   └── CacheHangs         not in time, and it may go on at any moment
    ├── CacheDamaged           Redis holds something that this program did not write; it has been dropped
    ├── CacheUnsupported       what REDIS_URL names cannot be used as it is, now or later
    └── CacheRefused           Redis answered that it will not (out of memory, read only, …)
"""


class LeaderboardError(Exception):
    """The root: anything this service raises on purpose."""


class InvalidInput(LeaderboardError):
    """The caller asked for something that cannot be."""


class InvalidField(InvalidInput):
    """One or more fields of a record are not acceptable.

    `errors` maps each bad field to what is wrong with it and what is allowed.
    """

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors.items()))
        self.errors = errors


class InvalidParameter(InvalidInput):
    """A parameter is not acceptable; says which, what it was and what is allowed."""

    def __init__(self, name: str, value: str, allowed: str) -> None:
        shown = value if len(value) <= 40 else value[:40] + "…"
        super().__init__(f"{name} is {shown!r}, must be {allowed}")
        self.name = name


class UserNotFound(LeaderboardError):
    """No user has this id."""

    def __init__(self, user_id: int) -> None:
        super().__init__(f"no user has the id {user_id}")
        self.user_id = user_id


class UsernameTaken(LeaderboardError):
    """Another user has this name."""

    def __init__(self, user_name: str) -> None:
        super().__init__(f"the username {user_name!r} is taken")
        self.user_name = user_name


class IdempotencyKeyReused(LeaderboardError):
    """The idempotency key came with something else before; nothing was changed now."""


class IdempotencyKeyInUse(LeaderboardError):
    """A request with the same idempotency key is under way; nothing was changed by this one."""


class TooManyIdempotencyKeys(LeaderboardError):
    """The caller has as many idempotency keys as one caller may have; nothing was changed."""


class Unavailable(LeaderboardError):
    """Not now; the same request may succeed later."""


class Overloaded(Unavailable):
    """A queue is full."""


class LockedOut(Overloaded):
    """Somebody else's transaction holds the row or the name, and has not ended in time."""


class IdempotencyKeysFull(Unavailable):
    """As many idempotency keys are kept as may be, of all callers together; nothing was changed."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL could not be asked, and nothing was changed."""


class DatabaseReadOnly(DatabaseUnavailable):
    """The PostgreSQL server is a standby, or refuses writes; nothing was changed."""


class OutcomeUnknown(Unavailable):
    """The connection broke while a write was under way: it is done wholly or not at all, but which is unknown."""


class DatabaseRefused(LeaderboardError):
    """PostgreSQL refused a statement, for instance by a constraint somebody added; nothing was changed."""


class SchemaOutdated(LeaderboardError):
    """The database's schema is older than this program."""


class CacheError(LeaderboardError):
    """The cache cannot be used just now."""


class CacheUnavailable(CacheError):
    """Redis did not answer, or not in time."""


class CacheHangs(CacheUnavailable):
    """Redis did not answer in time; trying again may still succeed."""


class CacheDamaged(CacheError):
    """Redis holds something that this program did not write: says what. It has been dropped."""


class CacheUnsupported(CacheError):
    """What REDIS_URL names cannot be the cache, whatever its state: an old Redis, another kind of server."""


class CacheRefused(CacheError):
    """Redis answered that it will not do this."""
