"""`leaderboard`, which does not wait before it rebuilds a cache that is lost again and again."""

from leaderboard import sync
from leaderboard.cli import main

sync.LONGEST_PAUSE_S = 0.01

if __name__ == "__main__":
    main()
