"""Runs `leaderboard` so that the rank index and the cache of seasons work hard on small boards.

There are many checkpoints, which are moved, added and removed all the time. A season is loaded into the cache at
the first read that the cache does not answer.
"""

from functools import partial

from leaderboard import granian_worker, server
from leaderboard.cli import main
from leaderboard.tuning import RankIndexTuning, SeasonTuning, Tuning

TUNING = Tuning(
    ranks=RankIndexTuning(width=3, max_checkpoints=20, apply_from=3),
    seasons=SeasonTuning(load_after=1, report_s=0.2),
)

server.serve = partial(server.serve, load=partial(granian_worker.load, tuning=TUNING))

if __name__ == "__main__":
    main()
