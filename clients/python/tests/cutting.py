"""A proxy that swallows answers after the service has done what was asked."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Cutter:
    """Passes requests on; as long as `cuts` is above 0, it closes the connection in place of an answer.

    The service sends the first byte of an answer after the commit, so what was asked is done by then.
    """

    def __init__(self, url: str) -> None:
        self.cuts = 0
        self.requests = 0
        """How many requests there were: the client is new, and each lost answer costs it its connection."""
        self._to = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_service, to_service = await asyncio.open_connection(self._to.hostname, self._to.port)
        writers = {to_client, to_service}
        self._writers |= writers
        try:
            await asyncio.gather(
                self._pass_requests(from_client, to_service),
                self._pass_answers(from_service, to_client, to_service),
            )
        finally:
            self._writers -= writers
            for writer in writers:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _pass_requests(self, client: asyncio.StreamReader, service: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await client.read(65536):
                # httpx sends a head and a body separately.
                self.requests += data.startswith((b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE "))
                service.write(data)
                await service.drain()
        service.close()

    async def _pass_answers(
        self, service: asyncio.StreamReader, client: asyncio.StreamWriter, to_service: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await service.read(65536):
                if self.cuts > 0:
                    self.cuts -= 1
                    break
                client.write(data)
                await client.drain()
        client.close()
        to_service.close()
