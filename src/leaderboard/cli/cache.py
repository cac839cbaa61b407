"""`leaderboard sync` and `leaderboard verify`: the cache and the rank index against PostgreSQL."""

import asyncio
import time
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leaderboard.app import App
from leaderboard.cli.exits import ExitStatus, fail
from leaderboard.cli.process import with_app
from leaderboard.database.rank_index import Bucket, IndexedSeason
from leaderboard.errors import CacheDamaged
from leaderboard.model import User
from leaderboard.printable import printable
from leaderboard.sync.audit import Audit

_MAX_SHOWN = 50
"""How many differences are printed."""
_ALL = 1_000_000
_COMPARE_S = 3.0
"""How long to try to compare: just after a large change, a running service is about to rebuild the cache."""


def sync(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Load the whole cache again instead of catching up.")
    ] = False,
) -> None:
    """Bring the cache up to date with PostgreSQL now."""

    async def work(app: App) -> None:
        if damage := await app.sync.auditor.drop_unreadable():
            print(damage)
        if rebuild:
            await app.sync.synchronizer.discard("asked for")
        started = time.perf_counter()
        state = await app.sync.synchronizer.catch_up_now()
        done = "rebuilt" if rebuild else "up to date"
        seconds = time.perf_counter() - started
        print(f"{done} in {seconds:.2f} s: {state.count:,} users as of snapshot {state.position.snapshot}")

    with_app(work)


class _Recount(NamedTuple):
    """A season with a rank index, and its wrong buckets; None if the index is not valid."""

    season: IndexedSeason
    wrong_buckets: list[Bucket] | None


class _Comparison(NamedTuple):
    """What `verify` has found."""

    damage: list[str]
    """Why the cache had to be rebuilt before it could be compared."""
    cache: Audit
    wrong_buckets: list[Bucket] | None
    """The buckets of the rank index that count wrongly; None when there is no valid rank index."""
    cached_seasons: dict[str, Audit]
    seasons: list[_Recount]

    @property
    def equal(self) -> bool:
        wrong = self.wrong_buckets or any(recount.wrong_buckets for recount in self.seasons)
        wrong = wrong or any(audit.differences or audit.totals for audit in self.cached_seasons.values())
        return not (self.damage or self.cache.differences or self.cache.totals or wrong)


def verify() -> None:
    """Compare cache and rank index with the users, at one snapshot each; exit 1 if anything differs."""
    found = with_app(_compare)
    for line in found.damage:
        print(f"{line}; it has been rebuilt")
    if found.cache.compared is None:
        fail(f"nothing to compare: {found.cache.note}", ExitStatus.FAILED)
    _print_cache(found.cache)
    _print_cached_seasons(found.cached_seasons)
    _print_rank_index(found.wrong_buckets)
    for recount in found.seasons:
        _print_season(recount)
    if not found.equal:
        raise typer.Exit(ExitStatus.NO)


async def _compare(app: App) -> _Comparison:
    damage: list[str] = []
    deadline = time.monotonic() + _COMPARE_S
    while True:
        try:
            audit = await app.sync.auditor.audit()
        except CacheDamaged as error:
            damage.append(str(error))
            await app.sync.synchronizer.catch_up_now()
            continue
        if audit.compared is not None or time.monotonic() > deadline:
            ranks = app.database.rank_index
            others = [
                _Recount(season, await ranks.recount_all(season.season_id)) for season in await ranks.indexed()
            ]
            cached = await app.sync.auditor.audit_seasons(_ALL)
            return _Comparison(damage, audit, await ranks.recount_all(), cached, others)
        await asyncio.sleep(0.2)


def _print_cache(audit: Audit) -> None:
    if audit.differences:
        _print_differences(audit)
    if audit.totals:
        print("users in all: {:,} in the cache, {:,} in PostgreSQL".format(*audit.totals))
    if not audit.differences and not audit.totals:
        print(f"the cache equals PostgreSQL: {audit.compared:,} users compared at one snapshot")


def _print_cached_seasons(audits: dict[str, Audit]) -> None:
    compared = 0
    for name, audit in audits.items():
        compared += audit.compared or 0
        if audit.differences or audit.totals:
            print(f"the cached season {name}:")
            _print_cache(audit)
    if audits and not any(audit.differences or audit.totals for audit in audits.values()):
        print(
            f"the seasons of other boards in the cache equal PostgreSQL: {len(audits):,} with {compared:,} users"
        )


def _print_rank_index(wrong_buckets: list[Bucket] | None) -> None:
    if wrong_buckets is None:
        print("there is no valid rank index now; ranks are counted")
    elif not wrong_buckets:
        print("the rank index equals PostgreSQL: all users counted at one snapshot")
    _print_buckets("rank index", wrong_buckets)


def _print_season(recount: _Recount) -> None:
    season = recount.season
    name = f"rank index of the board {season.board}, season {season.number}"
    if recount.wrong_buckets is None:
        print(f"{name}: not valid now; ranks are counted")
    elif not recount.wrong_buckets:
        print(f"{name}: equals PostgreSQL")
    _print_buckets(name, recount.wrong_buckets)


def _print_buckets(name: str, wrong_buckets: list[Bucket] | None) -> None:
    for bucket in (wrong_buckets or ())[:_MAX_SHOWN]:
        sort_key, user_id = bucket.first
        first = f"sort key {sort_key}, id {user_id}" if user_id else "the best"
        print(f"{name}: from {first} on it has {bucket.indexed:,} users, PostgreSQL has {bucket.counted:,}")


def _print_differences(audit: Audit) -> None:
    table = Table(title=f"{len(audit.differences)} of {audit.compared} users differ")
    for column in ("userId", "cache", "PostgreSQL"):
        table.add_column(column)
    for difference in audit.differences[:_MAX_SHOWN]:
        cells = (_described(user) for user in (difference.cached, difference.stored))
        table.add_row(str(difference.user_id), *cells)
    Console().print(table)
    if len(audit.differences) > _MAX_SHOWN:
        print(f"… and {len(audit.differences) - _MAX_SHOWN} more")


def _described(user: User | None) -> Text:
    """Return a Text, because Rich would interpret markup and emoji names in a `str`."""
    if user is None:
        return Text("absent")
    image = "" if user.image_url is None else f" {user.image_url}"
    return Text(printable(f"{user.total_score} {user.user_name}{image}"))
