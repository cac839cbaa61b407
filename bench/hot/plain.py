"""A plain design with the same libraries, to compare with ours.

Each write is one transaction and one pipeline to Redis, each read one or two round trips. Nothing is batched or
kept consistent: the last writer to Redis wins, and a user that leaves its best 10,000 leaves a gap.
`python -m bench.hot.plain` runs it.
"""

import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import asyncpg
import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.hot import fixture
from leaderboard.config import Settings
from leaderboard.database.sql import named_queries

_SCORES, _METADATA = "plain:scores", "plain:users:metadata"
_AROUND = 5
_REDIS_CONNECTIONS = 64

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Plain:
    """The calls, with a pool of connections to each store."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sql = named_queries(
            "plain.sql", resources.files(__package__).joinpath("plain.sql").read_text("utf-8")
        )
        # This pool waits for a free connection; the usual one fails when all are in use.
        pool = BlockingConnectionPool.from_url(
            settings.redis_url.get_secret_value(),
            max_connections=_REDIS_CONNECTIONS,
            timeout=None,
            decode_responses=True,
        )
        self._redis = Redis.from_pool(pool)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    def application(self) -> Starlette:
        routes = [
            Route("/readyz", self.ready),
            Route("/leaderboard/top/{n:int}", self.top),
            Route("/leaderboard/user/{user_id:int}/context", self.context),
            Route("/users/{user_id:int}/score", self.set_score, methods=["POST"]),
            Route("/users", self.create, methods=["POST"]),
        ]
        return Starlette(
            routes=routes,
            exception_handlers={asyncpg.QueryCanceledError: _cancelled},
            lifespan=self._running,
        )

    @contextlib.asynccontextmanager
    async def _running(self, _app: Starlette) -> AsyncIterator[None]:
        settings = self._settings
        self._pool = await asyncpg.create_pool(
            host=settings.db_host,
            port=settings.db_port,
            user=settings.db_user,
            password=settings.db_password.get_secret_value(),
            database=settings.db_name,
            min_size=settings.db_pool_size,
            max_size=settings.db_pool_size,
        )
        for row in await self._pool.fetch(self._sql["best"], settings.cache_size):
            await self._show(row)
        yield
        await self._pool.close()
        await self._redis.aclose()

    async def ready(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    async def top(self, request: Request) -> Response:
        return _json({"users": await self._cached(0, request.path_params["n"] - 1)})

    async def context(self, request: Request) -> Response:
        user_id = request.path_params["user_id"]
        at = await self._redis.zrevrank(_SCORES, str(user_id))
        if isinstance(at, int):
            first = max(0, at - _AROUND)
            users = await self._cached(first, at + _AROUND)
            # The user may have moved in between.
            index = at - first
            if index < len(users) and users[index]["userId"] == user_id:
                return _context(users, index)
        return await self._context_in_truth(user_id)

    async def _cached(self, first: int, last: int) -> list[dict[str, Any]]:
        """Returns the users from position `first` to `last`, best first."""
        found: list[Any] = await self._redis.zrevrange(_SCORES, first, last, withscores=True)
        if not found:
            return []
        metadata = await self._redis.hmget(_METADATA, [user_id for user_id, _ in found])
        return [
            {"rank": rank, "userId": int(user_id), **_decode(more or "{}"), "score": int(score)}
            for rank, ((user_id, score), more) in enumerate(zip(found, metadata, strict=True), first + 1)
        ]

    async def _context_in_truth(self, user_id: int) -> Response:
        assert self._pool is not None
        async with self._pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            user = await connection.fetchrow(self._sql["user"], user_id)
            if user is None:
                raise HTTPException(404)
            place = (user["total_score"], user_id)
            rank = await connection.fetchval(self._sql["rank"], *place)
            above = await connection.fetch(self._sql["above"], *place)
            below = await connection.fetch(self._sql["below"], *place)
        rows = [*reversed(above), user, *below]
        return _context([_standing(i, row) for i, row in enumerate(rows, rank - len(above))], len(above))

    async def set_score(self, request: Request) -> Response:
        assert self._pool is not None
        score = _decode(await request.body())["score"]
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(self._sql["set_score"], request.path_params["user_id"], score)
        if row is None:
            raise HTTPException(404)
        await self._show(row)
        return _json({**_user(row), "previousScore": row["previous_score"]})

    async def create(self, request: Request) -> Response:
        assert self._pool is not None
        body = _decode(await request.body())
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(self._sql["create"], body["username"], body.get("score", 0))
        assert row is not None
        await self._show(row)
        return _json(_user(row), 201, {"Location": f"/users/{row['user_id']}"})

    async def _show(self, row: asyncpg.Record) -> None:
        """Writes the user to Redis, and removes the users that are not among the best any more."""
        metadata = _encode({"username": row["user_name"], "imageUrl": row["image_url"]})
        async with self._redis.pipeline() as pipeline:
            pipeline.zadd(_SCORES, {str(row["user_id"]): row["total_score"]})
            pipeline.hset(_METADATA, str(row["user_id"]), metadata)
            pipeline.zremrangebyrank(_SCORES, 0, -self._settings.cache_size - 1)
            await pipeline.execute()


def _user(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "userId": row["user_id"],
        "username": row["user_name"],
        "imageUrl": row["image_url"],
        "score": row["total_score"],
    }


def _standing(rank: int, row: asyncpg.Record) -> dict[str, Any]:
    return {"rank": rank, **_user(row)}


def _context(users: list[dict[str, Any]], at: int) -> Response:
    return _json({"user": users[at], "above": users[max(0, at - _AROUND) : at], "below": users[at + 1 :]})


async def _cancelled(_request: Request, _error: Exception) -> Response:
    """Answers 503 to a statement that the benchmark has ended."""
    return Response(status_code=503)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, "application/json")


def _worker(settings: Settings) -> Starlette:
    return Plain(settings).application()


if __name__ == "__main__":
    fixture.serve(_worker)
