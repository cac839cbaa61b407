"""PostgreSQL and Valkey from wheels, for `leaderboard dev` and the tests, without Docker or root.

A data folder has one owner at a time. If an owner is killed, its servers go on running; the next owner ends them.
All calls block, so do not make them in an event loop. Times are in seconds.

Other accounts of the machine cannot read the files. If root starts PostgreSQL, the server runs as `nobody`, an
account that other programs use too. Only the cluster then belongs to `nobody`. It may enter the folders above the
cluster, but not list or change them.
"""

from leaderboard.dev.endpoints import Endpoints
from leaderboard.dev.errors import EmbeddedError
from leaderboard.dev.postgres import EmbeddedPostgres
from leaderboard.dev.server import HOST, PORTS
from leaderboard.dev.valkey import EmbeddedValkey

__all__ = ["HOST", "PORTS", "EmbeddedError", "EmbeddedPostgres", "EmbeddedValkey", "Endpoints"]
