"""The `leaderboard` command: the only place that prints, and that turns what went wrong into an exit status.

0: done · 1: done, and the answer is no (differences, rejected rows) · 2: wrong usage or setting · 3: could not.
"""

import asyncio
import contextlib
import http.client
import io
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from leaderboard import app as application
from leaderboard import importing, server
from leaderboard.config import BadSetting, Settings, load
from leaderboard.credentials import BadEntry, new_key, parse_keys
from leaderboard.database.rank_index import Bucket, RankIndex
from leaderboard.errors import CacheDamaged, CacheError, CacheUnsupported, LeaderboardError, Unavailable
from leaderboard.model import User
from leaderboard.observe import Metrics, set_up_logs
from leaderboard.printable import printable, printable_lines
from leaderboard.sync import Audit, CacheSync

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_NO, _USAGE, _FAILED = 1, 2, 3
_LOOPBACK = "localhost 127.0.0.1 [::1]"
"""The hosts that `dev` answers for.

A site can give 127.0.0.1 to a name of its own (DNS rebinding). Its page, in a browser on this machine, could then
read the board and write to it.
"""
_DIFFERENCES_SHOWN = 50
_REJECTED_SHOWN = 20
_SECONDS_BETWEEN_LINES = 2.0
_PATIENCE_TO_COMPARE_S = 3.0
_PATIENCE_TO_CHECK_REDIS_S = 2.0


def _version(asked: bool) -> None:
    if asked:
        print(f"leaderboard {version('leaderboard')}")
        raise typer.Exit


