"""Reports the results: one table of targets, and one of the loads."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

from bench import tables
from bench.boards.many import warm_name
from bench.boards.result import DEFAULT, Ends, Result
from bench.hot.result import Cell, Shot
from bench.hot.work import CONTEXT_BEST, SET_SCORE, TOP_10
from bench.tables import Target, count, number
from bench.usage import Used

_LABELS = {TOP_10.name: "top 10", CONTEXT_BEST.name: "context", SET_SCORE.name: "set score"}
_WARM = {TOP_10: 0.85, CONTEXT_BEST: 0.85, SET_SCORE: 0.8}
"""The least share of the requests per second on `default`."""
_IDLE = 1.2
_END_MS = 50
_END_RATIO = 2
_DEPTH_RATIO = 3
_API_MB = 200


def targets(result: Result) -> list[Target]:
    """Returns the targets of the parts that were measured."""
    return [*_warm(result), *_idle(result), *_ends(result), *_depth(result), *_memory(result)]


def _warm(result: Result) -> Iterator[Target]:
    if result.many is None:
        return
    name = warm_name(result.plan)
    for work, limit in _WARM.items():
        board, default = result.many.cell(name, work.name), result.many.cell(DEFAULT, work.name)
        if board and default:
            yield Target(
                f"{_LABELS[work.name]}, requests/s: {name} / {DEFAULT}",
                _ratio(board.rate, default.rate),
                limit,
                True,
            )


def _idle(result: Result) -> Iterator[Target]:
    if result.many and (idle := result.many.idle):
        yield Target(
            f"CPU without requests: {idle.boards:,} boards / one",
            _ratio(_cpu_s(idle.many), _cpu_s(idle.one)),
            _IDLE,
            False,
        )


def _ends(result: Result) -> Iterator[Target]:
    if result.large and (ends := result.large.ends):
        large, few = count(result.plan.large), count(result.plan.few)
        yield Target(f"ending a season of {large} entries", ends.large_ms, _END_MS, False, " ms")
        yield Target(f"ending a season of {few} entries", ends.few_ms, _END_MS, False, " ms")
        yield Target(
            f"ending a season of {large} entries / of {few}", ends.large_ms / ends.few_ms, _END_RATIO, False
        )


def _depth(result: Result) -> Iterator[Target]:
    if result.large and (depth := result.large.depth):
        yield Target(
            f"a context at half depth of {count(result.plan.large)} entries / of {count(result.plan.small)}",
            depth.large.p50_ms / depth.small.p50_ms,
            _DEPTH_RATIO,
            False,
        )


def _memory(result: Result) -> Iterator[Target]:
    if result.many and (memory := result.many.memory):
        yield Target(
            f"memory of a process with {memory.boards:,} boards in use",
            memory.api_bytes / 1e6,
            _API_MB,
            False,
            " MB",
        )


def text(result: Result) -> str:
    """Returns all results in Markdown."""
    return "\n\n".join(_paragraphs(result))


def _paragraphs(result: Result) -> list[str]:
    minutes, seconds = divmod(round(result.took_s), 60)
    return [
        f"Measured on {tables.machine(result.postgres)}, in {minutes} min {seconds} s. Other programs took"
        f" {result.others:.0%} of the machine.",
        summary(result),
        *_loads(result),
        *([_ends_note(result.large.ends)] if result.large and result.large.ends else []),
    ]


def summary(result: Result) -> str:
    """Returns a table of what was measured: first what has a target."""
    rows = [*map(tables.target_row, targets(result)), *((name, value, "", "") for name, value in _figures(result))]
    return tables.table(("what", "measured", "target", "met"), rows)


def _figures(result: Result) -> Iterator[tuple[str, str]]:
    """Returns figures that have no target."""
    if result.many and (idle := result.many.idle):
        yield f"CPU-s a minute without requests, one board: {_PARTS}", _parts(idle.one)
        yield f"CPU-s a minute without requests, {idle.boards:,} boards: {_PARTS}", _parts(idle.many)
        yield f"of these {idle.boards:,} boards, in the cache", f"{idle.cached:,}"
    if result.many and (memory := result.many.memory):
        yield f"of {memory.boards:,} boards in use, in the cache", f"{memory.cached:,}"
        yield f"memory of Valkey with {memory.boards:,} boards in use", f"{number(memory.valkey_bytes / 1e6)} MB"
        yield f"requests/s on {memory.boards:,} boards, half contexts, half scores", f"{memory.rate:,.0f}"
        if memory.visible_ms is not None:
            yield "meanwhile, until the cache had caught up with a batch, mean", f"{number(memory.visible_ms)} ms"
    if result.large and (depth := result.large.depth):
        for name, latency in ((result.plan.large, depth.large), (result.plan.small, depth.small)):
            yield (
                f"a context at half depth of {count(name)} entries, median / 99th percentile",
                f"{number(latency.p50_ms)} / {number(latency.p99_ms)} ms",
            )


_PARTS = "API + PostgreSQL + Valkey"


def _parts(used: Used) -> str:
    minutes = used.elapsed / 60
    return " + ".join(number(seconds / minutes) for seconds in (used.api, used.postgres, used.valkey))


def _loads(result: Result) -> list[str]:
    if result.many is None or not result.many.cells:
        return []
    plan = result.plan
    head = (
        *("work", "on", "requests/s", f"/ {DEFAULT}", "p50, ms", "p99, ms"),
        *("API, CPU-s / 1,000", "PostgreSQL", "Valkey"),
    )
    return [
        f"{DEFAULT} has {count(plan.users)} users, each board {count(plan.entries)} entries;"
        f" {plan.rounds} rounds of {plan.seconds:g} s for each line, with 64 connections:",
        tables.table(head, [_load(result, cell) for cell in result.many.cells]),
        f"Boards in the cache after the last load: {_cached(result.many.cached)}.",
        *_by_cpu(result),
    ]


def _cached(boards: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {cached:,}" for name, cached in boards.items() if name != DEFAULT)


def _by_cpu(result: Result) -> list[str]:
    """Returns the ratios of CPU times, which change less than those of rates when other programs run."""
    assert result.many is not None
    name = warm_name(result.plan)
    found = []
    for work in _WARM:
        board, default = result.many.cell(name, work.name), result.many.cell(DEFAULT, work.name)
        if board and default:
            ratio = _ratio(default.median(_request_cpu_s), board.median(_request_cpu_s))
            found.append(f"{_LABELS[work.name]} {number(ratio)}")
    if not found:
        return []
    return [
        f"By the CPU time of API, PostgreSQL and Valkey for a request, {DEFAULT} / {name}: {', '.join(found)}."
    ]


def _request_cpu_s(shot: Shot) -> float:
    return shot.per_thousand(shot.used.api + shot.used.postgres + shot.used.valkey)


def _load(result: Result, cell: Cell) -> tuple[str, ...]:
    assert result.many is not None
    default = result.many.cell(DEFAULT, cell.work)
    beside = default is not None and cell.contestant != DEFAULT
    return (
        _LABELS[cell.work],
        cell.contestant,
        f"{cell.rate:,.0f}",
        number(_ratio(cell.rate, default.rate)) if beside and default else "",
        number(cell.median(lambda shot: shot.load.p50_ms)),
        number(cell.median(lambda shot: shot.load.p99_ms)),
        f"{cell.api_s:.3f}",
        f"{cell.median(lambda shot: shot.per_thousand(shot.used.postgres)):.3f}",
        f"{cell.median(lambda shot: shot.per_thousand(shot.used.valkey)):.3f}",
    )


def _ends_note(ends: Ends) -> str:
    return (
        f"A season was ended {len(ends.large_s)} times on each board; the longest took"
        f" {number(max(ends.large_s) * 1000)} ms on the large one"
        f" and {number(max(ends.few_s) * 1000)} ms on the other."
    )


def _cpu_s(used: Used) -> float:
    """Returns the CPU time of the service and the stores per second."""
    return (used.api + used.postgres + used.valkey) / used.elapsed


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf


def write_json(path: Path, result: Result) -> None:
    """Writes all results, for programs."""
    found = {
        "machine": tables.machine(result.postgres),
        "result": msgspec.to_builtins(result),
        "targets": [asdict(target) for target in targets(result)],
    }
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def write_docs(page: Path, result: Result) -> None:
    """Writes the results between the page's marks. Raises ValueError without marks."""
    page.write_text(tables.filled(page.read_text("utf-8"), "boards", text(result)), "utf-8")
