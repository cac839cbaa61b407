"""`leaderboard`, with a rank index whose fences stand close together and which is folded early: a small board has
many fences then, and they are moved, set and taken out all the time.
"""

from leaderboard.cli import main
from leaderboard.database import rank_index

rank_index.WIDTH = 3
rank_index.MOST_FENCES = 20
rank_index.FOLD_FROM = 3

if __name__ == "__main__":
    main()
