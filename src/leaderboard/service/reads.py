"""Answers queries: from the cache if it may be read, otherwise from PostgreSQL.

Queries that wait together are answered together, in four queues. An answer from PostgreSQL is sent when it is
visible (`sync/visibility.py`), so that no later read, on any process, shows an older board.
"""

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from leaderboard.batching import Batch, Batcher, BatchLimits, QueueLimits
from leaderboard.database.database import Database
from leaderboard.database.rank_index import RankIndexInvalid
from leaderboard.database.rows import AtSnapshot
from leaderboard.errors import (
    BoardNotFound,
    DatabaseUnavailable,
    LeaderboardError,
    NotOnBoard,
    SeasonNotFound,
    UserNotFound,
)
from leaderboard.health import Health
from leaderboard.metrics import Metrics
from leaderboard.model import Context, EncodedTop, ExternalId, Page, Result, Standing, Top, UserRef, ranked
from leaderboard.queries import (
    ContextQuery,
    FriendsQuery,
    PageAroundQuery,
    PageQuery,
    Query,
    RankingQuery,
    SeasonRef,
    StandingQuery,
    TopQuery,
)
from leaderboard.service.cache_reads import CacheReads, Reply
from leaderboard.service.user_ids import UserIds
from leaderboard.snapshot import SnapshotPosition
from leaderboard.sync.visibility import Visibility

R = TypeVar("R", bound=Result)

_cost = attrgetter("cost")

_CACHE_BATCH = 512
_RANK_BATCH = 128
_RANK_CONCURRENCY = 2
"""With more, batches would be smaller, which is more work for PostgreSQL."""
_LARGE = 1000
"""A result of more users is large: one at a time, it holds up neither Redis nor this process for long."""


