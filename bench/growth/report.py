"""Reports the results: tables, targets, a plot, and all of them in the documentation."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench import tables
from bench.growth.measure import STEADY_RATE
from bench.growth.result import DEPTHS, TOGETHER, Look, Result
from bench.latency import Latency
from bench.tables import STYLE, Target, count, filled, number

_COMPARED = 100_000
"""A target compares the largest board with the one of this many users."""


def targets(results: Sequence[Result]) -> list[Target]:
    """Returns the targets of one run. The one that compares two boards needs both."""
    largest = results[-1]
    context = largest.reads.context[50].p50_ms
    name = count(largest.users)
    found = [
        Target(
            f"a context at half depth of {name} users / of {count(smaller.users)}",
            context / smaller.reads.context[50].p50_ms,
            3,
            at_least=False,
        )
        for smaller in results[:-1]
        if smaller.users == _COMPARED
    ]
    plain = largest.reads.plain[50].p50_ms
    lowest = min(results, key=lambda result: result.writes.with_index / result.writes.without_index)
    return [
        *found,
        Target(
            f"the rank by `count(*)` / a context, both at half depth of {name} users",
            plain / context,
            100,
            at_least=True,
        ),
        Target(
            f"scores set with the index / without, where that is lowest, with {count(lowest.users)} users",
            lowest.writes.with_index / lowest.writes.without_index,
            0.7,
            at_least=True,
        ),
        Target(
            f"the rank index after the writes / `users`, in bytes, of {name} users",
            largest.sizes.index_after / largest.sizes.users,
            0.05,
            at_least=False,
        ),
    ]


def summary(results: Sequence[Result]) -> str:
    """Returns the targets as a table."""
    return tables.target_table(targets(results))


def table(results: Sequence[Result]) -> str:
    """Returns a table with a column for each board."""
    columns = [dict(_figures(result)) for result in results]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return tables.table(("", *(f"{count(result.users)} users" for result in results)), rows)


def steady_table(looks: Sequence[Look]) -> str:
    """Returns a table with a dozen of the measurements during steady writes."""
    every = math.ceil(len(looks) / 12)
    rows = [
        (
            f"{look.at_s:.0f} s",
            f"{look.log_rows:,}",
            _bytes(look.log_bytes),
            _bytes(look.index_bytes),
            f"{look.pending:,}",
            _quantiles(look.context),
        )
        for look in looks[every - 1 :: every]
    ]
    return tables.table(("after", "log rows", "log", "rank index", "pending rows", "context, ms"), rows)


def machine(results: Sequence[Result]) -> str:
    """Returns a description of the machine."""
    return tables.machine(results[-1].postgres)


def _figures(result: Result) -> Iterator[tuple[str, str]]:
    reads, writes, sizes, keeping = result.reads, result.writes, result.sizes, result.writes.keeping
    for depth in DEPTHS:
        yield f"rank at {depth} %, ms", _quantiles(reads.rank[depth])
    for depth in DEPTHS:
        yield f"context at {depth} %, ms", _quantiles(reads.context[depth])
    yield f"context at 50 % while {STEADY_RATE:,} scores/s are set, ms", _quantiles(result.busy.context)
    yield f"{TOGETHER} contexts together, ms", _quantiles(reads.together)
    yield "the same for each of them, ms", number(reads.together.p50_ms / TOGETHER)
    for depth in DEPTHS:
        yield f"rank by `count(*)` at {depth} %, ms", _quantiles(reads.plain[depth])
    yield "scores set with the index, rows/s", f"{writes.with_index:,.0f}"
    yield "scores set without, rows/s", f"{writes.without_index:,.0f}"
    yield "ratio of these", number(writes.with_index / writes.without_index)
    yield "applying the log once, ms", _quantiles(keeping.fold)
    yield "most pending rows", f"{keeping.most_pending:,}"
    yield "times the index was found invalid", f"{keeping.unusable}"
    yield "building the index, s", number(result.build_s)
    yield "building it after many writes, s", number(median(writes.builds_s))
    yield "`users` with its indexes", _bytes(sizes.users)
    yield "rank index", f"{_bytes(sizes.index)} ({sizes.index / sizes.users:.2%})"
    yield "rank index after the writes", f"{_bytes(sizes.index_after)} ({sizes.index_after / sizes.users:.2%})"


def write_json(path: Path, results: Sequence[Result]) -> None:
    """Writes all results, for programs."""
    found = {
        "machine": machine(results),
        "results": [asdict(result) for result in results],
        "targets": [asdict(t) for t in targets(results)],
    }
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def write_docs(page: Path, plot: Path, results: Sequence[Result]) -> None:
    """Writes the tables between the page's two marks, and the plot. Raises ValueError without marks."""
    write_plot(plot, results)
    measured = [
        f"Measured on {machine(results)}, by `make bench-growth`. Of times: the median / the 99th percentile.",
        table(results),
        f"![Time by number of users]({plot.name})",
        summary(results),
    ]
    for result in results:
        if result.steady:
            measured += [f"With {count(result.users)} users and {STEADY_RATE:,} scores set a second:"]
            measured += [steady_table(result.steady)]
    page.write_text(filled(page.read_text("utf-8"), "growth", "\n\n".join(measured)), "utf-8")


def write_plot(path: Path, results: Sequence[Result]) -> None:
    """Draws time by number of users, both axes logarithmic, as SVG."""
    import ziaplot  # noqa: PLC0415 - needed for drawing only

    lines = {
        "the rank by count(*)": ("#b3261e", [result.reads.plain[50] for result in results]),
        "a context, others writing": ("#9a6700", [result.busy.context for result in results]),
        "a context": ("#0b57d0", [result.reads.context[50] for result in results]),
    }
    times = [math.log10(latency.p50_ms) for _, latencies in lines.values() for latency in latencies]
    users = [math.log10(result.users) for result in results]
    decades = range(math.floor(min(times)), math.ceil(max(times)) + 1)
    # Own ticks on logarithms, because the library's logarithmic axes write 1e+06 and cut off the last tick.
    graph = ziaplot.Graph().css(STYLE).size(760, 420).axesnames("users", "milliseconds, median")
    graph.xrange(users[0] - 0.2, users[-1] + 0.2).xticks(users, [count(result.users) for result in results])
    graph.yrange(decades[0], decades[-1]).yticks(decades, [f"{10.0**decade:g}" for decade in decades])
    graph.legend("topleft")
    with graph:
        for name, (colour, latencies) in lines.items():
            line = [math.log10(latency.p50_ms) for latency in latencies]
            ziaplot.PolyLine(users, line).color(colour).marker("round", radius=4).name(name)
    path.write_text(graph.tosvg() + "\n", "utf-8")


def _quantiles(latency: Latency | None) -> str:
    return "too few" if latency is None else f"{number(latency.p50_ms)} / {number(latency.p99_ms)}"


def _bytes(size: int) -> str:
    return f"{number(size / 1e6)} MB" if size >= 1e6 else f"{number(size / 1e3)} kB"
