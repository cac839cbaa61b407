"""Runs `leaderboard` without the pause before a cache is rebuilt that is lost again and again."""

from functools import partial

from leaderboard import granian_worker, server
from leaderboard.cli import main
from leaderboard.tuning import SyncTuning, Tuning

TUNING = Tuning(sync=SyncTuning(max_rebuild_pause_s=0.01))

server.serve = partial(server.serve, load=partial(granian_worker.load, tuning=TUNING))

if __name__ == "__main__":
    main()