cli = typer.Typer(
    name="leaderboard",
    help="A leaderboard service that is never wrong about a rank. Settings come from the environment and `.env`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; every expected failure is one line on standard error, any other is logged as an error."""
    set_up_logs("error", "text")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error does: a user's name may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    # As the first process of a container, nothing else would end it before the server takes the signal over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        cli()
    except BadSetting as error:
        _fail(str(error), _USAGE)
    except (LeaderboardError, server.CannotServe) as error:
        _fail(str(error), _FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception:  # noqa: BLE001 - Python would print its message unescaped, and end with the status for "no"
        _log.exception("the command failed")
        raise SystemExit(_FAILED) from None


@cli.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@cli.command()
def serve(
    port: Annotated[int | None, typer.Option(help="TCP port; default: PORT, 3000.")] = None,
    workers: Annotated[int | None, typer.Option(help="API processes on that port; default: WORKERS, 1.")] = None,
) -> None:
    """Run the API against the PostgreSQL and Redis that the environment names."""
    settings = _settings(port=port, workers=workers)
    set_up_logs(settings.log_level, settings.log_format)
    server.check_port(settings)
    _warn_if_open(settings)
    try:
        _tell_connections(settings, asyncio.run(application.database_from(settings).check_schema()))
    except Unavailable as error:
        _log.warning("starting without PostgreSQL", error=str(error))
    asyncio.run(_check_redis(settings))
    server.serve(settings)


@cli.command()
def migrate() -> None:
    """Bring the database schema up to date."""
    steps = asyncio.run(application.database_from(_settings()).migrate(print))
    if not steps:
        print("the schema is up to date")


@cli.command("import")
def import_(
    file: Annotated[
        str,
        typer.Argument(help="A .csv or .csv.gz with the header username,score,imageUrl; - for standard input."),
    ],
    on_conflict: Annotated[
        importing.OnConflict, typer.Option(help="What to do with a username that the board has already.")
    ] = importing.OnConflict.SKIP,
) -> None:
    """Import users from a CSV file; a running service shows them without a restart."""
    report = _import(_settings(), file, on_conflict)
    print(printable(report.summary()))
    if report.rejected:
        raise typer.Exit(_NO)


@cli.command()
def sync(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Load the cache anew instead of catching up.")
    ] = False,
) -> None:
    """Bring the cache up to date with PostgreSQL now."""

    async def work(sync: CacheSync, _ranks: RankIndex) -> None:
        if damage := await sync.drop_unreadable():
            print(damage)
        if rebuild:
            await sync.discard("asked for")
        started = time.perf_counter()
        moment = await sync.catch_up_now()
        done = "rebuilt" if rebuild else "up to date"
        seconds = time.perf_counter() - started
        print(f"{done} in {seconds:.2f} s: {sync.cached_users:,} users as of snapshot {moment.snapshot}")

    _with_sync(work)


@cli.command()
def verify() -> None:
    """Compare the cache and the rank index with the users at one snapshot each; exit 1 if anything differs."""

    async def work(sync: CacheSync, ranks: RankIndex) -> tuple[list[str], Audit, list[Bucket] | None]:
        damage: list[str] = []
        # Just after a large change, a running service is about to rebuild the cache.
        deadline = time.monotonic() + _PATIENCE_TO_COMPARE_S
        while True:
            try:
                audit = await sync.audit()
            except CacheDamaged as error:
                damage.append(str(error))
                await sync.catch_up_now()
                continue
            if audit.compared is not None or time.monotonic() > deadline:
                return damage, audit, await ranks.recount_all()
            await asyncio.sleep(0.2)

    damage, audit, wrong = _with_sync(work)
    for line in damage:
        print(f"{line}; it has been rebuilt")
    if audit.compared is None:
        _fail(f"nothing to compare: {audit.note}", _FAILED)
    if audit.differences:
        _print_differences(audit)
    if audit.totals:
        print("users in all: {:,} by the cache, {:,} by PostgreSQL".format(*audit.totals))
    if not audit.differences and not audit.totals:
        print(f"the cache equals PostgreSQL: {audit.compared:,} users compared at one snapshot")
    if wrong is None:
        print("there is no rank index that could be used now; ranks are counted")
    elif not wrong:
        print("the rank index equals PostgreSQL: everybody counted at one snapshot")
    for bucket in (wrong or ())[:_DIFFERENCES_SHOWN]:
        score, user_id = bucket.first
        print(f"rank index: {bucket.said:,} users from score {score}, id {user_id} on; there are {bucket.found:,}")
    if damage or audit.differences or audit.totals or wrong:
        raise typer.Exit(_NO)


@cli.command()
def dev(
    port: Annotated[int | None, typer.Option(help="TCP port of the API; default: PORT, 3000.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data is kept between runs; default: .data.")
    ] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Do not import the example board.")] = False,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep the data in a temporary folder.")] = False,
    workers: Annotated[int | None, typer.Option(help="API processes; default: WORKERS, 1.")] = None,
) -> None:
    """Run everything on this machine: PostgreSQL, Valkey and the API, with an example board."""
    from leaderboard.dev import EmbeddedPostgres, EmbeddedValkey, Endpoints  # noqa: PLC0415 - for development only

    if ephemeral and data_dir is not None:
        raise typer.BadParameter("--ephemeral and --data-dir exclude each other")
    asked = _settings(port=port, workers=workers)
    # For oneself, unless HOST says otherwise: nobody asks who it is that writes.
    host = asked.host if "host" in asked.model_fields_set else "127.0.0.1"
    server.check_port(asked.model_copy(update={"host": host}))
    with contextlib.ExitStack() as stack:
        folder = data_dir or Path(".data")
        if ephemeral:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leaderboard-")))
        with _step("starting PostgreSQL"):
            postgres = stack.enter_context(EmbeddedPostgres(folder))
            postgres.create_database("leaderboard")
        with _step("starting Valkey"):
            valkey = stack.enter_context(EmbeddedValkey(folder))
        for started in (postgres, valkey):
            if ephemeral:
                stack.callback(started.remove)
            if started.note:
                print(printable(started.note))
        settings = _settings(
            host=host,
            allowed_hosts=asked.allowed_hosts or (_LOOPBACK if host == "127.0.0.1" else ""),
            port=port,
            workers=workers,
            log_format="text",
            **asdict(Endpoints.of(postgres, valkey)),
        )
        set_up_logs(settings.log_level, settings.log_format)
        if host != "127.0.0.1":
            _warn_if_open(settings)
        with _step("migrating"):
            asyncio.run(application.database_from(settings).migrate(lambda _line: None))
        if not empty and asyncio.run(_is_empty(settings)):
            with resources.as_file(resources.files("leaderboard") / "example.csv") as example:
                _import(settings, str(example), importing.OnConflict.SKIP)
        threading.Thread(target=_announce, args=(settings,), daemon=True).start()
        server.serve(settings, stop_on_hangup=True)
        print("stopping")


