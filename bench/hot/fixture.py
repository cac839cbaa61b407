"""Runs another application in our server: the same Granian with the same options."""

from collections.abc import Callable

from leaderboard import server
from leaderboard.config import Settings, load
from leaderboard.http.call import AsgiApp


def serve(worker: Callable[[Settings], AsgiApp]) -> None:
    """Serves what `worker` returns in each process. The settings come from the environment."""
    # `server.serve` hands this to Granian, so all options are those of the service.
    server._worker = lambda settings, _tuning: worker(settings)  # type: ignore[assignment]  # noqa: SLF001
    server.serve(load(None))
