"""Runs another application in our server: the same Granian with the same options."""

from collections.abc import Callable

from leaderboard import server
from leaderboard.config import Settings, load
from leaderboard.http.asgi import AsgiApp


def serve(worker: Callable[[Settings], AsgiApp]) -> None:
    """Serve what `worker` returns in each process, until told to stop; the settings are the environment's."""
    server.serve(load(None), load=worker)
