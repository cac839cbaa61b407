"""Sends one command on a connection of the driver and reads its reply."""

from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection


async def send(connection: AbstractConnection, *command: str | int | bytes) -> Any:
    """The reply to a command. Raises RedisError and OSError."""
    # Packed in C: the driver packs in Python, which takes longer than all else that it does for a call.
    packed = pack_command(command)  # type: ignore[arg-type]  # typed as if it took one word
    await connection.send_packed_command(packed, check_health=False)
    return await connection.read_response()
