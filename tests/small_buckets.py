"""Runs `leaderboard` with many checkpoints on a small board, which are moved, added and removed all the time."""

from functools import partial

from leaderboard import granian_worker, server
from leaderboard.cli import main
from leaderboard.tuning import RankIndexTuning, Tuning

TUNING = Tuning(ranks=RankIndexTuning(width=3, max_checkpoints=20, apply_from=3))

server.serve = partial(server.serve, load=partial(granian_worker.load, tuning=TUNING))

if __name__ == "__main__":
    main()
