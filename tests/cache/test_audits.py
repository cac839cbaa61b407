"""An audit compares the cache with the database at one snapshot."""

import asyncio

import pytest

from leaderboard.app import App
from leaderboard.cache import keys
from leaderboard.cache.format import member
from leaderboard.maintenance.audits import CacheAudits
from tests.cache.processes import KEPT, Held, cached, make_valid, metric
from tests.system import redis, sql, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("how", ["a score", "a name"])
async def test_an_audit_finds_a_difference_and_the_cache_is_rebuilt(one: App, how: str) -> None:
    await make_valid(one)
    client = redis(one.settings)
    if how == "a score":
        client.zadd(keys.SCORES, {member(7): -5000})
    else:
        client.hset(keys.METADATA, member(7), b'{"username":"mallory","imageUrl":null}')
    assert [difference.user_id for difference in (await one.sync.auditor.audit()).differences] == [7]
    auditing = asyncio.create_task(CacheAudits(one.sync, one.metrics, 0.2).run())

    async def healed() -> bool:
        return await cached(one) == (await one.database.users.top(KEPT)).value

    try:
        await until(healed, "the cache has the users of the database again")
    finally:
        auditing.cancel()
    assert metric(one, "leaderboard_audit_differences_total") >= 1


async def test_an_audit_compares_at_one_snapshot(one: App, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_valid(one)
    exported = Held(monkeypatch, one.cache, "export")
    auditing = asyncio.create_task(one.sync.auditor.audit())
    await exported.reached()
    sql(one.settings, "UPDATE users SET total_score = 5000 WHERE user_id = 7")
    exported.release()
    audit = await auditing
    assert (audit.compared, audit.differences) == (KEPT, [])
