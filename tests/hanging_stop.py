"""Runs `leaderboard` so that its end hangs.

HANGS=closing: while it closes. HANGS=thread: it has a thread that never ends.
"""

import os
import threading
import time

from leaderboard.app import App
from leaderboard.cli import main

HANGS_S = 3600


async def close(_app: App) -> None:
    """Blocks the event loop, as a lock that is never released would."""
    time.sleep(HANGS_S)  # noqa: ASYNC251


if __name__ == "__main__":
    if os.environ["HANGS"] == "closing":
        App.close = close  # type: ignore[method-assign,assignment]
    else:
        opened = App.http

        def http(app: App):  # type: ignore[no-untyped-def]
            """Starts a thread that Python would wait for at its end."""
            threading.Thread(target=time.sleep, args=[HANGS_S]).start()
            return opened(app)

        App.http = http  # type: ignore[method-assign,assignment]
    main()
