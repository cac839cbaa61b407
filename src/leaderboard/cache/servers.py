"""Finds the server that holds the cache: one server, a node of a Cluster, or the primary by Sentinel.

Every connection of the process comes from here, so that all of them lead to the same server. When another server
takes over, `switches` counts it, and each `Link` closes a connection from before.
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
"""The slot of all keys, because they share a hash tag."""

_LEAST_VERSION = 7
_DIAL_S = 2.0
"""The longest that connecting to one server may take: some eight round trips with TLS and logging in."""

_NO_DATABASE = re.compile("SELECT is not allowed|DB index")
_LEAVING_S = 0.5
_LEFT_FOR_MS = 3000


@dataclass(frozen=True, slots=True)
class Login:
    """What logging in needs besides the URL. These passwords take precedence over the URL's."""

    password: str = ""
    sentinel_password: str = ""
    tls: ssl.SSLContext | None = None


class Servers:
    """The servers that a URL names, and those that these servers name."""

    def __init__(self, url: RedisUrl, login: Login) -> None:
        self._url = url
        self._login = login
        # In the order in which they are asked.
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
        """Return a new connection to the server that holds the cache, and the value of `switches` then.

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
        """Return the policy by which the server may evict any key; empty if it does not, or may not be asked.

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
        reported = dict(line.split(":", 1) for line in memory.decode().splitlines() if ":" in line)
        policy = reported.get("maxmemory_policy", "")
        return policy if policy.startswith("allkeys") and reported.get("maxmemory") != "0" else ""

    def moved(self, error: MovedError) -> None:
        """Note the answer of a node that another node has the slot of the keys."""
        host = error.host or (self._current[0] if self._current else "")
        self._ask_first((host, error.port))

    def note_silent(self) -> None:
        """Note that the current node has not answered: another one is asked first."""
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
                    self._check_single(address)
                    return connection
                self.may_switch = True
                owner = await self._owner(connection, address)
                if owner == address:
                    await self._take_over(owner)
                    return connection
            except BaseException:
                # Other nodes may know more: this one may be new, or cut off from them.
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
            # Other nodes learn of a failover earlier than these two, perhaps.
            self._ask_last(owner)
            self._ask_last(named_by)
            raise
        await self._take_over(owner)
        return connection

    async def _owner(self, connection: AbstractConnection, asked: Address) -> Address:
        """Return the node of the Cluster that serves the slot of the keys; remember all other nodes."""
        ranges = await send(connection, "CLUSTER", "SLOTS")
        owner: Address | None = None
        found = []
        for first, last, *nodes in ranges:
            # A node without a host is the one that was asked.
            addresses = [((node[0] or b"").decode() or asked[0], int(node[1])) for node in nodes]
            found += addresses
            if first <= _SLOT <= last:
                owner = addresses[0]
        known = {*found, *self._url.addresses}
        # Known nodes keep their order, so that each gets its turn.
        self._nodes = list(
            dict.fromkeys([*(node for node in self._nodes if node in known), *found, *self._url.addresses])
        )
        if owner is None:
            raise CacheUnavailable(f"no node of the Redis Cluster serves slot {_SLOT}")
        return owner

    def _check_single(self, address: Address) -> None:
        if len(self._url.addresses) > 1:
            raise CacheUnsupported(
                f"several addresses are for a Redis Cluster, and {_address(address)} is not part of one"
            )

    async def _from_sentinels(self, sentinels: Sentinels) -> tuple[AbstractConnection, int]:
        primary = await sentinels.primary()
        switches = sentinels.switches
        await self._take_over(primary)
        connection, hello = await self._dial(primary)
        if hello.get("role", "master") != "master":
            await connection.disconnect(nowait=True)
            raise CacheUnavailable(f"Sentinel names {_address(primary)}, which is still a replica")
        return connection, switches

    async def _take_over(self, server: Address) -> None:
        """Use this server from now on, and leave the one before."""
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
        """Delete the cache on a server that may still be a primary, and block rebuilds there for a while.

        For some seconds after a failover by Sentinel there may be two primaries. A process that has not noticed
        yet would read old data from the old one. Without a cache there, it reads from PostgreSQL.
        """
        try:
            async with asyncio.timeout(_LEAVING_S):
                connection, _ = await self._dial(before)
                try:
                    # First the claim, so that a rebuild that is under way cannot install a cache there.
                    await send(connection, "SET", keys.CLAIM, "left", "PX", _LEFT_FOR_MS)
                    await send(connection, "DEL", keys.STATE, keys.SCORES, keys.METADATA, keys.LEASE, keys.DELTAS)
                finally:
                    await connection.disconnect(nowait=True)
        except (RedisError, OSError, TimeoutError, CacheUnsupported):
            # It is down, or a replica already.
            return

    def _ask_first(self, node: Address) -> None:
        self._nodes = [node, *(other for other in self._nodes if other != node)]

    def _ask_last(self, node: Address) -> None:
        self._nodes = [*(other for other in self._nodes if other != node), node]

    async def _dial(self, address: Address | None) -> tuple[AbstractConnection, Mapping[str, Any]]:
        """Connect, log in, and ask the server what it is. Raises CacheUnsupported if it cannot hold the cache."""
        url = self._url
        where = url.path if address is None else _address(address)
        connection = self._connection(address, url.username, self._login.password or url.password, url.database)
        try:
            async with _closed_on_failure(connection):
                await connection.connect()  # type: ignore[no-untyped-call]
                hello = await _hello(connection)
                _check_server(where, hello)
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
            # The driver would report its version, which costs two round trips.
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
    """Allow _DIAL_S for the block, and close the connection if the block fails."""
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
    """Return what the server says about itself; empty if the user may not ask."""
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


def _check_server(where: str, hello: Mapping[str, Any]) -> None:
    version = str(hello.get("version", _LEAST_VERSION))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < _LEAST_VERSION:
        older = version if int(major) > 5 else "older than 6"
        raise CacheUnsupported(f"{where} is Redis {older}; Redis 7.0 or Valkey is needed")
    if hello.get("mode") == "sentinel":
        raise CacheUnsupported(f"{where} is a Sentinel; its URL begins with redis+sentinel://")


def _address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
