"""The error of the development servers."""

from leaderboard.errors import LeaderboardError


class EmbeddedError(LeaderboardError):
    """A server could not be started, ended or used.

    The message says what to do, or ends with the last lines of the server's log.
    """
