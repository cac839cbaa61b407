"""The addresses of the development servers, as settings of the service."""

from dataclasses import dataclass, field
from typing import Self

from leaderboard.dev.postgres import EmbeddedPostgres
from leaderboard.dev.server import HOST
from leaderboard.dev.valkey import EmbeddedValkey


@dataclass(frozen=True)
class Endpoints:
    """Where two started servers are reached, in the fields of `Settings`: `load(**asdict(endpoints))`.

    It has every field about a connection, because the environment may hold values for other servers.
    """

    db_host: str
    db_port: int
    db_name: str
    db_user: str
    db_password: str = field(repr=False)
    redis_url: str = field(repr=False)
    database_url: str = ""
    db_sslmode: str = "prefer"
    db_sslrootcert: str = ""
    db_sslcert: str = ""
    db_sslkey: str = ""
    redis_password: str = ""
    redis_sslrootcert: str = ""
    redis_sslcert: str = ""
    redis_sslkey: str = ""

    @classmethod
    def of(cls, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, db_name: str = "leaderboard") -> Self:
        """Return the endpoints of two started servers. Does not create the database."""
        return cls(HOST, postgres.port, db_name, postgres.user, postgres.password, valkey.url)
