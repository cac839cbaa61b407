"""One connection to a real Redis, which is lost in unusual ways."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest

from leaderboard.cache.link import Evaluate, Link
from leaderboard.cache.scripts import Scripts
from leaderboard.cache.servers import Login, Servers
from leaderboard.config import Settings
from leaderboard.errors import CacheUnavailable
from leaderboard.redis_url import RedisUrl, parse_redis_url
from tests.system import until

pytestmark = pytest.mark.anyio

POLL = Scripts().poll(nonce="", lease_ms=0)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: they raise different errors for a connection that is gone."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def url(settings: Settings) -> RedisUrl:
    return parse_redis_url(settings.redis_url.get_secret_value())


class Forwarding:
    """A port that leads to Redis. It resets its connections when told, as a server does that was killed."""

    def __init__(self, url: RedisUrl) -> None:
        self._to = url
        self.url = url
        self._clients: list[asyncio.StreamWriter] = []
        self._servers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.append(writer)
        ((host, port),) = self._to.addresses
        other_reader, other_writer = await asyncio.open_connection(host, port)
        self._servers.append(other_writer)
        self._tasks.append(asyncio.create_task(_copy(reader, other_writer)))
        self._tasks.append(asyncio.create_task(_copy(other_reader, writer)))

    async def reset(self) -> None:
        for client in self._clients:
            if client.is_closing():
                continue
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.transport.abort()
        self._clients.clear()
        for _ in range(20):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._servers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except OSError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def forwarding(url: RedisUrl) -> AsyncIterator[Forwarding]:
    forwarding = Forwarding(url)
    server = await asyncio.start_server(forwarding.serve, "127.0.0.1", 0)
    forwarding.url = replace(url, addresses=(server.sockets[0].getsockname(),))
    yield forwarding
    server.close()
    await forwarding.reset()
    await forwarding.close()


async def test_a_connection_that_was_reset_is_unavailable_and_made_again(forwarding: Forwarding) -> None:
    link = Link(Servers(forwarding.url, Login()), 1.0)
    await link.run(POLL)
    await forwarding.reset()
    with pytest.raises(CacheUnavailable):
        await link.run(POLL)
    await until_it_answers(link)
    await link.close()


async def test_an_unexpected_error_while_connecting_is_raised_once(url: RedisUrl) -> None:
    errors = [ValueError("unexpected")]

    async def fail_once(_evaluate: Evaluate) -> None:
        if errors:
            raise errors.pop()

    link = Link(Servers(url, Login()), 1.0, on_connect=fail_once)
    with pytest.raises(ValueError, match="unexpected"):
        await link.run(POLL)
    await until_it_answers(link)
    await link.close()


async def until_it_answers(link: Link) -> None:
    async def answers() -> bool:
        try:
            await link.run(POLL)
        except CacheUnavailable:
            return False
        return True

    await until(answers, "Redis answers again")
