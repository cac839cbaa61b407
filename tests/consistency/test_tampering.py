"""Invalid data is written to the cache: no call fails, and the cache is rebuilt."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.config import Settings
from tests.system import QUICK_REBUILDS, ApiProcess, eventually, redis, sql

Serve = Callable[..., ApiProcess]

USERS = 40
CACHE_SIZE = 12
SECOND = member(2)
FAR_AHEAD = 10**9


@dataclass(frozen=True)
class Tampering:
    """A change of the cache's keys by a client of its server.

    With `renew` the cache also gets another token, so that every process reads it again.
    """

    what: str
    do: Callable[[Any], Any]
    renew: bool = False


def _replace_member(member: bytes | str) -> Callable[[Any], None]:
    """Replaces user 2 by another member in both keys, so that the counts stay right."""

    def do(server: Any) -> None:
        score, metadata = server.zscore(keys.SCORES, SECOND), server.hget(keys.METADATA, SECOND)
        assert score is not None
        assert metadata is not None
        server.zrem(keys.SCORES, SECOND)
        server.hdel(keys.METADATA, SECOND)
        server.zadd(keys.SCORES, {member: score})
        server.hset(keys.METADATA, member, metadata)

    return do


def _score(score: float) -> Callable[[Any], Any]:
    return lambda server: server.zadd(keys.SCORES, {SECOND: score})


def _metadata(value: bytes) -> Callable[[Any], Any]:
    return lambda server: server.hset(keys.METADATA, SECOND, value)


def _state(field: str, value: bytes | str | int) -> Callable[[Any], Any]:
    return lambda server: server.hset(keys.STATE, field, value)


def _delete(key: str) -> Callable[[Any], Any]:
    return lambda server: server.delete(key)


def _delete_field(field: str) -> Callable[[Any], Any]:
    return lambda server: server.hdel(keys.STATE, field)


def _another_type(key: str) -> Callable[[Any], Any]:
    def do(server: Any) -> None:
        was_string = server.type(key) == b"string"
        server.delete(key)
        server.lpush(key, "invalid") if was_string else server.set(key, "invalid")

    return do


def _delta(delta: bytes) -> Callable[[Any], Any]:
    """Adds a delta that leads from the present state to another one."""

    def do(server: Any) -> None:
        token, new = server.hget(keys.STATE, "token"), secrets.token_hex(8).encode()
        assert token is not None
        server.rpush(keys.DELTAS, token + new + delta)
        server.hset(keys.STATE, "token", new)

    return do


def _lose_user(server: Any) -> None:
    server.zrem(keys.SCORES, SECOND)
    server.hdel(keys.METADATA, SECOND)
    server.hincrby(keys.STATE, "count", -1)


EVERY_KEY = (keys.SCORES, keys.METADATA, keys.STATE, keys.LEASE, keys.CLAIM, keys.DELTAS)

TAMPERINGS = [
    *(Tampering(f"{key} deleted", _delete(key)) for key in EVERY_KEY),
    *(Tampering(f"{key} of another type", _another_type(key)) for key in EVERY_KEY),
    Tampering("a member that is no number", _replace_member("a text"), renew=True),
    Tampering("a member without zeros", _replace_member("2"), renew=True),
    Tampering("a member with a sign", _replace_member("-000000002"), renew=True),
    Tampering("a member beyond all ids", _replace_member("9999999999"), renew=True),
    Tampering("a member that is not UTF-8", _replace_member(b"\xff\xfe"), renew=True),
    Tampering("a member that is another user", _replace_member(member(USERS + 1000)), renew=True),
    Tampering("a score inf", _score(float("inf")), renew=True),
    Tampering("a score -inf", _score(float("-inf")), renew=True),
    Tampering("a score with a fraction", _score(1.5), renew=True),
    Tampering("a score beyond all scores", _score(1e300), renew=True),
    Tampering("another score", _score(-12345), renew=True),
    Tampering("metadata that are no JSON", _metadata(b"nope"), renew=True),
    Tampering("metadata that are not UTF-8", _metadata(b'{"username":"\xff","imageUrl":null}'), renew=True),
    Tampering("half a surrogate pair", _metadata(b'{"username":"\\ud800","imageUrl":null}'), renew=True),
    Tampering("metadata that are an array", _metadata(b"[]"), renew=True),
    Tampering("metadata without an image", _metadata(b'{"username":"two"}'), renew=True),
    Tampering("a name that is a number", _metadata(b'{"username":2,"imageUrl":null}'), renew=True),
    Tampering("another name", _metadata(b'{"username":"another","imageUrl":null}'), renew=True),
    Tampering("a lost user with a fitting count", _lose_user, renew=True),
    *(
        Tampering(f"state: {field} is {value!r}", _state(field, value), renew=True)
        for field in ("epoch", "snapshot", "floor", "count", "total", "asof", "valid")
        for value in (b"\xff", b"", b"1e3", b"-1")
    ),
    *(
        Tampering(f"state: no {field}", _delete_field(field))
        for field in ("token", "epoch", "snapshot", "floor", "count", "total", "asof", "valid")
    ),
    Tampering("state: a snapshot of the future", _state("snapshot", f"{FAR_AHEAD}:{FAR_AHEAD}:"), renew=True),
    Tampering("state: as of the future", _state("asof", 4 * 10**15), renew=True),
    Tampering("state: a larger total", _state("total", USERS + 1), renew=True),
    Tampering("state: a lower floor", _state("floor", "-1000,1"), renew=True),
    Tampering("state: a higher floor", _state("floor", f"{10**6},1"), renew=True),
    Tampering("a malformed delta", _delta(b"\xc1")),
    Tampering("a delta with a name that is not UTF-8", _delta(b"\x93\x14\x90\x91\x94\x02\xa2\xff\xff\xc0\x01")),
    Tampering("a delta with a wrong score", _delta(b"\x93\x14\x90\x91\x94\x02\xa3two\xc0\x01")),
    Tampering("a lease that does not expire", lambda server: server.set(keys.LEASE, "x")),
    Tampering(
        "a claim that does not expire, and no cache",
        lambda server: (server.set(keys.CLAIM, "x"), server.delete(keys.STATE)),
    ),
    Tampering(
        "a lease and a claim for an hour, and no cache",
        lambda server: (
            server.set(keys.CLAIM, "x", ex=3600),
            server.set(keys.LEASE, "x", ex=3600),
            server.delete(keys.STATE),
        ),
    ),
]

READS = ("/leaderboard/top/3", f"/leaderboard/top/{CACHE_SIZE}", "/users/2", "/leaderboard/user/2/context")


@pytest.fixture(params=[CACHE_SIZE, 100], ids=["the best", "all users"])
def api(request: pytest.FixtureRequest, settings: Settings, serve: Serve) -> ApiProcess:
    """A process that caches the best users or all users, and audits the cache continuously."""
    sql(
        settings,
        "INSERT INTO users (user_name, total_score) SELECT 'user ' || i, 1000 - i FROM generate_series(1, $1) i",
        USERS,
    )
    return serve(program=QUICK_REBUILDS, cache_size=request.param, audit_interval_s=0.1, sync_interval_ms=50)


def expected_users(settings: Settings) -> tuple[list[Any], dict[bytes, float]]:
    """Returns the expected users, best first, as in responses, and the expected sorted set."""
    rows = sql(
        settings, "SELECT user_id, user_name, total_score FROM users ORDER BY total_score DESC, user_id ASC"
    )
    ranked = [
        {"rank": n, "userId": row[0], "username": row[1], "imageUrl": None, "score": row[2]}
        for n, row in enumerate(rows, 1)
    ]
    return ranked, {member(row[0]).encode(): -float(row[2]) for row in rows}


def is_right(settings: Settings, server: Any) -> bool:
    """Returns whether the cache is valid and has the right users."""
    types = {keys.SCORES: b"zset", keys.METADATA: b"hash", keys.STATE: b"hash"}
    if any(server.type(key) != kind for key, kind in types.items()):
        return False
    valid, count, floor, total = server.hmget(keys.STATE, "valid", "count", "floor", "total")
    if valid != b"1" or not count or not count.isdigit() or floor is None or total != str(USERS).encode():
        return False
    ranked, scores = expected_users(settings)
    if floor:
        lowest, last = map(int, floor.split(b","))
        above = [user for user in ranked if (-user["score"], user["userId"]) <= (-lowest, last)]
    else:
        above = ranked
    held = dict(server.zrange(keys.SCORES, 0, -1, withscores=True))
    described = server.hgetall(keys.METADATA)
    names = {member(user["userId"]).encode(): user["username"] for user in ranked}
    return (
        int(count) == len(held) == len(above) >= CACHE_SIZE
        and held.items() <= scores.items()
        and described.keys() == held.keys()
        and all(json.loads(value)["username"] == names[member] for member, value in described.items())
    )


def test_no_call_fails_and_the_cache_is_rebuilt(
    api: ApiProcess, settings: Settings, subtests: pytest.Subtests
) -> None:
    server = redis(settings)
    score = 2000
    for tampering in TAMPERINGS:
        with subtests.test(tampering.what):
            eventually(lambda: is_right(settings, server), 20, "the cache is right")
            score += 1
            tampering.do(server)
            if tampering.renew:
                server.hset(keys.STATE, "token", secrets.token_hex(8))

            def no_call_fails() -> bool:
                for path in READS:
                    answer = api.client.get(path)
                    # 404: wrong but well-formed data is used until the next audit.
                    assert answer.status_code in {200, 404}, f"{path}: {answer.status_code} {answer.text}"
                return is_right(settings, server)

            eventually(no_call_fails, 20, "the cache heals")
            assert api.set(2, score).status_code == 200
            eventually(no_call_fails, 20, "the cache heals")
            ranked, _ = expected_users(settings)
            assert api.client.get(READS[0]).json()["users"] == ranked[:3]
            assert api.client.get(READS[1]).json()["users"] == ranked[:CACHE_SIZE]
            assert api.client.get(READS[2]).json() == ranked[0]
            context = api.client.get(READS[3]).json()
            assert (context["user"], context["below"], context["total"]) == (ranked[0], ranked[1:6], USERS)
            assert api.status() == "ok"
