"""Redis fails over under load: no write is lost, no read is old, and the cache is used again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from chaos.cache_failover import Cluster, Fault, WithSentinels, watch
from leaderboard.config import Settings
from tests.deploy.redis_servers import server_program
from tests.system import ApiProcess

Serve = Callable[..., ApiProcess]


@pytest.fixture(scope="module")
def cluster(module_folder: Path) -> Iterator[Cluster]:
    with Cluster(module_folder / "cluster", server_program()) as started:
        yield started


@pytest.fixture(scope="module")
def sentinels(module_folder: Path) -> Iterator[WithSentinels]:
    with WithSentinels(module_folder / "sentinels", server_program()) as started:
        yield started


@pytest.mark.parametrize("fault", Cluster.faults(), ids=lambda fault: fault.name)
def test_a_cluster(settings: Settings, serve: Serve, cluster: Cluster, fault: Fault[Cluster]) -> None:
    cluster.settle()
    url = SecretStr("redis://" + ",".join(cluster.seeds()[:2]))
    seen = watch([serve(redis_url=url) for _ in range(2)], settings, cluster, fault)
    assert (seen.lost, seen.old, seen.refused) == ([], [], 0)


@pytest.mark.parametrize("fault", WithSentinels.faults(), ids=lambda fault: fault.name)
def test_sentinels(
    settings: Settings, serve: Serve, sentinels: WithSentinels, fault: Fault[WithSentinels]
) -> None:
    sentinels.settle()
    url = SecretStr(f"redis+sentinel://{','.join(sentinels.seeds())}/{sentinels.service}")
    seen = watch([serve(redis_url=url) for _ in range(2)], settings, sentinels, fault)
    assert (seen.lost, seen.old, seen.refused) == ([], [], 0)
