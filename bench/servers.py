"""PostgreSQL and Valkey of our own, for one benchmark, and everything deleted at the end."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from leaderboard.config import Settings, load
from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints

POSTGRES = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
"""All that differs from PostgreSQL's own defaults, which are for a machine with less memory than any today."""

PATIENT = {"statement_timeout": "0"}
"""For a connection of the benchmark's own: what takes long is to be measured, or filled in, and not ended."""


@contextmanager
def servers(**settings: object) -> Iterator[Settings]:
    """The settings of a service on two new servers, whose commits are on disk when they say so."""
    with tempfile.TemporaryDirectory(prefix="leaderboard-bench-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL refuses root, and runs as somebody else
        postgres = EmbeddedPostgres(folder, durable=True, settings=POSTGRES)
        try:
            with postgres, EmbeddedValkey(folder) as valkey:
                endpoints = Endpoints.of(postgres, valkey)
                postgres.create_database(endpoints.db_name)
                yield load(None, **asdict(endpoints), **settings)
        finally:
            postgres.remove()
