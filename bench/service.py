"""One service on the benchmark's servers: its process, its metrics, and a place of its own for its data."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from leaderboard.config import Settings
from tests.system import ApiProcess

_HOSTNAME = "127.0.0.1"


class PortTaken(Exception):
    """Another process listens on the port of a service."""


@contextmanager
def running(api: ApiProcess) -> Iterator[ApiProcess]:
    """Starts the process. Raises PortTaken first, because our servers would share the port silently."""
    with socket.socket() as probe:
        if probe.connect_ex((_HOSTNAME, api.settings.port)) == 0:
            raise PortTaken(f"another process listens on port {api.settings.port}")
    try:
        yield api.start()
    finally:
        api.kill()
        api.client.close()


def pid(api: ApiProcess) -> int:
    """Returns the process id of a started service."""
    assert api.process is not None
    return api.process.pid


def metrics(api: ApiProcess) -> Mapping[str, float]:
    """Returns the metrics without labels."""
    families = text_string_to_metric_families(api.client.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def beside(settings: Settings, number: int) -> Settings:
    """Returns settings for another database of each store. Does not create the one of PostgreSQL."""
    redis_url = settings.redis_url.get_secret_value().rpartition("/")[0] + f"/{number}"
    return settings.model_copy(
        update={
            "db_name": f"{settings.db_name}_{number}",
            "redis_url": type(settings.redis_url)(redis_url),
        }
    )
