"""`leaderboard migrate`: the schema of the database."""

import asyncio

from leaderboard import app
from leaderboard.cli.options import settings_with


def migrate() -> None:
    """Bring the database schema up to date."""
    steps = asyncio.run(app.database_from(settings_with()).migrate(print))
    if not steps:
        print("the schema is up to date")