@cli.command()
def key(
    name: Annotated[str | None, typer.Option(help="What to call it; default: something random.")] = None,
    scopes: Annotated[str, typer.Option(help="What it may: read, write, admin, joined by +.")] = "read+write",
) -> None:
    """Make an API key: print it, for whoever will call, and its entry for API_KEYS, which does not tell it."""
    made, hashed = new_key()
    entry = f"{name or secrets.token_hex(4)}:{scopes}:{hashed}"
    try:
        parse_keys(entry)
    except BadEntry as error:
        _fail(f"{entry.partition(':sha256')[0]}: the entry must be {error}", _USAGE)
    print(f"key    {made}")
    print(f"entry  {entry}")


def _warn_if_open(settings: Settings) -> None:
    if not application.access(settings).guarded:
        _log.warning("no API_KEYS: whoever reaches the port may write", host=settings.host, port=settings.port)


async def _check_redis(settings: Settings) -> None:
    """Refuse a Redis that can never serve; one that is not there now may come."""
    cache = application.cache_from(settings)
    try:
        async with asyncio.timeout(_PATIENCE_TO_CHECK_REDIS_S):
            policy = await cache.eviction_policy()
        if policy:
            _log.warning("Redis may evict the board when its memory is full", maxmemory_policy=policy)
    except CacheUnsupported as error:
        _fail(f"REDIS_URL: {error}", _USAGE)
    except (CacheError, TimeoutError):
        pass  # Each process logs it, and goes on trying.
    finally:
        await cache.close()


def _tell_connections(settings: Settings, allowed: int) -> None:
    """Log how many connections to PostgreSQL this service may open, and warn if that is more than there are."""
    most = settings.workers * settings.db_pool_size
    numbers = {
        "most": most,
        "workers": settings.workers,
        "db_pool_size": settings.db_pool_size,
        "allowed": allowed,
    }
    if most > allowed:
        _log.warning("PostgreSQL allows fewer connections than this service may want", **numbers)
    else:
        _log.info("connections to PostgreSQL", **numbers)


def _settings(**overrides: Any) -> Settings:
    return load(**{name: value for name, value in overrides.items() if value is not None})


def _import(settings: Settings, file: str, on_conflict: importing.OnConflict) -> importing.ImportReport:
    so_far = importing.ImportReport()

    async def work() -> importing.ImportReport:
        store = application.database_from(settings)
        with _import_progress() as show:

            def progress(progress: importing.Progress) -> None:
                nonlocal so_far
                so_far = progress.report
                show(progress)

            async with store.importing() as importer:
                return await importing.import_file(file, importer, on_conflict, progress, _print_rejected())

    try:
        return asyncio.run(work())
    except importing.UnusableFile as error:
        _fail(f"{error}; nothing was imported", _FAILED)
    except KeyboardInterrupt:
        _fail(f"interrupted: {so_far.summary()}; importing again does the rest", 130)


