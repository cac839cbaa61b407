"""Runs `leaderboard` without the pause before a cache is rebuilt that is lost again and again."""

from functools import partial

from leaderboard import server
from leaderboard.cli import main
from leaderboard.tuning import SyncTuning, Tuning

server.serve = partial(server.serve, tuning=Tuning(sync=SyncTuning(max_rebuild_pause_s=0.01)))

if __name__ == "__main__":
    main()
