"""Reports the results: tables, targets, a plot, and all of them in the documentation."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import msgspec

from bench import tables
from bench.hot.result import NULL, OURS, PLAIN, TWO, Cell, Result
from bench.hot.work import CONTEXT_ALL, CONTEXT_BEST, MANY, MOSTLY_READS, READS, SET_SCORE, TOP_10, WORKS, Work
from bench.tables import STYLE, Target, number

_OF_NULL = {TOP_10: 0.65, CONTEXT_BEST: 0.45, CONTEXT_ALL: 0.06, SET_SCORE: 0.22, MOSTLY_READS: 0.40}
_OF_PLAIN = {**dict.fromkeys(READS, 3.0), SET_SCORE: 3.0}
_TWO_OF_ONE = 1.5
_COLOURS = {PLAIN: "#b3261e", OURS: "#0b57d0", TWO: "#9a6700"}


def targets(result: Result) -> list[Target]:
    """Yields the targets whose two contestants were measured."""
    found = [
        *_ratios(result, OURS, NULL, _OF_NULL),
        *_ratios(result, OURS, PLAIN, _OF_PLAIN),
        *_ratios(result, TWO, OURS, dict.fromkeys(READS, _TWO_OF_ONE)),
    ]
    if facts := result.facts:
        found += [
            Target("memory of a process with a full cache", facts.api_bytes / 1e6, 120, False, " MB"),
            Target("memory of Valkey with 10,000 users", facts.redis_bytes / 1e6, 6, False, " MB"),
            Target("cold start, until ready with a full cache", facts.cold_start_s, 1.5, False, " s"),
            Target("rebuild of 10,000 users", facts.rebuild_s, 0.5, False, " s"),
        ]
    return found


def _ratios(result: Result, upper: str, lower: str, limits: dict[Work, float]) -> Iterator[Target]:
    for work, limit in limits.items():
        one, other = result.cell(upper, work), result.cell(lower, work)
        if one and other:
            ratio = one.rate / other.rate if other.rate else math.inf
            yield Target(f"{work.name}: {upper} / {lower}", ratio, limit, at_least=True)


def text(result: Result) -> str:
    """Returns all results in Markdown."""
    return "\n\n".join(_paragraphs(result))


def _paragraphs(result: Result) -> list[str]:
    minutes, seconds = divmod(round(result.took_s), 60)
    return [
        f"Measured on {tables.machine(result.postgres)}, with {tables.count(result.users)} users, in"
        f" {result.rounds} rounds of {result.seconds:g} s for each line: {minutes} min {seconds} s in all.",
        table(result),
        *([f"The stores alone: {limits}."] if (limits := _limits(result)) else []),
        f"With {MANY} connections:",
        tables.target_table(targets(result)),
        *_notes(result),
    ]


def table(result: Result) -> str:
    """Returns a table with a line per contestant and kind of work; medians over the rounds."""
    head = (
        *("work", "connections", "who", "requests/s", "/ null", "/ plain", "p50, ms", "p99, ms", "p99.9, ms"),
        *("API, CPU-s / 1,000", "PostgreSQL", "Valkey"),
    )
    return tables.table(head, [_row(result, cell) for cell in result.cells])


def _row(result: Result, cell: Cell) -> tuple[str, ...]:
    rates = {
        other.contestant: other.rate
        for other in result.cells
        if (other.work, other.connections) == (cell.work, cell.connections)
    }

    def beside(other: str) -> str:
        return number(cell.rate / rates[other]) if rates.get(other) and other != cell.contestant else ""

    return (
        cell.work,
        str(cell.connections),
        cell.contestant,
        f"{cell.rate:,.0f}",
        beside(NULL),
        beside(PLAIN),
        number(cell.median(lambda shot: shot.load.p50_ms)),
        number(cell.median(lambda shot: shot.load.p99_ms)),
        number(cell.median(lambda shot: shot.load.p999_ms)),
        f"{cell.api_s:.3f}",
        f"{cell.median(lambda shot: shot.per_thousand(shot.used.postgres)):.3f}",
        f"{cell.median(lambda shot: shot.per_thousand(shot.used.valkey)):.3f}",
    )


def _limits(result: Result) -> str:
    if result.raw is None:
        return ""
    return (
        f"{median(result.raw.rows):,.0f} scores/s set by batched updates, "
        f"{median(result.raw.calls):,.0f} calls/s of Redis for the best ten"
    )


def _notes(result: Result) -> list[str]:
    """Returns notes on how reliable the figures are."""
    cores = os.cpu_count() or 1
    shots = [shot for cell in result.cells for shot in cell.shots]
    others = [shot.used.others / shot.used.elapsed / cores for shot in shots]
    looks = sum(shot.looks for shot in shots)
    notes = [
        f"Other processes took {median(others):.0%} of the machine while something was measured,"
        f" {max(others):.0%} at most. {looks:,} answers were checked."
    ]
    if cpu := _by_cpu(result):
        notes.append(f"By the CPU that the API takes for a request, null / ours: {cpu}.")
    rooms = []
    for work in READS:
        one, two = result.cell(OURS, work), result.cell(TWO, work)
        if one and two:
            api = one.median(lambda shot: shot.used.api / shot.used.elapsed)
            load = two.median(lambda shot: shot.used.load / shot.used.elapsed)
            stores = two.median(lambda shot: (shot.used.postgres + shot.used.valkey) / shot.used.elapsed)
            others_cores = two.median(lambda shot: shot.used.others / shot.used.elapsed)
            room = (cores - load - stores - others_cores) / api
            rooms.append(
                f"{work.name} {number(room)} (the load {number(load)} cores, the stores {number(stores)})"
            )
    if rooms:
        notes.append(
            f"CPU left for two processes on {cores} cores beside load generator, stores and other processes, in"
            f" multiples of what one process took: {', '.join(rooms)}."
            f" Below {_TWO_OF_ONE} it is not enough for two."
        )
    return notes


def _by_cpu(result: Result) -> str:
    found = []
    for work in _OF_NULL:
        null, ours = result.cell(NULL, work), result.cell(OURS, work)
        if null and ours and ours.api_s:
            found.append(f"{work.name} {number(null.api_s / ours.api_s)}")
    return ", ".join(found)


def write_json(path: Path, result: Result) -> None:
    """Writes all results, for programs."""
    found = {
        "machine": tables.machine(result.postgres),
        "result": msgspec.to_builtins(result),
        "targets": [asdict(target) for target in targets(result)],
    }
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def write_docs(page: Path, plot: Path, result: Result) -> None:
    """Writes the results between the page's marks, and the plot. Raises ValueError without marks."""
    write_plot(plot, result)
    paragraphs = [*_paragraphs(result), f"![Requests a second]({plot.name})"]
    page.write_text(tables.filled(page.read_text("utf-8"), "hot path", "\n\n".join(paragraphs)), "utf-8")


def write_plot(path: Path, result: Result) -> None:
    """Draws requests per second as a share of null's, by kind of work, as SVG."""
    import ziaplot  # noqa: PLC0415 - needed for drawing only

    rates = {(cell.contestant, cell.work): cell.rate for cell in result.cells if cell.connections == MANY}
    works = [work for work in WORKS if (NULL, work.name) in rates]
    chart = ziaplot.BarChartGrouped([work.label for work in works]).css(STYLE).size(980, 420)
    chart.axesnames("", f"requests/s, {MANY} connections, in shares of null's").legend("topright")
    with chart:
        for name, colour in _COLOURS.items():
            shares = [rates.get((name, work.name), 0) / rates[NULL, work.name] for work in works]
            if any(shares):
                ziaplot.BarSeries(*shares).color(colour).name(name)
    path.write_text(chart.tosvg() + "\n", "utf-8")