class Reads:
    """The reads of one process."""

    def __init__(
        self,
        database: Database,
        cache: CacheReads,
        visibility: Visibility,
        health: Health,
        metrics: Metrics,
        user_ids: UserIds,
        limits: QueueLimits,
        *,
        connections: int,
        stale_reads: bool,
    ) -> None:
        """`connections` is how many of PostgreSQL's the reads may use at the same time, three at least."""
        self._database = database
        self._user_ids = user_ids
        self._cache = cache
        self._visibility = visibility
        self._health = health
        self._metrics = metrics
        self._stale_reads = stale_reads
        # By whether they are about `default`, which does not wait for the loading of other seasons' replicas.
        self._cache_queues = {
            True: self._queue_of_cache("cache", limits),
            False: self._queue_of_cache("seasons", limits),
        }
        rank_concurrency = min(_RANK_CONCURRENCY, connections - 2)
        self._rank_queue: Batcher[StandingQuery | ContextQuery, Standing | Context] = Batcher(
            "ranks", self._read_ranks, limits, BatchLimits(_RANK_BATCH, rank_concurrency), deduplicate=True
        )
        self._database_queue: Batcher[Query[Any], Any] = Batcher(
            "postgres",
            self._read_postgres,
            limits,
            BatchLimits(1, connections - rank_concurrency, large_cost=_LARGE),
            deduplicate=True,
            cost=_cost,
        )

    def _queue_of_cache(self, name: str, limits: QueueLimits) -> Batcher[RankingQuery[Any], Reply[Any] | None]:
        batches = BatchLimits(_CACHE_BATCH, large_cost=_LARGE)
        return Batcher(name, partial(self._cache.read, name), limits, batches, deduplicate=True, cost=_cost)

    # Of the board `default`, or of a season of another one. Those raise BoardNotFound and SeasonNotFound, too.

    async def top(self, n: int, season: SeasonRef | None = None) -> Reply[EncodedTop]:
        """Return the best `n` users."""
        return await self._answer(TopQuery(n, season=season))

    async def standing(self, user: UserRef, season: SeasonRef | None = None) -> Reply[Standing]:
        """Return a user's rank. Raises UserNotFound, or NotOnBoard."""
        if isinstance(user, int):
            return await self._answer(StandingQuery(user, season=season))

        async def standing(user_id: int) -> Reply[Standing]:
            reply = await self._answer(StandingQuery(user_id, season=season))
            _check_user(user, reply.result)
            return reply

        return await self._user_ids.with_number(user, standing)

    async def context(self, user: UserRef, season: SeasonRef | None = None) -> Reply[Context]:
        """Return a user with its neighbours. Raises UserNotFound, or NotOnBoard."""
        if isinstance(user, int):
            return await self._answer(ContextQuery(user, season=season))

        async def context(user_id: int) -> Reply[Context]:
            reply = await self._answer(ContextQuery(user_id, season=season))
            _check_user(user, reply.result.user)
            return reply

        return await self._user_ids.with_number(user, context)

    async def page(self, query: PageQuery | PageAroundQuery) -> Reply[Page]:
        """Return consecutive users."""
        return await self._from_postgres(query)

    async def friends(self, users: Sequence[UserRef], season: SeasonRef | None = None) -> Reply[Top]:
        """Return those of these users that are on the board, best first, with their ranks among all."""
        numbers = [user for user in users if isinstance(user, int)]
        external_ids = [user for user in users if not isinstance(user, int)]
        found = await self._user_ids.numbers(external_ids) if external_ids else {}
        while True:
            reply = await self._from_postgres(
                FriendsQuery(tuple(sorted({*numbers, *found.values()})), season=season)
            )
            shown = {standing.external_id for standing in reply.result.users}
            missing = [external_id for external_id in found if external_id not in shown]
            # A user that is missing must not have been created before this was read.
            again = await self._user_ids.numbers(missing) if missing else {}
            if all(found[external_id] == number for external_id, number in again.items()):
                return reply
            found = {**found, **again}

    def queues(self) -> Sequence[Batcher[Any, Any]]:
        """Return the queues."""
        return (self._user_ids.lookups, *self._cache_queues.values(), self._rank_queue, self._database_queue)

    async def close(self) -> None:
        """Finish what was begun."""
        for queue in self.queues():
            await queue.close()

    # From where an answer comes

    async def _answer(self, query: RankingQuery[R]) -> Reply[R]:
        queue = self._cache_queues[query.season is None]
        try:
            reply = await queue.ask(query)
        except (UserNotFound, NotOnBoard):
            self._note_cached(query)
            raise
        if reply is not None:
            self._note_cached(query)
            return reply
        try:
            reply = await self._from_postgres(query)
        except DatabaseUnavailable:
            if not self._stale_reads:
                raise
        except NotOnBoard:
            self._cache.note_read(query.season, cached=False)
            raise
        else:
            self._cache.note_read(query.season, cached=False)
            return reply
        try:
            reply = await queue.ask(msgspec.structs.replace(query, stale=True))
        except (UserNotFound, NotOnBoard):
            # An error has no Age. The user may have been created, or come to the board, since.
            reply = None
        if reply is None:
            raise DatabaseUnavailable("PostgreSQL is unreachable, and the cache cannot answer this")
        self._metrics.answers.inc("stale cache")
        self._cache.note_read(query.season, cached=True)
        return reply

    def _note_cached(self, query: RankingQuery[Any]) -> None:
        self._metrics.answers.inc("cache")
        self._cache.note_read(query.season, cached=True)

    async def _from_postgres(self, query: Query[R]) -> Reply[R]:
        self._health.check_postgres()
        try:
            result = await self._ask_postgres(query)
        except (UserNotFound, NotOnBoard):
            self._metrics.answers.inc("postgres")
            raise
        self._metrics.answers.inc("postgres")
        return Reply(result)

    async def _ask_postgres(self, query: Query[Any]) -> Any:
        if isinstance(query, StandingQuery | ContextQuery):
            try:
                return await self._rank_queue.ask(query)
            except RankIndexInvalid:
                pass  # All better users are counted, which takes longer: one query at a time.
        return await self._database_queue.ask(query)

    # How a batch is answered

    async def _read_ranks(
        self, batch: Batch[StandingQuery | ContextQuery]
    ) -> list[Standing | Context | Exception]:
        self._metrics.batch_items.labels("ranks").observe(len(batch.items))
        by_season: dict[SeasonRef | None, list[StandingQuery | ContextQuery]] = {}
        for query in batch.items:
            by_season.setdefault(query.season, []).append(query)
        results: dict[StandingQuery | ContextQuery, Standing | Context | Exception] = {}
        positions = []
        for queries in by_season.values():
            try:
                found = await self._database.rank_index.standings(queries, count=False)
            except RankIndexInvalid as error:
                results |= dict.fromkeys(queries, error)
                continue
            except (BoardNotFound, SeasonNotFound) as error:
                results |= dict.fromkeys(queries, error)
                positions.append(await self._database.now())
                continue
            positions.append(found.position)
            for query, result in zip(queries, found.value, strict=True):
                results[query] = query.not_found() if result is None else result
        batch.start_next()
        for position in positions:
            await self._publish(position)
        return [results[query] for query in batch.items]

    async def _read_postgres(self, batch: Batch[Query[Any]]) -> list[Result | LeaderboardError]:
        (query,) = batch.items
        found: AtSnapshot[Any]
        try:
            found = await self._query_postgres(query)
        except (BoardNotFound, SeasonNotFound) as error:
            found = AtSnapshot(error, await self._database.now())
        batch.start_next()
        await self._publish(found.position)
        return [found.value]

    async def _query_postgres(self, query: Query[Any]) -> AtSnapshot[Any]:
        match query:
            case TopQuery(n, season=None):
                best = await self._database.users.top(n)
                top = Top([ranked(rank, user) for rank, user in enumerate(best.value, 1)])
                return AtSnapshot(EncodedTop.of(top), best.position)
            case TopQuery(n, season=SeasonRef() as season):
                standings = await self._database.users.top_of_season(n, season)
                return AtSnapshot(EncodedTop.of(Top(standings.value)), standings.position)
            case FriendsQuery(user_ids, season=season):
                asked = [StandingQuery(user_id, season=season) for user_id in user_ids]
                friends = await self._database.rank_index.standings(asked, count=True)
                on_board = [standing for standing in friends.value if isinstance(standing, Standing)]
                return AtSnapshot(Top(sorted(on_board, key=_rank_and_id)), friends.position)
            case StandingQuery() | ContextQuery():
                found = await self._database.rank_index.standings([query], count=True)
                return AtSnapshot(found.value[0] or query.not_found(), found.position)
            case PageQuery() | PageAroundQuery():
                return await self._database.rank_index.page(query)
        raise TypeError(f"{query} is no query for PostgreSQL")

    async def _publish(self, position: SnapshotPosition) -> None:
        """Wait until what was read is visible."""
        self._health.note_postgres(position)
        await self._visibility.wait_until_visible(position)


def _rank_and_id(standing: Standing) -> tuple[int, int]:
    return standing.rank, standing.user_id


def _check_user(external_id: ExternalId, found: Standing) -> None:
    """Raise UserNotFound for another user than was asked for: SQL by hand may have given a number again."""
    if found.external_id != external_id:
        raise UserNotFound(found.user_id)
