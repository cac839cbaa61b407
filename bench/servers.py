"""PostgreSQL and Valkey for one benchmark, deleted at its end."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from leaderboard.config import Settings, load
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints

POSTGRES = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
"""Settings that differ from PostgreSQL's defaults, which are for machines with little memory."""

PATIENT = {"statement_timeout": "0"}
"""Settings for the benchmark's own connections, whose statements may take long."""


@contextmanager
def servers(**settings: object) -> Iterator[Settings]:
    """Starts two servers and yields the settings for a service on them. Commits are durable."""
    with tempfile.TemporaryDirectory(prefix="leaderboard-bench-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL refuses root, and runs as another account
        postgres = EmbeddedPostgres(folder, durable=True, settings=POSTGRES)
        try:
            with postgres, EmbeddedValkey(folder) as valkey:
                endpoints = Endpoints.of(postgres, valkey)
                postgres.create_database(endpoints.db_name)
                yield load(None, **asdict(endpoints), **settings)
        finally:
            postgres.remove()
