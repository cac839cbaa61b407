"""Finds the server that holds the cache and connects to it: one server, a Cluster's node, or Sentinel's primary.

Every connection of the process comes from here, so that all of them lead to the same server. When another server
takes over, `switches` counts it, and whoever holds a connection made before closes it.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.crc import key_slot
from redis.exceptions import MovedError, NoPermissionError, RedisError, ResponseError

from leaderboard.cache import keys
from leaderboard.cache.command import send
from leaderboard.cache.sentinels import Sentinels
from leaderboard.errors import CacheUnavailable, CacheUnsupported
from leaderboard.redis_url import Address, RedisUrl

_SLOT = key_slot(keys.STATE.encode())
"""Of all keys, because they share a hash tag."""

_LEAST_VERSION = 7
_DIAL_S = 2.0
"""How long connecting to one server may take: with TLS and logging in some eight round trips."""

_NO_DATABASE = re.compile("SELECT is not allowed|DB index")
_LEAVING_S = 0.5
_LEFT_FOR_MS = 3000


@dataclass(frozen=True, slots=True)
class Login:
    """What logging in to servers and Sentinels needs besides the URL, whose password is the second choice."""

    password: str = ""
    sentinel_password: str = ""
    tls: ssl.SSLContext | None = None


class Servers:
    """The servers that a URL names, and those that they name themselves."""

    def __init__(self, url: RedisUrl, login: Login) -> None:
        self._url = url
        self._login = login
        # The one to ask first comes first.
        self._nodes = list(url.addresses)
        self._sentinels = Sentinels(url, self._dial_sentinel) if url.service else None
        self._current: Address | None = None
        self._taking_over = asyncio.Lock()
        self._switches = 0
        self.may_switch = bool(url.service) or len(url.addresses) > 1
        """Whether another server may take over: by Sentinel, or in a Cluster."""

    @property
    def switches(self) -> int:
        """How many times another server has taken over."""
        return self._switches if self._sentinels is None else self._sentinels.switches

    async def connect(self) -> tuple[AbstractConnection, int]:
        """A new connection to the server that holds the cache now, and the value of `switches` it is for.

        Raises RedisError, OSError, TimeoutError, CacheUnavailable, and CacheUnsupported for a server that can
        never serve.
        """
        if self._url.path:
            connection, _ = await self._dial(None)
            return connection, self.switches
        if self._sentinels is None:
            return await self._from_nodes(), self.switches
        return await self._from_sentinels(self._sentinels)

    async def eviction_policy(self) -> str:
        """By which policy the server may evict any key; empty if it does not, or does not tell.

        Raises CacheUnavailable, and CacheUnsupported for a server that can never serve.
        """
        try:
            connection, _ = await self.connect()
            try:
                memory = await send(connection, "INFO", "memory")
            finally:
                await connection.disconnect(nowait=True)
        except NoPermissionError:
            return ""
        except (RedisError, OSError, TimeoutError) as error:
            raise CacheUnavailable(f"Redis is unreachable: {error}") from error
        told = dict(line.split(":", 1) for line in memory.decode().splitlines() if ":" in line)
        policy = told.get("maxmemory_policy", "")
        return policy if policy.startswith("allkeys") and told.get("maxmemory") != "0" else ""

    def moved(self, error: MovedError) -> None:
        """Learn from a node's answer that another one has the cache's slot."""
        host = error.host or (self._current[0] if self._current else "")
        self._ask_first((host, error.port))

    def doubt(self) -> None:
        """Ask another node first, because the current one has not answered."""
        if self._current is not None:
            self._ask_last(self._current)

    async def close(self) -> None:
        """Stop asking the Sentinels."""
        if self._sentinels is not None:
            await self._sentinels.close()

    async def _from_nodes(self) -> AbstractConnection:
        failures: list[Exception] = []
        for address in list(self._nodes):
            try:
                connection, hello = await self._dial(address)
            except (RedisError, OSError, TimeoutError) as error:
                failures.append(error)
                self._ask_last(address)
                continue
            try:
                if hello.get("mode") != "cluster":
                    self._must_be_alone(address)
                    return connection
                self.may_switch = True
                owner = await self._owner(connection, address)
                if owner == address:
                    await self._take_over(owner)
                    return connection
            except BaseException:
                # Others may know more: this one may be new, or cut off from them.
                self._ask_last(address)
                await connection.disconnect(nowait=True)
                raise
            await connection.disconnect(nowait=True)
            return await self._from_owner(owner, address)
        raise failures[0]

    async def _from_owner(self, owner: Address, named_by: Address) -> AbstractConnection:
        try:
            connection, _ = await self._dial(owner)
        except BaseException:
            # The others learn of a failover before this one does, and perhaps before the one that named it.
            self._ask_last(owner)
            self._ask_last(named_by)
            raise
        await self._take_over(owner)
        return connection

    async def _owner(self, connection: AbstractConnection, asked: Address) -> Address:
        """The node of the Cluster that serves the slot of the keys; remembers all the others."""
        ranges = await send(connection, "CLUSTER", "SLOTS")
        owner: Address | None = None
        found = []
        for first, last, *nodes in ranges:
            # Without a host it is the one that was asked.
            addresses = [((node[0] or b"").decode() or asked[0], int(node[1])) for node in nodes]
            found += addresses
            if first <= _SLOT <= last:
                owner = addresses[0]
        known = {*found, *self._url.addresses}
        # In the order in which they were to be asked: each gets its turn.
        self._nodes = list(
            dict.fromkeys([*(node for node in self._nodes if node in known), *found, *self._url.addresses])
        )
        if owner is None:
            raise CacheUnavailable(f"no node of the Redis Cluster serves slot {_SLOT}")
        return owner

    def _must_be_alone(self, address: Address) -> None:
        if len(self._url.addresses) > 1:
            raise CacheUnsupported(
                f"several addresses are for a Redis Cluster, which {_spell(address)} is not part of"
            )

    async def _from_sentinels(self, sentinels: Sentinels) -> tuple[AbstractConnection, int]:
        primary = await sentinels.primary()
        switches = sentinels.switches
        await self._take_over(primary)
        connection, hello = await self._dial(primary)
        if hello.get("role", "master") != "master":
            await connection.disconnect(nowait=True)
            raise CacheUnavailable(f"Sentinel names {_spell(primary)}, which is a replica still")
        return connection, switches

    async def _take_over(self, server: Address) -> None:
        """Use this server from now on, after having left the one before."""
        async with self._taking_over:
            if server == self._current:
                return
            before, self._current = self._current, server
            self._ask_first(server)
            if before is not None:
                self._switches += 1
                if self._sentinels is not None:
                    await self._leave(before)

    async def _leave(self, before: Address) -> None:
        """Remove the cache from a server that may still be a primary, and keep others from rebuilding it there.

        For some seconds after a failover by Sentinel there may be two primaries, and a process that has not
        noticed yet reads from the old one what was true before. Without a cache there it reads from PostgreSQL.
        """
        try:
            async with asyncio.timeout(_LEAVING_S):
                connection, _ = await self._dial(before)
                try:
                    # First, so that a rebuild that is under way cannot put a cache there after all.
                    await send(connection, "SET", keys.CLAIM, "left", "PX", _LEFT_FOR_MS)
                    await send(connection, "DEL", keys.STATE, keys.SCORES, keys.METADATA, keys.LEASE, keys.DELTAS)
                finally:
                    await connection.disconnect(nowait=True)
        except (RedisError, OSError, TimeoutError, CacheUnsupported):
            # It is gone, or a replica already.
            return

    def _ask_first(self, node: Address) -> None:
        self._nodes = [node, *(other for other in self._nodes if other != node)]

    def _ask_last(self, node: Address) -> None:
        self._nodes = [*(other for other in self._nodes if other != node), node]

    async def _dial(self, address: Address | None) -> tuple[AbstractConnection, Mapping[str, Any]]:
        """Connect, log in, and ask the server what it is. Raises CacheUnsupported for one that will not do."""
        url = self._url
        where = url.path if address is None else _spell(address)
        connection = self._connection(address, url.username, self._login.password or url.password, url.database)
        try:
            async with _closed_on_failure(connection):
                await connection.connect()  # type: ignore[no-untyped-call]
                hello = await _hello(connection)
                _must_do(where, hello)
        except ResponseError as error:
            if _NO_DATABASE.search(str(error)):
                raise CacheUnsupported(f"{where} has no database {url.database}") from error
            raise
        return connection, hello

    async def _dial_sentinel(self, address: Address) -> AbstractConnection:
        connection = self._connection(address, "", self._login.sentinel_password, 0)
        async with _closed_on_failure(connection):
            await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    def _connection(
        self, address: Address | None, username: str, password: str, database: int
    ) -> AbstractConnection:
        options: dict[str, Any] = {
            "username": username or None,
            "password": password or None,
            "db": database,
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "client_name": "leaderboard",
            # What would be told besides the name costs two round trips.
            "driver_info": None,
        }
        if address is None:
            return UnixDomainSocketConnection(path=self._url.path, **options)
        host, port = address
        if self._login.tls is None:
            return Connection(host=host, port=port, **options)
        return _TlsConnection(self._login.tls, host=host, port=port, **options)


@asynccontextmanager
async def _closed_on_failure(connection: AbstractConnection) -> AsyncIterator[None]:
    """Have _DIAL_S for what is done within; close the connection if it fails."""
    try:
        async with asyncio.timeout(_DIAL_S):
            yield
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


class _TlsConnection(Connection):
    """A TCP connection with TLS, whose context trusts only the given authorities."""

    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        self._tls = context
        super().__init__(**options)

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "ssl": self._tls}


async def _hello(connection: AbstractConnection) -> Mapping[str, Any]:
    """What the server says it is; nothing where the user may not ask."""
    try:
        reply: Sequence[Any] = await send(connection, "HELLO")
    except NoPermissionError:
        return {}
    except ResponseError as error:
        if "unknown command" in str(error).lower():
            return {"version": "5"}
        raise
    names = [name.decode() for name in reply[::2]]
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in zip(names, reply[1::2], strict=True)
    }


def _must_do(where: str, hello: Mapping[str, Any]) -> None:
    version = str(hello.get("version", _LEAST_VERSION))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < _LEAST_VERSION:
        older = version if int(major) > 5 else "older than 6"
        raise CacheUnsupported(f"{where} is Redis {older}; Redis 7.0 or Valkey is needed")
    if hello.get("mode") == "sentinel":
        raise CacheUnsupported(f"{where} is a Sentinel; its URL begins with redis+sentinel://")


def _spell(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
