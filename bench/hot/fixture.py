"""Runs another application than ours in our server: the same Granian, with the very same options."""

from collections.abc import Callable

from leaderboard import server
from leaderboard.config import Settings, load
from leaderboard.http.asgi import AsgiApp


def serve(worker: Callable[[Settings], AsgiApp]) -> None:
    """Serve what `worker` returns in each process, until told to stop; the settings are the environment's."""
    # It is what `server.serve` hands to Granian, so that no option can come to differ from the service's.
    server._worker = worker  # type: ignore[assignment]  # noqa: SLF001
    server.serve(load(None))
