"""`make bench-growth`: measures the rank index and its costs for several numbers of users."""

import argparse
import asyncio
import importlib.util
import signal
import sys
from pathlib import Path

from bench.growth import report
from bench.growth.measure import measure
from bench.growth.result import Result
from bench.progress import Progress
from bench.servers import servers
from leaderboard.config import Settings
from leaderboard.logs import set_up_logs

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
FEWEST = 1000
"""With fewer users the depths have too few users to measure."""
LIMIT_S = 3600
"""How long measuring one board may take, without the steady writes."""
_PATIENCE_MS = 60_000
"""Slow statements are measured, so their deadline is long."""
_DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Measures each size on separate servers, and reports."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument(
        "--sizes", type=sizes, default=SIZES, help="numbers of users; default: 10 thousand to 10 million"
    )
    parser.add_argument("--seconds", type=float, default=4, help="about how long to measure each figure")
    parser.add_argument(
        "--steady",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how long to set scores steadily on the largest board",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results as SVG")
    parser.add_argument(
        "--docs", action="store_true", help="write the results into docs/performance.md and docs/growth.svg"
    )
    options = parser.parse_args()
    if (options.plot or options.docs) and importlib.util.find_spec("ziaplot") is None:
        parser.error("to draw, ziaplot is needed: pip install --require-hashes -r requirements-bench.txt")
    set_up_logs("error", "text")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped on the way out

    progress = Progress()
    results: list[Result] = []
    for users in options.sizes:
        progress.say(f"{users:,} users")
        steady_s = options.steady if users == options.sizes[-1] else 0
        with servers(db_timeout_ms=_PATIENCE_MS) as settings:
            results.append(asyncio.run(_one(settings, users, progress, options.seconds, steady_s)))
        print(f"\n{report.table(results[-1:])}\n", flush=True)
        if options.json:
            report.write_json(options.json, results)
    print(
        f"Measured on {report.machine(results)}.\n\n{report.table(results)}\n\n{report.summary(results)}",
        flush=True,
    )
    if options.plot:
        report.write_plot(options.plot, results)
    if options.docs:
        report.write_docs(_DOCS / "performance.md", _DOCS / "growth.svg", results)
    return 0


def sizes(text: str) -> list[int]:
    """Returns the numbers of users, the smallest first."""
    numbers = sorted({int(number) for number in text.split()})
    if not numbers or numbers[0] < FEWEST:
        raise argparse.ArgumentTypeError(f"a board has {FEWEST:,} users or more")
    return numbers


async def _one(settings: Settings, users: int, progress: Progress, seconds: float, steady_s: float) -> Result:
    async with asyncio.timeout(LIMIT_S + steady_s):
        return await measure(settings, users, progress, seconds=seconds, steady_s=steady_s)


if __name__ == "__main__":
    sys.exit(main())
