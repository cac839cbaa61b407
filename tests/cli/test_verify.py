"""`leaderboard verify` finds errors in the cache and in the rank index, and says which of them is wrong."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from leaderboard.config import Settings
from tests.system import ApiProcess, environment, eventually, redis, sql

Serve = Callable[..., ApiProcess]

CACHE_EQUALS = "the cache equals PostgreSQL: 30 users compared at one snapshot"
INDEX_EQUALS = "the rank index equals PostgreSQL: all users counted at one snapshot"


@pytest.fixture
def board(serve: Serve) -> ApiProcess:
    """A board of 30 users that only `verify` compares."""
    return filled(serve(audit_interval_s=0))


def filled(api: ApiProcess) -> ApiProcess:
    for number in range(30):
        assert api.create(f"user {number}", number).status_code == 201
    eventually(lambda: sql(api.settings, "SELECT FROM rank_index"), what="there is a rank index")
    return api


def verify(settings: Settings) -> tuple[int, str]:
    """Return its exit status and its output."""
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "verify"],
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_equal(board: ApiProcess) -> None:
    assert verify(board.settings) == (0, f"{CACHE_EQUALS}\n{INDEX_EQUALS}\n")


def test_a_wrong_score_in_the_cache(board: ApiProcess) -> None:
    redis(board.settings).zincrby("{leaderboard}:scores", 5, f"{7:010d}")
    status, output = verify(board.settings)
    assert (status, CACHE_EQUALS in output, INDEX_EQUALS in output) == (1, False, True)
    assert "1 of 30 users differ" in output
    assert "1 user 6" in output
    assert "6 user 6" in output


def test_a_wrong_total_in_the_cache(serve: Serve) -> None:
    # If the cache holds all users, it notices a wrong total without PostgreSQL.
    board = filled(serve(audit_interval_s=0, cache_size=10))
    redis(board.settings).hincrby("{leaderboard}:state", "total", 1200)
    status, output = verify(board.settings)
    assert (status, output) == (1, f"users in all: 1,230 in the cache, 30 in PostgreSQL\n{INDEX_EQUALS}\n")


def test_a_wrong_count_in_the_rank_index(board: ApiProcess) -> None:
    sql(board.settings, "UPDATE rank_index SET counts = ARRAY[1], written_by = pg_current_xact_id()")
    status, output = verify(board.settings)
    assert (status, CACHE_EQUALS in output, INDEX_EQUALS in output) == (1, True, False)
    assert "rank index: from the best on it has 29 users, PostgreSQL has 30" in output


def test_a_missing_rank_index(board: ApiProcess) -> None:
    board.kill()
    sql(board.settings, "DELETE FROM rank_index")
    output = f"{CACHE_EQUALS}\nthere is no valid rank index now; ranks are counted\n"
    assert verify(board.settings) == (0, output)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("{leaderboard}:users:metadata", f"{7:010d}", "nope"),
        ("{leaderboard}:state", "total", "1e3"),
        ("{leaderboard}:state", "epoch", b"\xff"),
    ],
)
def test_an_unreadable_cache_is_rebuilt(board: ApiProcess, key: str, field: str, value: str | bytes) -> None:
    board.stop()
    redis(board.settings).hset(key, field, value)
    status, output = verify(board.settings)
    assert (status, CACHE_EQUALS in output, INDEX_EQUALS in output) == (1, True, True)
    assert "could not be read" in output
    assert verify(board.settings) == (0, f"{CACHE_EQUALS}\n{INDEX_EQUALS}\n")


def test_sync_rebuilds_an_unreadable_cache(board: ApiProcess) -> None:
    board.stop()
    redis(board.settings).hset("{leaderboard}:users:metadata", f"{7:010d}", "nope")
    board.run("sync")
    assert verify(board.settings) == (0, f"{CACHE_EQUALS}\n{INDEX_EQUALS}\n")