class _Pace:
    """Rows a second in the present stage, which began when the one before was last heard of."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._heard = time.monotonic()

    def elapsed(self, progress: importing.Progress) -> float:
        if progress.stage != self._stage:
            self._stage, self._began = progress.stage, self._heard
        self._heard = time.monotonic()
        return max(self._heard - self._began, 0.001)


@contextlib.contextmanager
def _import_progress() -> Iterator[Callable[[importing.Progress], None]]:
    """A progress bar, or a line now and then where there is no terminal."""
    pace = _Pace()
    if not sys.stderr.isatty():
        yield _lines(pace)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(progress: importing.Progress) -> None:
            speed = progress.rows / pace.elapsed(progress)
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, rows=0, speed=0.0)
            bar.update(
                tasks[progress.stage],
                total=progress.total,
                completed=progress.done,
                rows=progress.rows,
                speed=speed,
            )

        yield show


def _lines(pace: _Pace) -> Callable[[importing.Progress], None]:
    shown = time.monotonic()

    def show(progress: importing.Progress) -> None:
        nonlocal shown
        elapsed = pace.elapsed(progress)
        finished = progress.done == progress.total
        if not finished and time.monotonic() - shown < _SECONDS_BETWEEN_LINES:
            return
        shown = time.monotonic()
        line = f"{progress.stage}: {progress.rows:,} rows, {progress.rows / elapsed:,.0f} rows/s"
        if progress.total and not finished:
            left = elapsed * (progress.total - progress.done) / max(progress.done, 1)
            line += f", {progress.done / progress.total:.0%}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return show


def _print_rejected() -> Callable[[importing.Rejected], None]:
    """Prints the first rejected rows; all of them are in the file of rejected rows."""
    shown = 0

    def show(row: importing.Rejected) -> None:
        nonlocal shown
        shown += 1
        if shown <= _REJECTED_SHOWN:
            print(printable(f"line {row.line} rejected: {row.reason}"), file=sys.stderr)
        elif shown == _REJECTED_SHOWN + 1:
            print("more rows are rejected; all are in the file of rejected rows", file=sys.stderr)

    return show


def _with_sync(work: Callable[[CacheSync, RankIndex], Coroutine[Any, Any, _T]]) -> _T:
    settings = _settings()

    async def run() -> _T:
        truth, cache = application.database_from(settings), application.cache_from(settings)
        await truth.open()
        sync = CacheSync(truth, cache, Metrics(), settings.sync_interval_ms / 1000)
        try:
            return await work(sync, RankIndex(truth.connections))
        finally:
            await sync.close()
            await cache.close()
            await truth.close()

    return asyncio.run(run())


async def _is_empty(settings: Settings) -> bool:
    truth = application.database_from(settings)
    await truth.open()
    try:
        return not (await truth.best(1)).value
    finally:
        await truth.close()


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    """Say what is being done and, when it is, how long it took."""
    started = time.perf_counter()
    print(f"{what} … ", end="", flush=True)
    try:
        yield
    except BaseException:
        print()
        raise
    print(f"{time.perf_counter() - started:.1f} s")


def _print_differences(audit: Audit) -> None:
    table = Table(title=f"{len(audit.differences)} of {audit.compared} users differ")
    for column in ("userId", "cache", "PostgreSQL"):
        table.add_column(column)
    for difference in audit.differences[:_DIFFERENCES_SHOWN]:
        table.add_row(
            str(difference.user_id), *(_described(user) for user in (difference.cached, difference.true))
        )
    Console().print(table)
    if len(audit.differences) > _DIFFERENCES_SHOWN:
        print(f"… and {len(audit.differences) - _DIFFERENCES_SHOWN} more")


def _described(user: User | None) -> Text:
    """Not a `str`, in which Rich would look for markup and for emoji's names."""
    if user is None:
        return Text("absent")
    image = "" if user.image_url is None else f" {user.image_url}"
    return Text(printable(f"{user.total_score} {user.user_name}{image}"))


def _announce(settings: Settings) -> None:
    """Once the API answers, print where everything is and a call for each endpoint, ready to paste."""
    url = f"http://localhost:{settings.port}{settings.root_path}"
    while True:
        # Not urllib, which would ask a proxy that the environment names.
        connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                break
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    variables = {
        "DB_HOST": settings.db_host,
        "DB_PORT": settings.db_port,
        "DB_PASSWORD": settings.db_password.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
    }
    exports = " ".join(f"{name}={value}" for name, value in variables.items())
    print(_WELCOME.format(url=url, settings=settings, exports=exports, **variables), flush=True)


_WELCOME = """
Leaderboard runs at {url} (the board for a browser; the API is shown at {url}/docs)

  PostgreSQL  postgresql://{settings.db_user}:{DB_PASSWORD}@{DB_HOST}:{DB_PORT}/{settings.db_name}
  Valkey      {REDIS_URL}

  curl {url}/users -H 'content-type: application/json' -d '{{"username": "ada", "score": 1815}}'
  curl {url}/users/1
  curl {url}/users/1/score -H 'content-type: application/json' -d '{{"score": 1000000}}'
  curl {url}/leaderboard/top/10
  curl {url}/leaderboard/user/1/context
  curl '{url}/leaderboard?limit=10'
  curl {url}/            # also /livez /readyz /metrics /openapi.json

To point other commands, such as .venv/bin/leaderboard import, at these servers:

  export {exports}

Ctrl-C stops everything."""


def _fail(text: str, status: int) -> NoReturn:
    first, *more = text.split("\n", 1)
    print(f"leaderboard: {printable(first)}", *map(printable_lines, more), sep="\n", file=sys.stderr)
    raise SystemExit(status)
