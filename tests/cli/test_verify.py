"""`leaderboard verify` finds what is wrong with the cache and the rank index, and says of each which it is."""

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
    """A board of 30 users that nobody but `verify` looks after."""
    return filled(serve(audit_interval_s=0))


def filled(api: ApiProcess) -> ApiProcess:
    for number in range(30):
        assert api.create(f"user {number}", number).status_code == 201
    eventually(lambda: sql(api.settings, "SELECT FROM rank_index"), what="there is a rank index")
    return api


def verify(settings: Settings) -> tuple[int, str]:
    """Its exit status and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "leaderboard", "verify"],
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_all_is_well(board: ApiProcess) -> None:
    assert verify(board.settings) == (0, f"{CACHE_EQUALS}\n{INDEX_EQUALS}\n")


def test_a_user_that_the_cache_shows_otherwise(board: ApiProcess) -> None:
    redis(board.settings).zincrby("{leaderboard}:scores", 5, f"{7:010d}")
    status, said = verify(board.settings)
    assert (status, CACHE_EQUALS in said, INDEX_EQUALS in said) == (1, False, True)
    assert "1 of 30 users differ" in said
    assert "1 user 6" in said
    assert "6 user 6" in said


def test_a_total_that_the_cache_has_otherwise(serve: Serve) -> None:
    # With everybody in the cache, a total that is another one is noticed without PostgreSQL.
    board = filled(serve(audit_interval_s=0, cache_size=10))
    redis(board.settings).hincrby("{leaderboard}:state", "total", 1200)
    status, said = verify(board.settings)
    assert (status, said) == (1, f"users in all: 1,230 in the cache, 30 in PostgreSQL\n{INDEX_EQUALS}\n")


def test_a_rank_index_that_counts_otherwise(board: ApiProcess) -> None:
    sql(board.settings, "UPDATE rank_index SET counts = ARRAY[1], written_by = pg_current_xact_id()")
    status, said = verify(board.settings)
    assert (status, CACHE_EQUALS in said, INDEX_EQUALS in said) == (1, True, False)
    assert "rank index: from score 2147483647, id 1 on it has 29 users, PostgreSQL has 30" in said


def test_a_rank_index_that_is_not_there(board: ApiProcess) -> None:
    board.kill()
    sql(board.settings, "DELETE FROM rank_index")
    said = f"{CACHE_EQUALS}\nthere is no valid rank index now; ranks are counted\n"
    assert verify(board.settings) == (0, said)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("{leaderboard}:users:metadata", f"{7:010d}", "nope"),
        ("{leaderboard}:state", "total", "1e3"),
        ("{leaderboard}:state", "epoch", b"\xff"),
    ],
)
def test_a_cache_that_cannot_be_read_is_rebuilt(
    board: ApiProcess, key: str, field: str, value: str | bytes
) -> None:
    board.stop()
    redis(board.settings).hset(key, field, value)
    status, said = verify(board.settings)
    assert (status, CACHE_EQUALS in said, INDEX_EQUALS in said) == (1, True, True)
    assert "could not be read" in said
    assert verify(board.settings) == (0, f"{CACHE_EQUALS}\n{INDEX_EQUALS}\n")


def test_sync_rebuilds_a_cache_that_cannot_be_read(board: ApiProcess) -> None:
    board.stop()
    redis(board.settings).hset("{leaderboard}:users:metadata", f"{7:010d}", "nope")
    board.run("sync")
    assert verify(board.settings) == (0, f"{CACHE_EQUALS}\n{INDEX_EQUALS}\n")
